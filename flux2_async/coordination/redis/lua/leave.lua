-- Forget a process; what it has borrowed expires by itself.
advance()
book.peers[peer] = nil
unqueue(peer)
save()
