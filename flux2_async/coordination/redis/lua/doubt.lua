told('unknown', '')
