-- read(counter; run_id [, lease]) -> the day as it is now, and what is settled of one lease
--
-- KEYS[1]  the counter of one agent's day, daycap:{agent}:<day>
-- ARGV[1]  run_id: the life of the server that the reader believes it talks to
-- ARGV[2]  lease: the lease's id, if one is asked for
--
-- reply    now_ms [, seq, status, cap, spent, drawn, leased, given_up, fenced [, drawn, events, last_event]], the
--          last three of the lease; now_ms alone where it is not open
--
-- The fields of the counter are described in sync.lua.

local time = redis.call('TIME')
local now_ms = tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)

local known = redis.call('HMGET', KEYS[1], 'run_id', 'seq', 'status', 'cap', 'spent', 'drawn', 'leased',
  'given_up', 'fence_until_ms')
if known[1] ~= ARGV[1] then
  return { now_ms }
end
local reply = { now_ms, tonumber(known[2]), known[3], tonumber(known[4]), tonumber(known[5]), tonumber(known[6]),
  tonumber(known[7]), tonumber(known[8]), known[9] and 1 or 0 }
if ARGV[2] then
  local lease = redis.call('HGET', KEYS[1], 'lease:' .. ARGV[2]) or '0 0 0 0 0 0'
  local drawn, events, last_event = string.match(lease, '^%d+ %d+ (%d+) (%d+) (%d+) %d+$')
  reply[10], reply[11], reply[12] = tonumber(drawn), tonumber(events), tonumber(last_event)
end
return reply
