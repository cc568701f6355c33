"""Small outputs and inputs in the queue's own Redis: nothing but the queue has to be reached.

Every object has an expiry, and all together a limit: Redis' memory is for jobs first. Every change is one script, so that
an object and what is counted of it cannot part. Times are Redis' own.
"""

from __future__ import annotations

import hashlib
import secrets
from contextlib import contextmanager
from typing import TYPE_CHECKING, BinaryIO, Self, cast

import redis

from comfywork import quantities
from comfywork.names import check_tenant
from comfywork.storage import names
from comfywork.storage.base import ListedObject, Place, Stored, Swept, nobody_holds
from comfywork.storage.errors import MissingError, StorageError
from comfywork.storage.intake import Intake

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from types import TracebackType

    from comfywork.storage.base import OpenedObject

PREFIX = "comfy:object:"
"""Hash: data, media_type, sha256, modified."""
EXPIRIES = "comfy:objects:expiries"
"""Sorted set: key → the second at which it expires."""
SIZES = "comfy:objects:sizes"
"""Hash: key → bytes."""
TOTAL = "comfy:objects:total"
"""Bytes of all."""

# KEYS: expiries, sizes, total. What has expired is taken off the count first.
_COMMON = """
local clock = redis.call('TIME')
local now = clock[1] + clock[2] / 1000000
local function uncount(key)
  local size = redis.call('HGET', KEYS[2], key)
  if size then
    redis.call('HDEL', KEYS[2], key)
    redis.call('ZREM', KEYS[1], key)
    redis.call('DECRBY', KEYS[3], size)
  end
end
local function count(key, size, expiry)
  redis.call('HSET', KEYS[2], key, size)
  redis.call('ZADD', KEYS[1], expiry, key)
  redis.call('INCRBY', KEYS[3], size)
end
local function expire()
  for _, key in ipairs(redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', now, 'LIMIT', 0, 1000)) do
    redis.call('DEL', ARGV[1] .. key)
    uncount(key)
  end
end
"""
# ARGV: prefix, key, data, media type, sha256, seconds to live, limit of all. Returns the room that there is, or -1.
_PUT = (
    _COMMON
    + """
expire()
local size = #ARGV[3]
local had = tonumber(redis.call('HGET', KEYS[2], ARGV[2]) or '0')
local free = tonumber(ARGV[7]) - (tonumber(redis.call('GET', KEYS[3]) or '0') - had)
if size > free then return free end
redis.call('HSET', ARGV[1] .. ARGV[2], 'data', ARGV[3], 'media_type', ARGV[4], 'sha256', ARGV[5], 'modified', tostring(now))
uncount(ARGV[2])
local expiry = math.floor(now + ARGV[6])
redis.call('EXPIREAT', ARGV[1] .. ARGV[2], expiry)
count(ARGV[2], size, expiry)
return -1
"""
)
# ARGV: prefix, staged key, final key, seconds to live. Returns 1 when it is at its final key.
_MOVE = (
    _COMMON
    + """
local staged, final = ARGV[1] .. ARGV[2], ARGV[1] .. ARGV[3]
if redis.call('EXISTS', staged) == 0 then return redis.call('EXISTS', final) end
local size = redis.call('HGET', KEYS[2], ARGV[2]) or redis.call('HSTRLEN', staged, 'data')
uncount(ARGV[3])
uncount(ARGV[2])
redis.call('RENAME', staged, final)
local expiry = math.floor(now + ARGV[4])
redis.call('HSET', final, 'modified', tostring(now))
redis.call('EXPIREAT', final, expiry)
count(ARGV[3], size, expiry)
return 1
"""
)
# ARGV: prefix, keys…
_DELETE = (
    _COMMON
    + """
for i = 2, #ARGV do
  redis.call('DEL', ARGV[1] .. ARGV[i])
  uncount(ARGV[i])
end
return 1
"""
)
_INDEX = (EXPIRIES, SIZES, TOTAL)


