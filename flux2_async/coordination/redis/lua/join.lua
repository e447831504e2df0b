-- ARGV: the beginning of all names until now, seconds without news if it was lost, how many permits were taken without this state, for each of them the seconds
-- until it comes back, and the leases under the old name that are known.
local replaces, alone = ARGV[FIRST_ARGUMENT], tonumber(ARGV[FIRST_ARGUMENT + 1])
local first_held = FIRST_ARGUMENT + 3
local last_held = first_held - 1 + tonumber(ARGV[FIRST_ARGUMENT + 2])
local function had_name(name)
    return replaces ~= '' and name:sub(1, #replaces) == replaces
end
local function number(name)
    return tonumber(name:match('%.(%d+)$') or '0')
end
advance()
for name in pairs(book.peers) do
    if had_name(name) and number(name) > number(peer) then
        return false
    end
end
compare()
change_rate()
book.lease_for = lease_for
if alone >= book_period() then
    pause(now + book_period() * CLOCK_MARGIN)
end
local keeps = {}
for place = last_held + 1, #ARGV do
    keeps[ARGV[place]] = true
end
for name in pairs(book.peers) do
    if had_name(name) then
        book.peers[name] = nil
        unqueue(name)
    end
end
for name, lease in pairs(book.leases) do
    if had_name(lease.owner) and keeps[name] then
        lease.owner = peer
    elseif had_name(lease.owner) and book.window then
        book.leases[name] = nil
        never_sent(lease)
    end
end
book.peers[peer] = now + PEER_SEEN_FOR
for place = first_held, last_held do
    if book.window then
        hold(book.window, now + tonumber(ARGV[place]))
    end
end
save()
local answer = reply(0, {})
redis.call('PUBLISH', channel, peer .. ' peers ' .. answer[4])
return answer
