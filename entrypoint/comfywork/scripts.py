"""What has to be one step for Redis: taking a job, and keeping it.

Time is Redis' own (TIME), so that no clock of a worker decides anything. Keys are made inside the scripts, which one
Redis allows and a cluster does not: the queue is one Redis.
"""

from __future__ import annotations

from typing import Final

# A job is taken from the head of a queue, and its lease written, in one step: whoever is killed a moment later leaves
# a lease that expires, and never a job that is in no list at all.
#
# Which job: the highest priority, where waiting lifts a queue by one each ARGV[4] seconds in which none of its jobs was
# taken (by the age of the job alone, whoever floods the queue would soon stand before everybody); among those, the
# tenant who was served least GPU time; among those, the oldest. A job whose models another idle worker has loaded is
# left to that one, for at most ARGV[5] seconds.
#
# A token is the counter's next value, and never below the millisecond: should Redis come back with older data, no token
# is given out a second time.
#
# ARGV: worker, nonce, lease seconds, ageing seconds, patience seconds, seconds for which an idle worker counts,
# life (one of the worker's processes), seconds for which failed jobs are kept
# Answer: {"job", id, queue, token, attempts, 1 when nobody had it before} · {"none"} · {"passed"} · {"foreign", id, queue} · {"usurped"}
TAKE: Final = """
local time = redis.call('TIME')
local now = tonumber(time[1]) + tonumber(time[2]) / 1000000
local worker, nonce, life = ARGV[1], ARGV[2], ARGV[7]
local ttl, ageing, patience, idle = tonumber(ARGV[3]), tonumber(ARGV[4]), tonumber(ARGV[5]), tonumber(ARGV[6])
local kept = tonumber(ARGV[8])

if redis.call('GET', 'comfy:owner:' .. worker) ~= nonce then return {'usurped'} end

local function next_token()
  local token = math.max(tonumber(redis.call('GET', 'comfy:fence') or 0) + 1, math.floor(now * 1000))
  local text = string.format('%.0f', token)
  redis.call('SET', 'comfy:fence', text)
  return text
end

local function lease(id, queue, charged, again)
  local token = next_token()
  redis.call('HSET', 'comfy:lease:' .. id, 'token', token, 'worker', worker, 'queue', queue, 'begun', now,
    'charged', charged, 'life', life)
  redis.call('ZADD', 'comfy:leases', now + ttl, id)
  redis.call('HSET', 'comfy:held', worker, id)
  redis.call('ZREM', 'comfy:idle', worker)
  local job = 'comfy:job:' .. id
  -- Put back into the queue after its end, from RQ's dashboard: a new run of it.
  local requeued = redis.call('HDEL', job, 'ended', 'ended_by') > 0
  if requeued then
    redis.call('HDEL', job, 'failure', 'cancel', 'sealed', 'attempts', 'begun', 'note')
    redis.call('PERSIST', job)
    redis.call('PERSIST', 'rq:job:' .. id)
    for _, registry in ipairs({'failed', 'canceled', 'finished'}) do
      redis.call('ZREM', 'rq:' .. registry .. ':' .. queue, id)
    end
  end
  -- Given to the same process twice: the first answer was lost on the way, and nothing was begun.
  local attempts = redis.call('HINCRBY', job, 'attempts', again and 0 or 1)
  local first = redis.call('HSETNX', job, 'begun', now)
  if requeued then first = 0 end
  redis.call('HSET', job, 'worker', worker)
  redis.call('HDEL', job, 'passed')
  redis.call('HSET', 'comfy:last', queue, now)
  if redis.call('EXISTS', 'worker:' .. worker) == 1 then
    redis.call('HSET', 'worker:' .. worker, 'loaded', redis.call('HGET', job, 'models') or '')
  end
  redis.call('HSET', 'rq:job:' .. id, 'status', 'started', 'worker_name', worker)
  redis.call('ZADD', 'rq:wip:' .. queue, '+inf', id .. ':' .. token)
  redis.call('PUBLISH', 'comfy:events', cjson.encode({job = id, state = 'processing'}))
  return {'job', id, queue, token, attempts, first}
end

-- What this worker already holds comes first: its answer was lost on the way, or it was killed and is back.
local held = redis.call('HGET', 'comfy:held', worker)
if held then
  local mine = redis.call('HMGET', 'comfy:lease:' .. held, 'worker', 'queue', 'charged', 'token', 'life')
  if mine[1] == worker then
    redis.call('ZREM', 'rq:wip:' .. mine[2], held .. ':' .. mine[4])
    if redis.call('HEXISTS', 'rq:job:' .. held, 'data') == 1 and redis.call('EXISTS', 'comfy:job:' .. held) == 1 then
      return lease(held, mine[2], mine[3], mine[5] == life)
    end
    -- Somebody has removed the job while it ran.
    redis.call('DEL', 'comfy:lease:' .. held)
    redis.call('ZREM', 'comfy:leases', held)
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
      if redis.call('EXISTS', 'rq:job:' .. id) == 1 then
        redis.call('HSET', 'rq:job:' .. id, 'status', 'failed')
        redis.call('ZADD', 'rq:failed:' .. queue, now + kept, id)
        return {'foreign', id, queue}
      end
    elseif redis.call('EXISTS', 'comfy:lease:' .. id) == 1
        or redis.call('HGET', 'rq:job:' .. id, 'status') ~= 'queued' then
      redis.call('LPOP', list)
    else
      local since = tonumber(job[1])
      local waits = now - math.max(since, tonumber(redis.call('HGET', 'comfy:last', queue) or 0))
      local rank = level[priority] - math.floor(waits / ageing)
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
    -- Fair by GPU seconds, with a guess that the job's end corrects. Who had nothing to do gains nothing by it.
    local clock = tonumber(redis.call('GET', 'comfy:clock') or 0)
    local cost = tonumber(redis.call('HGET', 'comfy:costs', job.tenant) or 1)
    local start = math.max(job.served, clock)
    redis.call('SET', 'comfy:clock', start)
    redis.call('ZADD', 'comfy:served', start + cost, job.tenant)
    -- Out of the list last: should anything above fail, the job is still there.
    local answer = lease(job.id, job.queue, cost, false)
    redis.call('LPOP', 'rq:queue:' .. job.queue)
    if redis.call('LLEN', 'rq:queue:' .. job.queue) == 0 then redis.call('SREM', 'comfy:waiting', job.queue) end
    return answer
  end
end
return {'passed'}
"""