class QueueStorage:
    name = "queue"

    def __init__(
        self, connection: redis.Redis, *, max_output: int, max_input: int, total: int, ttl: float
    ) -> None:
        """Sizes in bytes, `ttl` in seconds: what is not fetched until then is gone."""
        self._redis = connection
        self._max_output, self._max_input, self._total, self._ttl = max_output, max_input, total, ttl
        self._put_script = connection.register_script(_PUT)
        self._move_script = connection.register_script(_MOVE)
        self._delete_script = connection.register_script(_DELETE)

    # --- outputs ---------------------------------------------------------------------------------

    def stage(self, place: Place, content: BinaryIO, size: int | None, media_type: str) -> Stored:  # noqa: ARG002
        intake = Intake(
            content, size, what=place.key, limit=self._max_output, setting=f"{_SMALL}; STORAGE_QUEUE_OBJECT"
        )
        data = b"".join(intake.pieces())
        stored = intake.stored(place.key)
        self._put(place.staged, data, stored)
        return stored

    def publish(self, places: Sequence[Place]) -> None:
        for place in places:
            self._move(place.staged, place.key)

    def discard(self, tenant: str, job: str, token: int) -> None:
        here = names.staging_of(tenant, job, token)
        with self._telling():
            self._delete([key for key in self._all() if key.startswith(here)])

    def sweep_staging(
        self, older_than: float, held: Callable[[str, str], bool] = nobody_holds, *, dry_run: bool = False
    ) -> Swept:
        with self._telling():
            before = self.now() - older_than
            leases: dict[str, list[ListedObject]] = {}
            for found in self._listed(names.STAGING + "/"):
                leases.setdefault("/".join(found.key.split("/")[:4]), []).append(found)
            swept = Swept()
            for lease, objects in leases.items():
                _, tenant, job, *_ = (*lease.split("/"), "", "")
                if max(found.modified for found in objects) > before or held(tenant, job):
                    continue
                swept += Swept(objects=len(objects), size=sum(found.size for found in objects))
                if not dry_run:
                    self._delete([found.key for found in objects])
            return swept

    # --- inputs ----------------------------------------------------------------------------------

    def put_input(
        self,
        tenant: str,
        name: str,
        content: BinaryIO,
        size: int | None,
        media_type: str,  # noqa: ARG002
    ) -> Stored:
        check_tenant(tenant)
        plain = names.input_name(name)
        intake = Intake(
            content, size, what=plain, limit=self._max_input, setting=f"{_SMALL}; STORAGE_QUEUE_OBJECT"
        )
        data = b"".join(intake.pieces())
        stored = intake.stored(names.input_key(tenant, intake.sha256, plain))
        self._put(stored.key, data, stored)
        return stored

    # --- what is published -----------------------------------------------------------------------

    def open(self, key: str) -> OpenedObject:
        names.check_key(key)
        with self._telling():
            data, media_type, sha256 = cast(
                "list[bytes | None]", self._redis.hmget(PREFIX + key, ["data", "media_type", "sha256"])
            )
        if data is None or media_type is None:
            raise MissingError(key, hint=f"objects in the queue are kept for {self._ttl / 86400:.3g} days")
        if hashlib.sha256(data).hexdigest() != _text(sha256):
            raise StorageError(f"{key} was changed in Redis", hint="store it again", retryable=False)
        return OpenedBytes(data, _text(media_type))

    def delete(self, key: str) -> None:
        names.check_key(key)
        with self._telling():
            self._delete([key])

    def keys(self, prefix: str) -> Iterator[ListedObject]:
        with self._telling():
            yield from (found for found in self._listed(prefix) if names.is_key(found.key))

    def link(self, key: str, seconds: int) -> str | None:  # noqa: ARG002
        names.check_key(key)
        return None

    def now(self) -> float:
        with self._telling():
            seconds, microseconds = self._redis.time()
        return seconds + microseconds / 1e6

    def check(self) -> None:
        staging = names.STAGING + "/check-" + secrets.token_hex(8)
        with self._telling():
            policy = self._policy()
            if policy not in ("", "noeviction"):
                raise StorageError(
                    f"Redis throws keys away when it is full (maxmemory-policy {policy})",
                    hint="set maxmemory-policy noeviction: jobs would be lost as well",
                    retryable=False,
                )
            probe = Stored(key=staging, size=1, sha256=hashlib.sha256(b"0").hexdigest(), media_type="")
            try:
                self._put(staging, b"0", probe)
            finally:
                self._delete([staging])

    # --- how -------------------------------------------------------------------------------------

    def _policy(self) -> str:
        try:
            return str(self._redis.info("memory").get("maxmemory_policy", ""))
        except redis.exceptions.NoPermissionError:
            return ""

    def _put(self, key: str, data: bytes, stored: Stored) -> None:
        with self._telling():
            free = self._put_script(
                keys=_INDEX,
                args=[PREFIX, key, data, stored.media_type, stored.sha256, self._ttl, self._total],
            )
        if int(free) >= 0:
            raise StorageError(
                f"the queue's share for objects, {quantities.human(self._total)}, is full: "
                f"{quantities.human(max(0, int(free)))} are free, {quantities.human(len(data))} are needed",
                hint="objects leave it when they expire; STORAGE_QUEUE_TOTAL is the share, RETENTION the time, and "
                "STORAGE=volume or s3 has room for more",
                retryable=True,
            )

    def _move(self, staged: str, key: str) -> None:
        with self._telling():
            there = self._move_script(keys=_INDEX, args=[PREFIX, staged, key, self._ttl])
        if not int(there):
            raise MissingError(
                key, hint="it is not staged either: this job's result is lost, and has to be made again"
            )

    def _delete(self, keys: list[str]) -> None:
        if keys:
            self._delete_script(keys=_INDEX, args=[PREFIX, *keys])

    def _all(self) -> list[str]:
        return sorted(_text(key) for key in self._redis.hkeys(SIZES))

    def _listed(self, prefix: str) -> list[ListedObject]:
        keys = [key for key in self._all() if key.startswith(prefix)]
        found = []
        for begin in range(0, len(keys), 500):
            some = keys[begin : begin + 500]
            with self._redis.pipeline(transaction=False) as pipe:
                for key in some:
                    pipe.hget(PREFIX + key, "modified")
                    pipe.hstrlen(PREFIX + key, "data")
                answers = pipe.execute()
            for key, modified, size in zip(some, answers[::2], answers[1::2], strict=True):
                if modified is not None:  # not expired meanwhile
                    found.append(ListedObject(key=key, size=int(size), modified=float(modified)))
        return found

    @contextmanager
    def _telling(self) -> Iterator[None]:
        try:
            yield
        except redis.RedisError as error:
            raise _told(error) from error


