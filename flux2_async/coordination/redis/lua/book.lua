-- The rules of `account_state.py` and `_limiter/window.py`, line by line in the same order of arithmetic; a test holds them together.
-- The state is one key in MessagePack, which keeps doubles as they are (a Lua number as text loses digits).

local CLOCK_MARGIN, PACE, PATIENCE, NEARLY = 1.001, 1.1, 10, 0.85
local PEER_SEEN_FOR, ASKS_PER_PERIOD, GRACE_MIN, GRACE_MAX = 60.0, 500, 0.1, 0.5
local PAUSE_WITHOUT_LIMIT = 10.0
-- By how many seconds a question may take longer than the one before it.
local JITTER = 0.25

local book_key = KEYS[1]
local peer, new_epoch, known_epoch, known_number = ARGV[2], ARGV[3], ARGV[4], tonumber(ARGV[5])
local limit, period, lease_for, channel = tonumber(ARGV[6]), tonumber(ARGV[7]), tonumber(ARGV[8]), ARGV[9]
-- The state's time in the last answer that the process had, and the seconds since it asked for that, by a clock of its own.
local seen, passed = tonumber(ARGV[10]), tonumber(ARGV[11])
local FIRST_ARGUMENT = 12

local now = tonumber(ARGV[1])
if not now then
    local time = redis.call('TIME')
    now = tonumber(time[1]) + tonumber(time[2]) / 1000000
end

local function text(number)
    return string.format('%.17g', number)
end

-- The window

local function forget(window)
    window.limit, window.burst = window.top, window.top
    window.passed_limit, window.passed_burst = window.top, window.top
    window.paced, window.rising = false, false
    window.news, window.step = false, 1
    window.full_at, window.stepped_at, window.patient_until = -math.huge, -math.huge, -math.huge
end

local function new_window()
    if limit == 0 then
        return false
    end
    local window = {top = limit, period = period, out = 0, returns = {}, news_at = -math.huge}
    forget(window)
    return window
end