# A worker's heartbeat: itself, its name, and the job that it holds, if any.
#
# ARGV: worker, nonce, seconds until it counts as dead, seconds of a lease, job or '', token or 0, meta (JSON) or '',
# then field, value, …
# Answer: {1 when its name is still its own, 1 when the lease is, 1 when the job is to be cancelled}
BEAT: Final = """
local time = redis.call('TIME')
local now = tonumber(time[1]) + tonumber(time[2]) / 1000000
local worker, nonce, ttl, lease_ttl = ARGV[1], ARGV[2], tonumber(ARGV[3]), tonumber(ARGV[4])
local id, token, meta = ARGV[5], ARGV[6], ARGV[7]
local owner = redis.call('GET', 'comfy:owner:' .. worker)
if owner and owner ~= nonce then return {0, 0, 0} end
redis.call('SET', 'comfy:owner:' .. worker, nonce, 'PX', math.floor(ttl * 1000))
local key = 'worker:' .. worker
for i = 8, #ARGV, 2 do redis.call('HSET', key, ARGV[i], ARGV[i + 1]) end
redis.call('HSET', key, 'seen', now)
redis.call('HSETNX', key, 'since', now)
redis.call('PEXPIRE', key, math.floor(ttl * 2000))
if id == '' then return {1, 0, 0} end
if redis.call('HGET', 'comfy:lease:' .. id, 'token') ~= token then return {1, 0, 0} end
redis.call('ZADD', 'comfy:leases', now + lease_ttl, id)
if meta ~= '' and redis.call('HEXISTS', 'rq:job:' .. id, 'data') == 1 then redis.call('HSET', 'rq:job:' .. id, 'meta', meta) end
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

# A token outside of taking.
NEXT: Final = """
local time = redis.call('TIME')
local millisecond = tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)
local token = math.max(tonumber(redis.call('GET', 'comfy:fence') or 0) + 1, millisecond)
redis.call('SET', 'comfy:fence', string.format('%.0f', token))
return string.format('%.0f', token)
"""

# What nobody else puts in order: queues that hold jobs and that nobody was told of (RQ's dashboard puts jobs back, RQ
# itself may have enqueued a foreign one), jobs in registries and lists beyond their time, workers that are gone.
#
# ARGV: seconds after which an idle worker is gone. Answer: how many queues were forgotten
TIDY: Final = """
local time = redis.call('TIME')
local now = tonumber(time[1]) + tonumber(time[2]) / 1000000
local woken = 0
for _, key in ipairs(redis.call('SMEMBERS', 'rq:queues')) do
  local queue = string.match(key, '^rq:queue:(comfy%.[a-z0-9-]+%.[a-z]+)$')
  if queue then
    if redis.call('LLEN', key) > 0 then woken = woken + redis.call('SADD', 'comfy:waiting', queue) end
    for _, registry in ipairs({'finished', 'failed', 'canceled'}) do
      redis.call('ZREMRANGEBYSCORE', 'rq:' .. registry .. ':' .. queue, 0, now)
    end
    for _, member in ipairs(redis.call('ZRANGE', 'rq:wip:' .. queue, 0, 99)) do
      local id, token = string.match(member, '^(.+):(%d+)$')
      if not id or redis.call('HGET', 'comfy:lease:' .. id, 'token') ~= token then
        redis.call('ZREM', 'rq:wip:' .. queue, member)
      end
    end
  end
end
for _, tenant in ipairs(redis.call('SMEMBERS', 'comfy:tenants')) do
  for _, id in ipairs(redis.call('ZRANGE', 'comfy:jobs:' .. tenant, 0, 19)) do
    if redis.call('EXISTS', 'rq:job:' .. id, 'comfy:lease:' .. id) == 0 then
      redis.call('DEL', 'comfy:job:' .. id)
      redis.call('ZREM', 'comfy:jobs:' .. tenant, id)
    end
  end
end
redis.call('ZREMRANGEBYSCORE', 'comfy:idle', 0, now - tonumber(ARGV[1]))
return woken
"""