class OpenedBytes:
    def __init__(self, data: bytes, media_type: str) -> None:
        self._data, self._at = data, 0
        self.size, self.media_type = len(data), media_type

    def read(self, size: int = -1, /) -> bytes:
        end = self.size if size < 0 else self._at + size
        piece = self._data[self._at : end]
        self._at += len(piece)
        return piece

    def close(self) -> None:
        self._data, self._at = b"", self.size

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None, /
    ) -> None:
        self.close()


_SMALL = "STORAGE=queue is for small objects, volume and s3 for others"


def _text(value: bytes | str | None) -> str:
    return value.decode() if isinstance(value, bytes) else value or ""


def _told(error: redis.RedisError) -> StorageError:
    said = str(error)
    if isinstance(error, redis.exceptions.OutOfMemoryError) or "OOM" in said:
        return StorageError(
            "Redis is full: it takes no more data",
            hint="raise maxmemory, lower STORAGE_QUEUE_TOTAL, or let objects expire; nothing was changed",
            retryable=True,
        )
    if isinstance(error, redis.AuthenticationError) or said.startswith(("NOAUTH", "WRONGPASS")):
        return StorageError("Redis refuses the password", hint="set REDIS_PASSWORD", retryable=False)
    if isinstance(error, redis.exceptions.NoPermissionError):
        return StorageError(
            "Redis does not allow it to this user",
            hint="it needs EVALSHA and the keys comfy:object*",
            retryable=False,
        )
    if isinstance(error, redis.ReadOnlyError):
        return StorageError(
            "this Redis is a replica: it takes no writes",
            hint="REDIS_HOST has to be the primary",
            retryable=True,
        )
    return StorageError(
        f"Redis does not do it ({said.rstrip('.')})",
        hint="comfyrun check --queue tells where it ends",
        retryable=isinstance(error, (redis.ConnectionError, redis.TimeoutError, redis.BusyLoadingError))
        or said.startswith(("MISCONF", "BUSY", "TRYAGAIN", "CLUSTERDOWN")),
    )
