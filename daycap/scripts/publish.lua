-- publish(counter; run_id, day_start_ms, seq, status, cap, spent, ttl_ms, guard_ms, grace_ms,
--         expire_before_ms, first_until_ms [, lease, drawn, events, last_event]...) -> what it found
--
-- KEYS[1]  the counter of one agent's day, daycap:{agent}:<day>
-- ARGV[1]  run_id: the life of the server that the worker believes it talks to
-- ARGV[2]  day_start_ms: first millisecond of the day in the key
-- ARGV[3]  seq, ARGV[4] status, ARGV[5] cap, ARGV[6] spent: one snapshot of the ledger, micros
-- ARGV[7]  ttl_ms, ARGV[8] guard_ms, ARGV[9] grace_ms: the terms of every lease
-- ARGV[10] expire_before_ms: every event published before it is in the snapshot; 0 expires nothing
-- ARGV[11] first_until_ms: until then a missing day may be opened without a fence; 0 always fences
-- ARGV[12...] of every lease of the day in the snapshot: its id, drawn micros, events settled, highest event
--
-- reply    answer (OK, UNKNOWN_AGENT), now_ms, opened, fenced, leased, given_up
--
-- The fields of the counter are described in sync.lua.

local DAY_MS, KEPT_DAYS, UNKNOWN_MS = 86400000, 2, 10000

local key, run_id, day_start_ms = KEYS[1], ARGV[1], tonumber(ARGV[2])
local seq, status = tonumber(ARGV[3]), ARGV[4]
local ttl_ms, guard_ms, grace_ms = tonumber(ARGV[7]), tonumber(ARGV[8]), tonumber(ARGV[9])
local expire_before_ms, first_until_ms = tonumber(ARGV[10]), tonumber(ARGV[11])

local time = redis.call('TIME')
local now_ms = tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)

local flat = redis.call('HGETALL', key)
local known, leases = {}, {}
for i = 1, #flat, 2 do
  local id = string.match(flat[i], '^lease:(.*)$')
  if id then
    local g, r, d, e, l, deadline = string.match(flat[i + 1], '^(%d+) (%d+) (%d+) (%d+) (%d+) (%d+)$')
    leases[id] = { granted = tonumber(g), returned = tonumber(r), drawn = tonumber(d), events = tonumber(e),
      last_event = tonumber(l), deadline_ms = tonumber(deadline) }
  else
    known[flat[i]] = flat[i + 1]
  end
end

if status == 'unknown' then
  if not known.run_id then
    redis.call('HSET', key, 'status', status)
    redis.call('PEXPIRE', key, UNKNOWN_MS)
  end
  return { 'UNKNOWN_AGENT', now_ms, 0, 0, 0, 0 }
end

local touched = {}
local fence_until_ms = tonumber(known.fence_until_ms or '0')
local opened = known.run_id ~= run_id
if opened then
  -- A day that was here before, under this run id or another, may have leases that are not in the hash; a day
  -- that begins later has none. A ttl more: another server, whose clock was ahead, may have lent of it.
  if now_ms + ttl_ms >= day_start_ms and (known.run_id or now_ms >= first_until_ms) then
    fence_until_ms = now_ms + ttl_ms + guard_ms
  end
  for id, lease in pairs(leases) do
    lease.deadline_ms = math.max(lease.deadline_ms, now_ms + ttl_ms)
    touched[id] = true
  end
elseif now_ms < first_until_ms then
  -- Another publish of the same row overtook the first one, which comes only once: nothing was lent before it.
  fence_until_ms = 0
end

if seq >= tonumber(known.seq or '0') then
  known.seq, known.status, known.cap, known.spent = ARGV[3], status, ARGV[5], ARGV[6]
end

for i = 12, #ARGV, 4 do
  local id, drawn, events, last_event = ARGV[i], tonumber(ARGV[i + 1]), tonumber(ARGV[i + 2]), tonumber(ARGV[i + 3])
  local lease = leases[id]
  if not lease then
    lease = { granted = 0, returned = 0, drawn = 0, events = 0, last_event = 0, deadline_ms = 0 }
    leases[id] = lease
  end
  if drawn > lease.drawn or events > lease.events or last_event > lease.last_event then
    lease.drawn = math.max(lease.drawn, drawn)
    lease.events = math.max(lease.events, events)
    lease.last_event = math.max(lease.last_event, last_event)
    touched[id] = true
  end
end

local leased, drawn_in_all, given_up = 0, 0, 0
for id, lease in pairs(leases) do
  drawn_in_all = drawn_in_all + lease.drawn
  local outstanding = math.max(0, lease.granted - lease.returned - lease.drawn)
  if outstanding > 0 and lease.deadline_ms + grace_ms < expire_before_ms then
    given_up = given_up + outstanding
    lease.granted, lease.returned = 0, 0
    touched[id] = true
  else
    leased = leased + outstanding
  end
end

local fenced = fence_until_ms > 0
if fenced and fence_until_ms + grace_ms < expire_before_ms then
  -- Whoever lives has put its lease back by now. What still stands free may have been lent to the dead.
  -- (Of a day that is over nothing can be lent.)
  if now_ms < day_start_ms + DAY_MS then
    given_up = given_up + math.max(0, tonumber(known.cap) - math.max(tonumber(known.spent), drawn_in_all) - leased)
  end
  fenced, fence_until_ms = false, 0
end

for id in pairs(touched) do
  local lease = leases[id]
  redis.call('HSET', key, 'lease:' .. id, string.format('%.0f %.0f %.0f %.0f %.0f %.0f', lease.granted,
    lease.returned, lease.drawn, lease.events, lease.last_event, lease.deadline_ms))
end
redis.call('HSET', key, 'run_id', run_id, 'seq', known.seq, 'status', known.status, 'cap', known.cap,
  'spent', known.spent, 'leased', string.format('%.0f', leased), 'drawn', string.format('%.0f', drawn_in_all), 'ttl_ms', ARGV[7],
  'given_up', string.format('%.0f', tonumber(known.given_up or '0') + given_up))
if fenced then
  redis.call('HSET', key, 'fence_until_ms', string.format('%.0f', fence_until_ms))
else
  redis.call('HDEL', key, 'fence_until_ms')
end
if opened then
  redis.call('PEXPIREAT', key, string.format('%.0f', day_start_ms + (1 + KEPT_DAYS) * DAY_MS))
end

return { 'OK', now_ms, opened and 1 or 0, fenced and 1 or 0, leased, given_up }
