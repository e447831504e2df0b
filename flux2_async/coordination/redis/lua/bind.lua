told('bound', extra)