local function collect(window, at)
    local returns, gone = window.returns, 0
    while returns[gone + 1] and returns[gone + 1][1] <= at do
        gone = gone + 1
    end
    if gone > 0 then
        local kept = {}
        for place = gone + 1, #returns do
            kept[#kept + 1] = returns[place]
        end
        window.returns, window.out = kept, window.out - gone
    end
end

local function give_back_at(window, at, taken)
    local returns, place = window.returns, #window.returns + 1
    while place > 1 and returns[place - 1][1] > at do
        place = place - 1
    end
    table.insert(returns, place, {at, taken})
end

local function spacing(window)
    if not window.paced then
        return 0
    end
    local whole = PACE * window.period / window.top
    return window.rising and whole or math.max(whole, window.period / window.limit)
end

local function ready_at(window, at, ahead)
    collect(window, at)
    local paced = at
    if window.burst < window.limit or window.burst == 1 then
        paced = math.max(at, math.max(window.full_at, at) + (ahead + 1 - window.burst) * spacing(window))
    end
    local missing = window.out + ahead + 1 - window.limit
    if missing <= 0 then
        return paced
    elseif missing > #window.returns then
        return math.huge
    end
    return math.max(paced, window.returns[missing][1])
end

local function take(window, at)
    window.news = false
    window.out = window.out + 1
    local gap = spacing(window)
    window.full_at = math.min(math.max(window.full_at, at) + gap, at + window.burst * gap)
    local burst_is_out = window.full_at - at >= (window.burst - 0.5) * gap
    return {sent_at = at, last = window.out >= window.limit or burst_is_out, spacing = gap}
end

local function judge(window, news)
    local taken = math.max(1, math.min(news.accepted, news.limit - 1))
    if news.first and news.accepted == 0 and news.refused == 1 then
        return
    end
    window.rising = news.first and taken > 1
    if news.first then
        window.limit, window.burst = taken > 1 and taken or window.top, taken
    elseif news.asked then
        window.limit = math.max(taken, window.passed_limit)
        window.burst = math.min(window.passed_burst, window.limit)
    elseif news.burst == 1 then
        window.limit = math.max(taken, math.floor(3 * news.limit / 4))
    elseif news.accepted >= NEARLY * news.limit or (news.accepted >= news.limit - 1 and news.limit > 2) then
        window.limit, window.burst = taken, math.min(news.burst, taken)
    else
        window.limit, window.burst = news.rising and window.top or news.limit, 1
    end
    window.paced = true
    window.passed_limit, window.passed_burst = window.limit, window.burst
end

local function ask(window, at)
    if not window.rising and at < math.max(window.patient_until, window.stepped_at + 2 * window.period) then
        return
    end
    if window.limit < window.top then
        window.limit = math.min(window.limit + window.step, window.top)
    elseif window.burst < window.top then
        window.burst = math.min(window.burst + window.step, window.top)
    else
        forget(window)
        return
    end
    window.step = window.step * 2
    window.stepped_at = at
    if window.rising and window.limit == window.top then
        window.rising, window.step, window.passed_limit = false, 1, window.limit
    end
end

local function window_answered(window, lease, at)
    collect(window, at)
    give_back_at(window, at + window.period * CLOCK_MARGIN, true)
    if lease.sent_at <= window.news_at then
        if window.news then
            window.news.accepted = window.news.accepted + 1
            judge(window, window.news)
        end
    elseif window.paced and lease.last and lease.sent_at >= window.stepped_at then
        ask(window, at)
    end
end

local function window_refused(window, lease, at, pause)
    window.out = window.out - 1
    if lease.sent_at > window.news_at then
        collect(window, at)
        local accepted = 0
        for _, back in ipairs(window.returns) do
            accepted = accepted + (back[2] and 1 or 0)
        end
        window.news = {
            limit = window.limit, burst = window.burst, first = not window.paced, asked = window.step > 1,
            rising = window.rising, accepted = accepted, refused = 1,
        }
        window.news_at, window.step, window.full_at = at, 1, -math.huge
    elseif window.news then
        window.news.refused = window.news.refused + 1
    end
    if window.news then
        judge(window, window.news)
    end
    local patience = PATIENCE * math.max(pause, window.period) * (window.burst == 1 and 2 or 1)
    window.patient_until = math.max(window.patient_until, at + patience)
end

local function hold(window, at)
    window.out = window.out + 1
    give_back_at(window, at, true)
end

-- The book

local packed = redis.call('GET', book_key)
local book = packed and cmsgpack.unpack(packed) or {
    epoch = new_epoch, number = 0, born = now, ['until'] = -math.huge, window = new_window(), lease_for = lease_for,
    leases = {}, peers = {}, queue = {}, seen = now, set_back = 0,
}

-- Who sets the server's clock forward lets no permit come back earlier, as far as a process can tell: more time than it counted
-- has not passed. Who sets it back does not hold up all permits for as long.
now = now + book.set_back
if seen and known_epoch == book.epoch and now > seen + passed * CLOCK_MARGIN + JITTER then
    local latest = math.max(seen + passed, book.seen)
    book.set_back, now = book.set_back + latest - now, latest
end
if now < book.seen then
    book.set_back, now = book.set_back + book.seen - now, book.seen
end
book.seen = now

local function book_period()
    return book.window and book.window.period or PAUSE_WITHOUT_LIMIT
end

local function grace()
    return math.max(GRACE_MIN, math.min(book_period() / 20, GRACE_MAX))
end

local function save()
    local lives_for = 3600 + book.lease_for + 4 * book_period()
    redis.call('SET', book_key, cmsgpack.pack(book), 'PX', string.format('%.0f', 1000 * lives_for))
end

local function pause(until_)
    if until_ <= book['until'] then
        return 0
    end
    book['until'] = until_
    return math.max(until_ - now, 0)
end

local function ambiguous(lease, at)
    if not book.window then
        return
    elseif lease then
        give_back_at(book.window, at + 2 * book_period() * CLOCK_MARGIN, false)
    else
        hold(book.window, at + 2 * book_period() * CLOCK_MARGIN)
    end
end

local function answered(lease, at)
    if not book.window then
        return
    elseif lease then
        window_answered(book.window, lease, at)
    else
        hold(book.window, at + book_period() * CLOCK_MARGIN)
    end
end

local function advance()
    for name, lease in pairs(book.leases) do
        if lease.expires_at <= now then
            book.leases[name] = nil
            ambiguous(lease, lease.expires_at)
        end
    end
    for name, until_ in pairs(book.peers) do
        if until_ <= now then
            book.peers[name] = nil
        end
    end
    local queue = {}
    for _, place in ipairs(book.queue) do
        if place.due + grace() > now then
            queue[#queue + 1] = place
        end
    end
    book.queue = queue
end

local function compare()
    if known_epoch ~= '' and known_epoch ~= book.epoch then
        pause(book.born + 2 * book_period() * CLOCK_MARGIN)
    elseif known_epoch ~= '' and known_number > book.number then
        book.number = known_number
        pause(now + 2 * book_period() * CLOCK_MARGIN)
    end
end

local function change_rate()
    local window = book.window
    if window and limit ~= 0 then
        if window.top ~= limit or window.period ~= period then
            window.top, window.period = limit, period
            forget(window)
        end
    elseif window or limit ~= 0 then
        book.window = new_window()
    end
end

local function index_of(name)
    for index, place in ipairs(book.queue) do
        if place.peer == name then
            return index
        end
    end
end

local function unqueue(name)
    local index = index_of(name)
    if index then
        table.remove(book.queue, index)
    end
end

local function enter(want, first)
    local index = index_of(peer)
    local place = index and book.queue[index] or {peer = peer}
    place.want, place.turn, place.due = want, now, now
    if first then
        unqueue(peer)
        table.insert(book.queue, 1, place)
    elseif not index then
        table.insert(book.queue, place)
    end
    return place
end

local function free(most)
    if not book.window then
        return most
    end
    local count = 0
    while count < most and ready_at(book.window, now, count) <= now do
        count = count + 1
    end
    return count
end

local function deal(place)
    local hands, wanted = {}, 0
    for _, other in ipairs(book.queue) do
        if other.turn <= now then
            hands[#hands + 1] = {want = other.want, got = 0, mine = other == place}
            wanted = wanted + other.want
        end
    end
    local all = free(wanted)
    local left, share = all, 0
    while left > 0 do
        for _, hand in ipairs(hands) do
            if hand.got < hand.want and left > 0 then
                hand.got = hand.got + 1
                left = left - 1
                share = share + (hand.mine and 1 or 0)
            end
        end
    end
    return share, all - share
end

local function touch()
    advance()
    compare()
    if book.peers[peer] then
        book.peers[peer] = math.max(book.peers[peer], now + PEER_SEEN_FOR)
    end
    return book.peers[peer]
end

local function never_sent(lease)
    book.window.out = book.window.out - 1
    book.window.full_at = book.window.full_at - lease.spacing
end

local function has_lent(name)
    local epoch, number = name:match('^(.*):(%d+)$')
    return epoch == book.epoch and tonumber(number) <= book.number
end

local function lend()
    book.number = book.number + 1
    local name = book.epoch .. ':' .. string.format('%.0f', book.number)
    if book.window then
        local lease = take(book.window, now)
        lease.owner, lease.expires_at = peer, now + book.lease_for
        book.leases[name] = lease
    end
    return name
end

local function postpone(place, kept)
    local ahead = math.max(index_of(place.peer) - 1, kept)
    local ready = book.window and ready_at(book.window, now, ahead) or now
    local whole = book_period()
    local turn = math.max(math.min(ready, now + whole * CLOCK_MARGIN), now + whole / ASKS_PER_PERIOD, book['until'])
    place.turn = turn
    place.due = kept > 0 and math.min(turn, now + grace()) or turn
end

local function reply(wait, leases)
    local peers = 0
    for _ in pairs(book.peers) do
        peers = peers + 1
    end
    local window = book.window
    local learned = window and window.limit < window.top and text(window.limit) or ''
    local answer = {
        text(wait), text(math.max(book['until'] - now, 0)), learned, text(math.max(peers, 1)), book.epoch,
        string.format('%.0f', book.number), text(now),
    }
    for _, name in ipairs(leases) do
        answer[#answer + 1] = name
    end
    return answer
end
