-- publish(counter; run_id, day_start_ms, seq, status, cap, spent, ttl_ms, guard_ms, grace_ms,
--         expire_before_ms, first_until_ms [, lease, drawn, events, last_event]...) -> what it found
--
-- KEYS[1]  the counter of one agent's day, daycap:{agent}:<day>
-- ARGV[1]  run_id: identifies the server's life that the worker connected to
-- ARGV[2]  day_start_ms: first millisecond of the day in the key
-- ARGV[3]  seq, ARGV[4] status, ARGV[5] cap, ARGV[6] spent: one snapshot of the ledger, micros
-- ARGV[7]  ttl_ms, ARGV[8] guard_ms, ARGV[9] grace_ms: the terms of every lease
-- ARGV[10] expire_before_ms: every event published before this is in the snapshot; 0 expires nothing
-- ARGV[11] first_until_ms: until this time a missing day may be opened without a fence; 0 always fences
-- ARGV[12...] for each lease of the day in the snapshot: its id, drawn micros, events settled, highest event
--
-- reply    answer (OK, UNKNOWN_AGENT), now_ms, current seq, opened, fenced, repaired, leased, given_up
--
-- sync.lua describes the fields of the counter. `repaired`: something differed from what this snapshot or a script had
-- written. A counter that cannot be parsed, or is inconsistent, counts as lost and is opened again.

local DAY_MS, KEPT_DAYS, UNKNOWN_MS, EXACT = 86400000, 2, 10000, 9007199254740992

local key, run_id, day_start_ms = KEYS[1], ARGV[1], tonumber(ARGV[2])
local seq, status, cap, spent = tonumber(ARGV[3]), ARGV[4], tonumber(ARGV[5]), tonumber(ARGV[6])
local ttl_ms, guard_ms, grace_ms = tonumber(ARGV[7]), tonumber(ARGV[8]), tonumber(ARGV[9])
local expire_before_ms, first_until_ms = tonumber(ARGV[10]), tonumber(ARGV[11])

local time = redis.call('TIME')
local now_ms = tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)

local function whole(text)
  return text and #text <= 17 and string.match(text, '^%d+$') and tonumber(text)
end

local function outstanding(lease)
  return math.max(0, lease.granted - lease.returned - lease.drawn)
end

-- Returns the counter's fields and leases; nil if it cannot be parsed, or if its totals do not match its leases.
local function read()
  local flat = redis.pcall('HGETALL', key)
  if flat.err then
    return nil
  end
  local known, leases, leased, drawn = {}, {}, 0, 0
  for i = 1, #flat, 2 do
    local id = string.match(flat[i], '^lease:(.*)$')
    if id then
      local g, r, d, e, l, deadline = string.match(flat[i + 1], '^(%d+) (%d+) (%d+) (%d+) (%d+) (%d+)$')
      if not g then
        return nil
      end
      leases[id] = { granted = tonumber(g), returned = tonumber(r), drawn = tonumber(d), events = tonumber(e),
        last_event = tonumber(l), deadline_ms = tonumber(deadline) }
      leased, drawn = leased + outstanding(leases[id]), drawn + leases[id].drawn
    else
      known[flat[i]] = flat[i + 1]
    end
  end
  if not known.run_id then
    return #flat <= 2 and known or nil, leases -- Empty, or the status of an unknown agent.
  end
  known.recall_until_ms, known.fence_until_ms = known.recall_until_ms or '0', known.fence_until_ms or '0'
  for _, name in ipairs({ 'seq', 'cap', 'spent', 'drawn', 'leased', 'given_up', 'ttl_ms', 'recall_until_ms',
    'fence_until_ms' }) do
    known[name] = whole(known[name])
    if not known[name] then
      return nil
    end
  end
  if not known.status or (known.leased ~= leased and leased < EXACT) or (known.drawn ~= drawn and drawn < EXACT) then
    return nil
  end
  return known, leases
