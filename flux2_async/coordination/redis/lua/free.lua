-- Free the key, if the claim holds it and no task is known.
if row and row.owner == owner and row.state ~= 'bound' then
    redis.call('DEL', row_key)
    tell()
end
