-- publish(counter; run_id, start_ms, end_ms, seq, status, cap, spent, drawn, plan, plan_text, base, ttl_ms, guard_ms,
--         grace_ms, expire_before_ms, first_until_ms, lease_count, folded_count
--         [, lease, drawn, events, last_event]... [, folded]... [, overdue]...) -> what it found
--
-- KEYS[1]  the counter of an agent's day, or of a budget's period: daycap:{owner}:<period>
-- ARGV[1]  run_id: identifies the server's life that the worker connected to
-- ARGV[2]  start_ms, ARGV[3] end_ms: first millisecond of the period in the key, and the first one after it
-- ARGV[4]  seq, ARGV[5] status, ARGV[6] cap, ARGV[7] spent, ARGV[8] drawn: one snapshot of the ledger, micros
-- ARGV[9]  plan: the agent's plan in force, 0 for none; ARGV[10] plan_text: its text, empty if it is not carried
-- ARGV[11] base: the snapshot is a delta and carries what changed in (base, seq]; -1: it is whole, to open the period;
--          -2: it is whole, to repair it, and names each lease of the counter that is folded
-- ARGV[12] ttl_ms, ARGV[13] guard_ms, ARGV[14] grace_ms: the terms of every lease
-- ARGV[15] expire_before_ms: every event published before this is in the snapshot; 0 expires nothing
-- ARGV[16] first_until_ms: until this time a missing period may be opened without a fence; 0 always fences
-- ARGV[17] lease_count, ARGV[18] folded_count: how many of each follow
-- ARGV[19...] for each lease in the snapshot: its id, drawn micros, events settled, highest event
-- then     the ids of leases that were folded; then those that may have to be given up (a whole snapshot tries all)
--
-- reply    answer (OK, UNKNOWN_AGENT, BEHIND), now_ms, current seq, opened, fenced, repaired, leased, given_up
--
-- BEHIND   nothing was taken. `current seq` is since when changes are needed first; -1: the day is not open; -2: the
--          counter differs from the ledger and must be repaired
--
-- sync.lua describes the fields of the counter. `repaired`: something differed from what this snapshot or a script had
-- written. A counter that cannot be parsed, or is inconsistent, counts as lost and is opened again.

local KEPT_MS, UNKNOWN_MS, MAX_MICROS, LEASES_FROM = 2 * 86400000, 10000, 9007199254740991, 19

local key, run_id, start_ms, end_ms = KEYS[1], ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3])
local seq, status, cap, spent, drawn = tonumber(ARGV[4]), ARGV[5], tonumber(ARGV[6]), tonumber(ARGV[7]),
  tonumber(ARGV[8])
local plan, plan_text = tonumber(ARGV[9]), ARGV[10]
local base = tonumber(ARGV[11])
local ttl_ms, guard_ms, grace_ms = tonumber(ARGV[12]), tonumber(ARGV[13]), tonumber(ARGV[14])
local expire_before_ms, first_until_ms = tonumber(ARGV[15]), tonumber(ARGV[16])
local folded_from = LEASES_FROM + 4 * tonumber(ARGV[17])
local overdue_from = folded_from + tonumber(ARGV[18])

local time = redis.call('TIME')
local now_ms = tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)

local NOT_OPEN, DIFFERS = -1, -2
local OPENING = -1
local NUMBERS = { 'seq', 'cap', 'spent', 'drawn', 'folded', 'leased', 'given_up', 'ttl_ms', 'recall_until_ms',
  'fence_until_ms', 'plan' }
local OPTIONAL = { folded = '0', recall_until_ms = '0', fence_until_ms = '0', plan = '0' }

local function whole(text)
  return text and #text <= 17 and string.match(text, '^%d+$') and tonumber(text)
end

local function outstanding(lease)
  return math.max(0, lease.granted - lease.returned - lease.drawn)
end

local function new_lease()
  return { granted = 0, returned = 0, drawn = 0, events = 0, last_event = 0, deadline_ms = 0 }
end

local function parse_lease(text)
  local g, r, d, e, l, deadline = string.match(text, '^(%d+) (%d+) (%d+) (%d+) (%d+) (%d+)$')
  return g and { granted = tonumber(g), returned = tonumber(r), drawn = tonumber(d), events = tonumber(e),
    last_event = tonumber(l), deadline_ms = tonumber(deadline) }
end

-- Converts the counter's own fields; nil if one of them is not what a script writes.
local function parse(known)
  for _, name in ipairs(NUMBERS) do
    known[name] = whole(known[name] or OPTIONAL[name])
    if not known[name] then
      return nil
    end
  end
  return known.status and known
end

