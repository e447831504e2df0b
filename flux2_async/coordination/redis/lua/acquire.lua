-- ARGV: how many permits, and '1' to go before the others. Answers nothing to a process that has to join.
if not touch() then
    save()
    return false
end
local place = enter(tonumber(ARGV[FIRST_ARGUMENT]), ARGV[FIRST_ARGUMENT + 1] == '1')
local share, kept = 0, 0
if book['until'] <= now then
    share, kept = deal(place)
end
local leases = {}
for number = 1, share do
    leases[number] = lend()
end
if share > 0 then
    unqueue(peer)
    table.insert(book.queue, place)
    place.want = place.want - share
end
local wait = 0
if place.want <= 0 then
    unqueue(peer)
else
    postpone(place, kept)
    wait = place.due - now
end
save()
return reply(wait, leases)
