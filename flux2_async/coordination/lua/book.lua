-- The rules of `_book.py`, `_window.py` and `_growth.py`, line by line in the same order of arithmetic; a test holds them together.
-- The state is one key in MessagePack, which keeps doubles as they are (a Lua number as text loses digits).

local HAIR = 1.001
local PROBE, PATIENCE, MAX_PATIENCE, EARNS, SAVINGS, FORGET = 24, 4, 32, 20, 6, 60
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

-- Growth and window

local function new_growth()
    return {wait = PATIENCE, budget = SAVINGS * EARNS, clean = 0, clean_since = false, trying = false}
end

local function patience(window)
    local periods = window.even and PATIENCE or math.max(1, math.floor(PROBE / window.limit + 0.5))
    return window.growth.budget <= 0 and 2 * periods or periods
end

local function tries(window, at, room)
    local growth = window.growth
    if not growth.clean_since or at < growth.clean_since + window.period then
        growth.clean_since = growth.clean_since or at
        return false
    end
    growth.clean = growth.clean + 1
    growth.clean_since = at
    if growth.trying and growth.clean >= (window.even and 2 or 1) then
        growth.trying, growth.wait = false, growth.budget <= 0 and patience(window) or 1
    end
    if growth.trying or growth.clean < growth.wait or not room then
        return false
    end
    growth.clean, growth.trying = 0, true
    return true
end

local function stop(window, firm)
    local growth, wait = window.growth, patience(window)
    if growth.trying and firm then
        wait = math.min(4 * math.max(growth.wait, wait), MAX_PATIENCE)
    end
    growth.wait, growth.clean, growth.clean_since, growth.trying = wait, 0, false, false
end

local function forget(window)
    window.limit, window.burst = window.top, window.top
    window.limit_later, window.news = 0, false
    window.paced, window.even, window.took_full_window = false, false, false
    window.growth = new_growth()
end

local function new_window()
    if limit == 0 then
        return false
    end
    local window = {
        top = limit, period = period, out = 0, returns = {}, news_at = -math.huge, full_at = -math.huge,
    }
    forget(window)
    return window
end

local function highest(window)
    return math.max(1, window.top - 1)
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
    if at >= window.news_at + window.period then
        window.limit = math.max(window.limit, math.min(highest(window), window.limit_later))
        window.limit_later = 0
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
    return window.paced and window.period / window.limit or 0
end

local function ready_at(window, at, ahead)
    collect(window, at)
    local unjudged = window.news and not window.news.first
    local at_once = (window.even or unjudged) and 1 or math.min(window.burst, window.limit)
    local paced = math.max(at, math.max(window.full_at, at) + (ahead + 1 - at_once) * spacing(window))
    local missing = window.out + ahead + 1 - window.limit
    if missing <= 0 then
        return paced
    elseif missing > #window.returns then
        return math.huge
    end
    return math.max(paced, window.returns[missing][1])
end

local function learn(window, news)
    local growth = window.growth
    if not growth.trying and window.even then
        window.even = growth.budget <= 0
    elseif not growth.trying then
        window.even = 3 * news.accepted < 2 * news.limit
    end
    stop(window, window.even or news.accepted >= news.limit - 1)
end

local function judge(window, news)
    local taken, growth = window.limit, window.growth
    if news.first then
        window.burst = taken
        window.limit_later = window.even and highest(window) or taken
        return
    end
    local was_even, tried = window.even, growth.trying
    growth.budget = growth.budget - news.refused * EARNS
    if not news.repeated then
        learn(window, news)
    end
    if window.even ~= was_even then
        window.limit_later = news.limit - 1
    elseif not window.even then
        window.limit_later = math.floor((taken + news.limit) / 2)
    end
    if tried or news.limit <= window.burst then
        window.burst = math.min(window.burst + 1, math.max(taken, window.limit_later))
    else
        window.burst = math.max(1, window.burst - news.refused)
    end
end

local function take(window, at)
    if window.news then
        judge(window, window.news)
        window.news = false
    end
    window.out = window.out + 1
    window.full_at = math.max(window.full_at, at) + spacing(window)
    return {sent_at = at, last = window.out >= window.limit, spacing = spacing(window)}
end

local function taken_of(window, news)
    return math.max(1, math.min(news.accepted, news.limit - 1, highest(window)))
end

local function window_answered(window, lease, at)
    collect(window, at)
    give_back_at(window, at + window.period * HAIR, true)
    window.growth.budget = math.min(window.growth.budget + 1, SAVINGS * EARNS)
    if lease.sent_at <= window.news_at then
        if window.news then
            window.news.accepted = window.news.accepted + 1
            window.limit = taken_of(window, window.news)
        end
    elseif not window.paced then
        window.took_full_window = window.took_full_window or #window.returns >= window.top
    elseif lease.last then
        if tries(window, at, window.limit < highest(window)) then
            window.limit = window.limit + 1
        end
        if window.growth.clean >= FORGET then
            forget(window)
        end
    end
end

local function window_refused(window, lease, at)
    window.out = window.out - 1
    if lease.sent_at <= window.news_at then
        if window.news then
            window.news.refused = window.news.refused + 1
        end
        return
    end
    collect(window, at)
    local repeated, accepted = at < window.news_at + window.period, 0
    for _, back in ipairs(window.returns) do
        accepted = accepted + (back[2] and 1 or 0)
    end
    window.news = {
        limit = repeated and math.max(window.limit, window.limit_later) or window.limit,
        first = not window.paced, repeated = repeated, accepted = accepted, refused = 1,
    }
    window.news_at = at
    window.limit, window.limit_later = taken_of(window, window.news), 0
    window.full_at = -math.huge
    if not window.paced then
        window.paced, window.even = true, window.took_full_window
    end
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
if seen and known_epoch == book.epoch and now > seen + passed * HAIR + JITTER then
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
        give_back_at(book.window, at + 2 * book_period() * HAIR, false)
    else
        hold(book.window, at + 2 * book_period() * HAIR)
    end
end

local function answered(lease, at)
    if not book.window then
        return
    elseif lease then
        window_answered(book.window, lease, at)
    else
        hold(book.window, at + book_period() * HAIR)
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
        pause(book.born + 2 * book_period() * HAIR)
    elseif known_epoch ~= '' and known_number > book.number then
        book.number = known_number
        pause(now + 2 * book_period() * HAIR)
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
    local turn = math.max(math.min(ready, now + whole * HAIR), now + whole / ASKS_PER_PERIOD, book['until'])
    place.turn = turn
    place.due = kept > 0 and math.min(turn, now + grace()) or turn
end

local function reply(wait, leases)
    local peers = 0
    for _ in pairs(book.peers) do
        peers = peers + 1
    end
    local window = book.window
    local learned = window and window.paced and text(window.limit) or ''
    local answer = {
        text(wait), text(math.max(book['until'] - now, 0)), learned, text(math.max(peers, 1)), book.epoch,
        string.format('%.0f', book.number), text(now),
    }
    for _, name in ipairs(leases) do
        answer[#answer + 1] = name
    end
    return answer
end
