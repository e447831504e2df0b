-- The rules of `key_state.py`; a test holds them together. A row is a hash that Redis itself forgets after 24 hours.

local KEPT_FOR = 24 * 3600

local row_key = KEYS[1]
local now = tonumber(ARGV[1])
local peer, channel, digest = ARGV[2], ARGV[3], ARGV[4]
local fingerprint, ref, owner, extra = ARGV[5], ARGV[6], ARGV[7], ARGV[8]
if not now then
    local time = redis.call('TIME')
    now = tonumber(time[1]) + tonumber(time[2]) / 1000000
end

local stored = redis.call('HMGET', row_key, 'fingerprint', 'ref', 'state', 'task_id', 'lapses_at', 'owner')
local row = stored[1] and {
    fingerprint = stored[1], ref = stored[2], state = stored[3], task_id = stored[4], lapses_at = tonumber(stored[5]),
    owner = stored[6],
}

local function view()
    if not row then
        return false
    elseif row.state == 'sending' and row.lapses_at > now then
        return {row.fingerprint, row.ref, 'sending', row.task_id, string.format('%.17g', row.lapses_at - now)}
    end
    return {row.fingerprint, row.ref, row.state == 'bound' and 'bound' or 'unknown', row.task_id, '0'}
end

local function tell()
    redis.call('PUBLISH', channel, peer .. ' key ' .. digest)
end

local function write(state, task_id, lapses_at)
    redis.call('HSET', row_key, 'state', state, 'task_id', task_id, 'lapses_at', string.format('%.17g', lapses_at))
end

local function write_new(state, task_id, lapses_at)
    redis.call('HSET', row_key, 'fingerprint', fingerprint, 'ref', ref, 'owner', owner)
    write(state, task_id, lapses_at)
    redis.call('EXPIRE', row_key, KEPT_FOR)
end

local function told(state, task_id)
    if not row then
        write_new(state, task_id, now)
    elseif row.owner == owner then
        write(state, task_id, row.lapses_at)
    else
        return
    end
    tell()
end
