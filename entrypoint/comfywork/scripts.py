"""What has to be one step for Redis: taking a job, and keeping it.

Time is Redis' own (TIME), so that no clock of a worker decides anything. Keys are made inside the scripts, which one
Redis allows and a cluster does not: the queue is one Redis.
"""

from __future__ import annotations

from typing import Final

# A job is taken from the head of a queue, and its lease written, in one step: whoever is killed a moment later leaves
# a lease that expires, and never a job that is in no list at all.
#
# Which job: the highest priority, where waiting lifts a job by one each ARGV[4] seconds; among those, the tenant who
# was served least GPU time; among those, the oldest. A job whose models another idle worker has loaded is left to that
# one, for at most ARGV[5] seconds.
#
# ARGV: worker, nonce, lease seconds, ageing seconds, patience seconds, seconds for which an idle worker counts
# Answer: {"job", id, queue, token, attempts, now} · {"none"} · {"passed"} · {"foreign", id, queue} · {"usurped"}
TAKE: Final = """
local time = redis.call('TIME')
local now = tonumber(time[1]) + tonumber(time[2]) / 1000000
local worker, nonce = ARGV[1], ARGV[2]
local ttl, ageing, patience, idle = tonumber(ARGV[3]), tonumber(ARGV[4]), tonumber(ARGV[5]), tonumber(ARGV[6])

if redis.call('GET', 'comfy:owner:' .. worker) ~= nonce then return {'usurped'} end

local function lease(id, queue, charged)
  local token = redis.call('INCR', 'comfy:fence')
  redis.call('HSET', 'comfy:lease:' .. id, 'token', token, 'worker', worker, 'queue', queue, 'begun', now,
    'charged', charged)
  redis.call('ZADD', 'comfy:leases', now + ttl, id)
  redis.call('HSET', 'comfy:held', worker, id)
  redis.call('ZREM', 'comfy:idle', worker)
  local job = 'comfy:job:' .. id
  local attempts = redis.call('HINCRBY', job, 'attempts', 1)
  redis.call('HSETNX', job, 'begun', now)
  redis.call('HSET', job, 'worker', worker)
  redis.call('HDEL', job, 'passed')
  redis.call('HSET', 'rq:job:' .. id, 'status', 'started', 'worker_name', worker)
  redis.call('ZADD', 'rq:wip:' .. queue, '+inf', id .. ':' .. token)
  return {'job', id, queue, token, attempts, tostring(now)}
end

-- What this worker already holds comes first: its answer was lost on the way, or it was killed and is back.
local held = redis.call('HGET', 'comfy:held', worker)
if held then
  local mine = redis.call('HMGET', 'comfy:lease:' .. held, 'worker', 'queue', 'charged', 'token')
  if mine[1] == worker then
    redis.call('ZREM', 'rq:wip:' .. mine[2], held .. ':' .. mine[4])
    return lease(held, mine[2], mine[3])
  end
  redis.call('HDEL', 'comfy:held', worker)
end

local level = {high = 0, normal = 1, low = 2}
local found = {}
for _, queue in ipairs(redis.call('SMEMBERS', 'comfy:waiting')) do
  local tenant, priority = string.match(queue, '^comfy%.([a-z0-9-]+)%.([a-z]+)$')
  local list = 'rq:queue:' .. queue
  while true do
    local id = redis.call('LINDEX', list, 0)
    if not id or not tenant or not level[priority] then
      redis.call('SREM', 'comfy:waiting', queue)
      break
    end
    local job = redis.call('HMGET', 'comfy:job:' .. id, 'since', 'models', 'passed')
    if not job[1] then
      redis.call('LPOP', list)
      if redis.call('EXISTS', 'rq:job:' .. id) == 1 then return {'foreign', id, queue} end
    elseif redis.call('EXISTS', 'comfy:lease:' .. id) == 1
        or redis.call('HGET', 'rq:job:' .. id, 'status') ~= 'queued' then
      redis.call('LPOP', list)
    else
      local since = tonumber(job[1])
      local rank = level[priority] - math.floor((now - since) / ageing)
      if rank < 0 then rank = 0 end
      found[#found + 1] = {id = id, queue = queue, tenant = tenant, rank = rank, since = since, models = job[2],
        passed = tonumber(job[3] or now), served = tonumber(redis.call('ZSCORE', 'comfy:served', tenant) or 0)}
      break
    end
  end
end
redis.call('ZADD', 'comfy:idle', now, worker)
if #found == 0 then return {'none'} end
table.sort(found, function(a, b)
  if a.rank ~= b.rank then return a.rank < b.rank end
  if a.served ~= b.served then return a.served < b.served end
  if a.since ~= b.since then return a.since < b.since end
  return a.id < b.id
end)

local mine = redis.call('HGET', 'worker:' .. worker, 'loaded')
local others = nil
for _, job in ipairs(found) do
  local wanted = true
  if job.models and job.models ~= '' and job.models ~= mine and now - job.passed < patience then
    if not others then
      others = {}
      for _, other in ipairs(redis.call('ZRANGEBYSCORE', 'comfy:idle', now - idle, '+inf')) do
        local has = other ~= worker and redis.call('HGET', 'worker:' .. other, 'loaded')
        if has then others[has] = true end
      end
    end
    if others[job.models] then
      wanted = false
      redis.call('HSETNX', 'comfy:job:' .. job.id, 'passed', now)
    end
  end
  if wanted then
    redis.call('LPOP', 'rq:queue:' .. job.queue)
    if redis.call('LLEN', 'rq:queue:' .. job.queue) == 0 then redis.call('SREM', 'comfy:waiting', job.queue) end
    -- Fair by GPU seconds, with a guess that the job's end corrects. Who had nothing to do gains nothing by it.
    local clock = tonumber(redis.call('HGET', 'comfy:clock', 'now') or 0)
    local cost = tonumber(redis.call('HGET', 'comfy:clock', job.tenant) or 1)
    local start = math.max(job.served, clock)
    redis.call('HSET', 'comfy:clock', 'now', start)
    redis.call('ZADD', 'comfy:served', start + cost, job.tenant)
    return lease(job.id, job.queue, cost)
  end
end
return {'passed'}
"""

