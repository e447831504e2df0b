-- Extra argument: how long a POST lives. The second key finds the first one from the submission's name.
local entry = view()
if entry and not (row.owner == owner and row.state == 'sending') then
    return entry
end
write_new('sending', '', now + tonumber(extra))
redis.call('SET', KEYS[2], digest, 'EX', KEPT_FOR)
return false
