-- read(counter; run_id [, lease]) -> the day's current state, and what is settled of one lease
--
-- KEYS[1]  the counter of one agent's day, daycap:{agent}:<day>
-- ARGV[1]  run_id: identifies the server's life that the reader connected to
-- ARGV[2]  lease: the lease's id, optional
--
-- reply    now_ms [, seq, status, cap, spent, drawn, leased, given_up, fenced [, drawn, events, last_event]]; the
--          last three are the lease's; now_ms alone if the day is not open or cannot be parsed
--
-- sync.lua describes the fields of the counter.

local function whole(text)
  return text and #text <= 17 and string.match(text, '^%d+$') and tonumber(text)
end

local time = redis.call('TIME')
local now_ms = tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)

local known = redis.pcall('HMGET', KEYS[1], 'run_id', 'seq', 'status', 'cap', 'spent', 'drawn', 'leased', 'given_up',
  'fence_until_ms', 'lease:' .. (ARGV[2] or ''))
if known[1] ~= ARGV[1] then
  return { now_ms }
end
local seq, status, cap, spent, drawn_in_all, leased, given_up = whole(known[2]), known[3], whole(known[4]),
  whole(known[5]), whole(known[6]), whole(known[7]), whole(known[8])
local drawn, events, last_event = string.match(known[10] or '0 0 0 0 0 0', '^%d+ %d+ (%d+) (%d+) (%d+) %d+$')
if not (seq and status and cap and spent and drawn_in_all and leased and given_up and drawn) then
  return { now_ms }
end
local reply = { now_ms, seq, status, cap, spent, drawn_in_all, leased, given_up, known[9] and 1 or 0 }
if ARGV[2] then
  reply[10], reply[11], reply[12] = tonumber(drawn), tonumber(events), tonumber(last_event)
end
return reply
