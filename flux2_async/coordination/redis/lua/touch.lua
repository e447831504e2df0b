-- Hear that a process is still there; nothing: it has to join.
local answer = touch() and reply(0, {})
save()
return answer
