-- ARGV: lease, fate, seconds ago, seconds of pause; again and again. Tells the others what they should know at once.
local news, wakes = 0, false
for argument = FIRST_ARGUMENT, #ARGV, 4 do
    advance()
    local fate, at = ARGV[argument + 1], now - tonumber(ARGV[argument + 2])
    local lease = book.leases[ARGV[argument]]
    book.leases[ARGV[argument]] = nil
    if not lease and fate ~= 'refused' and has_lent(ARGV[argument]) then
        -- Said twice, or after it expired.
        fate = 'told'
    end
    if fate == 'refused' then
        if lease and book.window then
            window_refused(book.window, lease, at, tonumber(ARGV[argument + 3]))
        end
        news = math.max(news, pause(at + tonumber(ARGV[argument + 3])))
    elseif fate == 'never_sent' then
        if lease and book.window then
            never_sent(lease)
        end
        wakes = wakes or (lease ~= nil and #book.queue > 0)
    elseif fate == 'answered' then
        answered(lease, at)
    elseif fate ~= 'told' then
        ambiguous(lease, at)
    end
end
save()
if news > 0 then
    redis.call('PUBLISH', channel, peer .. ' pause ' .. text(news))
end
if wakes then
    redis.call('PUBLISH', channel, peer .. ' wake')
end
return {text(news), wakes and 1 or 0}
