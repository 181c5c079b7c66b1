-- sync(counter; run_id, start_ms, end_ms, lease, granted, returned, need, want [, farewell])
--   -> the lease's and the day's totals
--
-- KEYS[1]  the counter of an agent's day, or of a budget's period: daycap:{owner}:<period>
-- ARGV[1]  run_id: identifies the server's life that the runner connected to
-- ARGV[2]  start_ms, ARGV[3] end_ms: first millisecond of the period in the key, and the first one after it
-- ARGV[4]  lease: the lease's id
-- ARGV[5]  granted, ARGV[6] returned: the runner's running totals, micros
-- ARGV[7]  need: micros that the runner needs beyond `granted`; 0 only renews and hands back
-- ARGV[8]  want: micros that it would like beyond `granted`, at least `need`
-- ARGV[9]  farewell: this is the last sync of the lease, which had so many events in all (a budget's: drew so much)
--
-- reply    answer, now_ms [, granted, drawn, events, last_event, ttl_ms, cap, used, leased, recall, plan]
--
-- Fields of the counter: run_id seq status cap spent drawn folded leased given_up ttl_ms recall_until_ms fence_until_ms
-- plan plan_text; lease:<id> = "granted returned drawn events last_event deadline_ms" for each lease of the period that is
-- not folded; and farewell:<id> = its events for each that has said farewell. `drawn` is the sum over all leases of the
-- period, `folded` the part of it that the folded ones have. `plan` is the agent's plan in force, if it has one. A
-- counter that cannot be parsed, because someone else wrote to it, counts as lost: it is not open.

local function whole(text)
  return text and #text <= 17 and string.match(text, '^%d+$') and tonumber(text)
end

local key, run_id, start_ms, end_ms, lease_field = KEYS[1], ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3]),
  'lease:' .. ARGV[4]
local runner_granted, runner_returned = tonumber(ARGV[5]), tonumber(ARGV[6])
local need, want, farewell = tonumber(ARGV[7]), tonumber(ARGV[8]), ARGV[9]

local time = redis.call('TIME')
local now_ms = tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)

-- Money is granted only for the current period; totals of an ended one are still taken.
if need > 0 and (now_ms < start_ms or now_ms >= end_ms) then
  return { 'WRONG_DAY', now_ms }
end

local known = redis.pcall('HMGET', key, 'run_id', 'status', 'cap', 'spent', 'leased', 'ttl_ms',
  'recall_until_ms', 'fence_until_ms', 'drawn', lease_field, 'plan')
if known[1] ~= run_id then
  return { known[2] == 'unknown' and 'UNKNOWN_AGENT' or 'NOT_OPEN', now_ms }
end
local status, cap, spent, leased, ttl_ms = known[2], whole(known[3]), whole(known[4]), whole(known[5]), whole(known[6])
local recall_until_ms, fenced, drawn_in_all = whole(known[7] or '0'), known[8], whole(known[9])
local plan = whole(known[11] or '0')
local g, r, d, e, l, t = string.match(known[10] or '0 0 0 0 0 0', '^(%d+) (%d+) (%d+) (%d+) (%d+) (%d+)$')
if not (status and cap and spent and leased and ttl_ms and recall_until_ms and drawn_in_all and plan and g) then
  return { 'NOT_OPEN', now_ms }
end
local granted, returned, drawn, events, last_event, deadline_ms = tonumber(g), tonumber(r), tonumber(d), tonumber(e),
  tonumber(l), tonumber(t)
-- Includes what leases drew but was not charged because the cap was lowered meanwhile.
local used = math.max(spent, drawn_in_all)
-- A shorter ttl does not shorten a deadline that the runner already knows.
deadline_ms = math.max(deadline_ms, now_ms + ttl_ms)
local outstanding_before = math.max(0, granted - returned - drawn)

if farewell and not known[10] then
  -- Nothing is known of it, and nothing needs to be: it may have been folded.
  return { 'OK', now_ms, runner_granted, 0, 0, 0, ttl_ms, cap, used, leased, 0, plan }
end
granted = math.max(granted, runner_granted)
returned = math.max(returned, runner_returned)
if farewell then
  redis.call('HSET', key, 'farewell:' .. ARGV[4], farewell)
end
leased = leased - outstanding_before + math.max(0, granted - returned - drawn)

local answer = 'OK'
if status ~= 'active' then
  answer = 'PAUSED'
elseif fenced then
  answer = 'FENCED'
elseif need > 0 then
  -- What was granted beyond the runner's total was in a reply that it never received: that counts first.
  local missing = need - (granted - runner_granted)
  local remaining = math.max(0, cap - used - leased)
  if missing > remaining then
    answer = 'REFUSED'
    if leased > math.max(0, granted - returned - drawn) then
      -- Half a ttl: longer than the renew interval of a third, so that every other runner learns of it.
      recall_until_ms = now_ms + math.floor(ttl_ms / 2)
    end
  elseif missing > 0 then
    local give = missing
    if now_ms >= recall_until_ms then
      give = math.max(give, math.min(missing + want - need, math.floor(remaining / 8)))
    end
    -- MAX_MICROS keeps a lease's totals exact. A runner takes a new lease when it reaches that.
    give = math.min(give, 9007199254740991 - granted)
    granted = granted + give
    leased = leased + math.max(0, granted - returned - drawn) - math.max(0, granted - give - returned - drawn)
  end
end

redis.call('HSET', key, lease_field,
  string.format('%.0f %.0f %.0f %.0f %.0f %.0f', granted, returned, drawn, events, last_event, deadline_ms),
  'leased', string.format('%.0f', leased), 'recall_until_ms', string.format('%.0f', recall_until_ms))

local recall = (now_ms < recall_until_ms or used + leased > cap) and 1 or 0
return { answer, now_ms, granted, drawn, events, last_event, ttl_ms, cap, used, leased, recall, plan }