-- Returns the counter's fields and all leases; nil if it cannot be parsed, or if its totals do not match its leases.
local function read_all()
  local flat = redis.pcall('HGETALL', key)
  if flat.err then
    return nil
  end
  local known, leases, leased, sum = {}, {}, 0, 0
  for i = 1, #flat, 2 do
    local id = string.match(flat[i], '^lease:(.*)$')
    if id then
      local lease = parse_lease(flat[i + 1])
      if not lease then
        return nil
      end
      leases[id] = lease
      leased, sum = leased + outstanding(lease), sum + lease.drawn
    else
      known[flat[i]] = flat[i + 1]
    end
  end
  if not known.run_id then
    return #flat <= 2 and known or nil, leases -- Empty, or the status of an unknown agent.
  end
  known = parse(known)
  if not known or (known.leased ~= leased and leased <= MAX_MICROS)
    or (known.drawn ~= known.folded + sum and known.folded + sum <= MAX_MICROS) then
    return nil
  end
  return known, leases
end

-- Returns the counter's fields and the leases that this delta names; nil if it is not open or cannot be parsed.
local function read_named()
  local fields = { 'run_id', 'status', unpack(NUMBERS) }
  local first = #fields
  for i = LEASES_FROM, folded_from - 1, 4 do
    fields[#fields + 1] = 'lease:' .. ARGV[i]
  end
  for i = folded_from, #ARGV do
    fields[#fields + 1] = 'lease:' .. ARGV[i]
  end
  local known, leases = {}, {}
  for from = 1, #fields, 1000 do -- Lua's stack holds a few thousand values.
    local upto = math.min(from + 999, #fields)
    local values = redis.pcall('HMGET', key, unpack(fields, from, upto))
    if values.err then
      return nil
    end
    for i = from, upto do
      local value = values[i - from + 1]
      if i <= first then
        known[fields[i]] = value or nil
      elseif value then
        local lease = parse_lease(value)
        if not lease then
          return nil
        end
        leases[string.sub(fields[i], 7)] = lease
      end
    end
  end
  if known.run_id ~= run_id then
    return nil
  end
  return parse(known), leases
end

local known, leases, behind
if base < 0 then
  known, leases = read_all()
  if not known then
    redis.call('DEL', key)
    known, leases = { run_id = '' }, {}
  end
else
  known, leases = read_named()
  if not known then
    behind = NOT_OPEN
  elseif known.seq < base then
    behind = known.seq
  end
end
if not behind and known.run_id == run_id and status ~= 'unknown' then
  -- Whether this may be taken by a counter that is open.
  local sum, missing = known.drawn, false
  for i = LEASES_FROM, folded_from - 1, 4 do
    local lease = leases[ARGV[i]] or new_lease()
    sum = sum + math.max(0, tonumber(ARGV[i + 1]) - lease.drawn)
    missing = missing or tonumber(ARGV[i + 2]) > lease.events or tonumber(ARGV[i + 3]) > lease.last_event
  end
  if base == OPENING and known.seq < seq then
    -- It was opened meanwhile. What was folded since must be named.
    behind = known.seq
  elseif base >= 0 and known.seq < seq then
    if math.min(sum, MAX_MICROS) ~= drawn then
      behind = DIFFERS
    elseif plan ~= known.plan and plan > 0 and plan_text == '' then
      behind = known.seq -- What changed since is read with the plan's text.
    end
  elseif base >= 0 and known.seq == seq then
    local same = status == known.status and cap == known.cap and spent == known.spent and drawn == known.drawn
      and plan == known.plan
    behind = (missing or sum > known.drawn or not same) and DIFFERS or nil
  end
end
if behind then
  return { 'BEHIND', now_ms, behind, 0, 0, 0, 0, 0 }
end

if status == 'unknown' then
  if not known.run_id then
    redis.call('HSET', key, 'status', status)
    redis.call('PEXPIRE', key, UNKNOWN_MS)
  end
  return { 'UNKNOWN_AGENT', now_ms, 0, 0, 0, 0, 0, 0 }
end

local touched, gone = {}, {}
local fence_until_ms = known.fence_until_ms or 0
local opened = known.run_id ~= run_id
if opened then
  -- A day that existed before, under this run id or another, may have leases that are not in the hash; a day that
  -- begins later has none. The extra ttl: another server whose clock was ahead may have lent from it.
  if now_ms + ttl_ms >= start_ms and (known.run_id or now_ms >= first_until_ms) then
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

local own_seq = known.seq or 0
local same = not opened and seq == own_seq
local repaired = not opened and known.ttl_ms ~= ttl_ms
  or same and (status ~= known.status or cap ~= known.cap or spent ~= known.spent or drawn > known.drawn)
local leased, drawn_before, folded = known.leased or 0, known.drawn or 0, known.folded or 0
local drawn_in_all = drawn_before

if seq > own_seq or (base < 0 and seq == own_seq) then
  known.seq, known.status, known.cap, known.spent, known.plan = seq, status, cap, spent, plan
  if plan > 0 and plan_text ~= '' then
    redis.call('HSET', key, 'plan', ARGV[9], 'plan_text', plan_text)
  elseif plan == 0 then
    redis.call('HDEL', key, 'plan', 'plan_text')
  end
  local named, named_sum = {}, 0
  for i = LEASES_FROM, folded_from - 1, 4 do
    local id, its_drawn, events, last_event = ARGV[i], tonumber(ARGV[i + 1]), tonumber(ARGV[i + 2]), tonumber(ARGV[i + 3])
    local lease = leases[id] or new_lease()
    leases[id], named[id], named_sum = lease, true, named_sum + its_drawn
    if its_drawn > lease.drawn or events > lease.events or last_event > lease.last_event then
      leased = leased - outstanding(lease)
      drawn_in_all = drawn_in_all + math.max(0, its_drawn - lease.drawn)
      lease.drawn = math.max(lease.drawn, its_drawn)
      lease.events = math.max(lease.events, events)
      lease.last_event = math.max(lease.last_event, last_event)
      leased = leased + outstanding(lease)
      touched[id] = true
      repaired = repaired or same
    end
  end
  for i = folded_from, overdue_from - 1 do
    gone[ARGV[i]] = leases[ARGV[i]]
  end
  if opened then
    -- An old copy has leases that were folded since, and others that their runners will restore.
    for id, lease in pairs(leases) do
      gone[id] = not named[id] and lease or nil
    end
  end
  for id, lease in pairs(gone) do
    leased, folded = leased - outstanding(lease), folded + lease.drawn
    leases[id], touched[id] = nil, nil
  end
  if base < 0 then
    local sum = 0
    leased = 0
    for _, lease in pairs(leases) do
      sum, leased = sum + lease.drawn, leased + outstanding(lease)
    end
    drawn_in_all = math.max(drawn_before, drawn - named_sum + sum, sum)
    folded = drawn_in_all - sum
  end
  drawn_in_all = math.min(drawn_in_all, MAX_MICROS)
elseif opened then
  leased = 0
end

local given_up = 0
local function give_up_overdue(id)
  local lease = leases[id]
  if lease and outstanding(lease) > 0 and lease.deadline_ms + grace_ms < expire_before_ms then
    given_up, leased = given_up + outstanding(lease), leased - outstanding(lease)
    lease.granted, lease.returned = 0, 0
    touched[id] = true
  end
end
if base < 0 then
  for id in pairs(leases) do
    give_up_overdue(id)
  end
else
  for i = overdue_from, #ARGV do
    give_up_overdue(ARGV[i])
  end
end

local fenced = fence_until_ms > 0
if fenced and fence_until_ms + grace_ms < expire_before_ms then
  -- Live runners have restored their leases by now. What is still free may have been lent to dead ones.
  -- (Nothing can be lent from a day that is over.)
  if now_ms < end_ms then
    given_up = given_up + math.max(0, known.cap - math.max(known.spent, drawn_in_all) - leased)
  end
  fenced, fence_until_ms = false, 0
end

for id in pairs(touched) do
  local lease = leases[id]
  redis.call('HSET', key, 'lease:' .. id, string.format('%.0f %.0f %.0f %.0f %.0f %.0f', lease.granted,
    lease.returned, lease.drawn, lease.events, lease.last_event, lease.deadline_ms))
end
for id in pairs(gone) do
  redis.call('HDEL', key, 'lease:' .. id, 'farewell:' .. id)
end
local function digits(number)
  return string.format('%.0f', number)
end
redis.call('HSET', key, 'run_id', run_id, 'seq', digits(known.seq), 'status', known.status, 'cap', digits(known.cap),
  'spent', digits(known.spent), 'leased', digits(leased), 'drawn', digits(drawn_in_all), 'folded', digits(folded),
  'ttl_ms', digits(ttl_ms), 'given_up', digits((known.given_up or 0) + given_up))
if fenced then
  redis.call('HSET', key, 'fence_until_ms', digits(fence_until_ms))
else
  redis.call('HDEL', key, 'fence_until_ms')
end
local expires_ms, left_ms = end_ms + KEPT_MS, redis.call('PTTL', key)
if math.abs(now_ms + left_ms - expires_ms) > 1000 then
  repaired = repaired or not opened
  redis.call('PEXPIREAT', key, digits(expires_ms))
end

return { 'OK', now_ms, known.seq, opened and 1 or 0, fenced and 1 or 0, repaired and 1 or 0, leased, given_up }