end

local known, leases = read()
if not known then
  redis.call('DEL', key)
  known, leases = { run_id = '' }, {}
end

if status == 'unknown' then
  if not known.run_id then
    redis.call('HSET', key, 'status', status)
    redis.call('PEXPIRE', key, UNKNOWN_MS)
  end
  return { 'UNKNOWN_AGENT', now_ms, 0, 0, 0, 0, 0, 0 }
end

local touched = {}
local fence_until_ms = known.fence_until_ms or 0
local opened = known.run_id ~= run_id
if opened then
  -- A day that existed before, under this run id or another, may have leases that are not in the hash; a day that
  -- begins later has none. The extra ttl: another server whose clock was ahead may have lent from it.
  if now_ms + ttl_ms >= day_start_ms and (known.run_id or now_ms >= first_until_ms) then
    fence_until_ms = now_ms + ttl_ms + guard_ms
  end
  -- What an old copy lent may have been given up and lent to others since. Live runners restore their leases.
  for id, lease in pairs(leases) do
    lease.granted, lease.returned = 0, 0
    touched[id] = true
  end
elseif now_ms < first_until_ms then
  -- Another publish of the same row overtook the first one, which is sent only once: nothing was lent before it.
  fence_until_ms = 0
end

local same = not opened and seq == known.seq
local repaired = not opened and known.ttl_ms ~= ttl_ms
  or same and (status ~= known.status or cap ~= known.cap or spent ~= known.spent)
if seq >= (known.seq or 0) then
  known.seq, known.status, known.cap, known.spent = seq, status, cap, spent
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
    repaired = repaired or same
  end
end

local leased, drawn_in_all, given_up = 0, 0, 0
for id, lease in pairs(leases) do
  drawn_in_all = drawn_in_all + lease.drawn
  if outstanding(lease) > 0 and lease.deadline_ms + grace_ms < expire_before_ms then
    given_up = given_up + outstanding(lease)
    lease.granted, lease.returned = 0, 0
    touched[id] = true
  end
  leased = leased + outstanding(lease)
end

local fenced = fence_until_ms > 0
if fenced and fence_until_ms + grace_ms < expire_before_ms then
  -- Live runners have restored their leases by now. What is still free may have been lent to dead ones.
  -- (Nothing can be lent from a day that is over.)
  if now_ms < day_start_ms + DAY_MS then
    given_up = given_up + math.max(0, known.cap - math.max(known.spent, drawn_in_all) - leased)
  end
  fenced, fence_until_ms = false, 0
end

for id in pairs(touched) do
  local lease = leases[id]
  redis.call('HSET', key, 'lease:' .. id, string.format('%.0f %.0f %.0f %.0f %.0f %.0f', lease.granted,
    lease.returned, lease.drawn, lease.events, lease.last_event, lease.deadline_ms))
end
local function digits(number)
  return string.format('%.0f', number)
end
redis.call('HSET', key, 'run_id', run_id, 'seq', digits(known.seq), 'status', known.status, 'cap', digits(known.cap),
  'spent', digits(known.spent), 'leased', digits(leased), 'drawn', digits(drawn_in_all), 'ttl_ms', digits(ttl_ms),
  'given_up', digits((known.given_up or 0) + given_up))
if fenced then
  redis.call('HSET', key, 'fence_until_ms', digits(fence_until_ms))
else
  redis.call('HDEL', key, 'fence_until_ms')
end
local expires_ms, left_ms = day_start_ms + (1 + KEPT_DAYS) * DAY_MS, redis.call('PTTL', key)
if math.abs(now_ms + left_ms - expires_ms) > 1000 then
  repaired = repaired or not opened
  redis.call('PEXPIREAT', key, digits(expires_ms))
end

return { 'OK', now_ms, known.seq, opened and 1 or 0, fenced and 1 or 0, repaired and 1 or 0, leased, given_up }