# A worker's heartbeat: itself, its name, and the job that it holds, if any.
#
# ARGV: worker, nonce, seconds until it counts as dead, job or '', token or 0, meta (JSON) or '', then field, value, …
# Answer: {1 when its name is still its own, 1 when the lease is, 1 when the job is to be cancelled}
BEAT: Final = """
local time = redis.call('TIME')
local now = tonumber(time[1]) + tonumber(time[2]) / 1000000
local worker, nonce, ttl, id, token, meta = ARGV[1], ARGV[2], tonumber(ARGV[3]), ARGV[4], ARGV[5], ARGV[6]
local owner = redis.call('GET', 'comfy:owner:' .. worker)
if owner and owner ~= nonce then return {0, 0, 0} end
redis.call('SET', 'comfy:owner:' .. worker, nonce, 'PX', math.floor(ttl * 1000))
local key = 'worker:' .. worker
for i = 7, #ARGV, 2 do redis.call('HSET', key, ARGV[i], ARGV[i + 1]) end
redis.call('HSET', key, 'seen', now)
redis.call('HSETNX', key, 'since', now)
redis.call('PEXPIRE', key, math.floor(ttl * 2000))
if id == '' then return {1, 0, 0} end
if redis.call('HGET', 'comfy:lease:' .. id, 'token') ~= token then return {1, 0, 0} end
redis.call('ZADD', 'comfy:leases', now + ttl, id)
if meta ~= '' then redis.call('HSET', 'rq:job:' .. id, 'meta', meta) end
return {1, 1, redis.call('HEXISTS', 'comfy:job:' .. id, 'cancel')}
"""

# ARGV: how many at most. Answer: id, token, worker, id, …
EXPIRED: Final = """
local time = redis.call('TIME')
local now = tonumber(time[1]) + tonumber(time[2]) / 1000000
local found = {}
for _, id in ipairs(redis.call('ZRANGEBYSCORE', 'comfy:leases', '-inf', now, 'LIMIT', 0, ARGV[1])) do
  local lease = redis.call('HMGET', 'comfy:lease:' .. id, 'token', 'worker')
  if lease[1] then
    found[#found + 1] = id
    found[#found + 1] = lease[1]
    found[#found + 1] = lease[2]
  else
    redis.call('ZREM', 'comfy:leases', id)
  end
end
return found
"""
