"""The connection to Redis, and what is wrong when there is none."""

from __future__ import annotations

import socket
import ssl
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import redis
from redis.backoff import ExponentialBackoff
from redis.retry import Retry

from comfywork.errors import ComfyworkError, ConfigError, QueueError, RefusedError

if TYPE_CHECKING:
    from comfywork.settings import Redis

TIMEOUT = 10.0  # seconds for one answer
CONNECT_TIMEOUT = 5.0
_MINIMUM = (6, 2)  # what RQ's own blocking move needs, and what hosts run today

Status = Literal["ok", "failed", "skipped"]


@dataclass(frozen=True, kw_only=True)
class Step:
    """One thing between here and the queue."""

    name: str
    status: Status
    message: str
    hint: str = ""
    seconds: float = 0.0


def connect(where: Redis, *, retries: int = 2, timeout: float = TIMEOUT) -> redis.Redis:
    """A client; nothing is sent before its first command. Answers are bytes, as RQ wants them."""
    more: dict[str, object] = {}
    if where.tls:
        more = {"ssl": True, "ssl_cert_reqs": "required", "ssl_check_hostname": True}
        if where.ca_file:
            more["ssl_ca_certs"] = str(where.ca_file)
    return redis.Redis(
        host=where.host,
        port=where.port,
        db=where.database,
        username=where.user,
        password=where.password,
        socket_timeout=timeout,
        socket_connect_timeout=CONNECT_TIMEOUT,
        socket_keepalive=True,
        health_check_interval=15,
        retry=Retry(ExponentialBackoff(cap=1.0, base=0.1), retries),
        client_name="comfywork",
        **more,  # type: ignore[arg-type]
    )


def text(value: object) -> str:
    """What Redis answered, as text; nothing where it had nothing."""
    if value is None:
        return ""
    return value.decode() if isinstance(value, bytes) else str(value)


def said(error: redis.RedisError, where: Redis) -> ComfyworkError:  # noqa: PLR0911 - one return a cause
    """What a failed command means, and the next step."""
    text = str(error)
    check = "comfyrun check --queue tells where it ends"
    if isinstance(error, redis.AuthenticationError) or text.startswith(("NOAUTH", "WRONGPASS")):
        return RefusedError(
            f"{where.address} refuses the password",
            hint="set REDIS_PASSWORD, or REDIS_PASSWORD_FILE, to Redis' own",
        )
    if isinstance(error, redis.exceptions.NoPermissionError) or text.startswith("NOPERM"):
        return RefusedError(
            f"{where.address}: user {where.user or 'default'} may not do that ({text})",
            hint="the rights that a worker and a client need are in docs/workers.md",
        )
    if isinstance(error, redis.exceptions.OutOfMemoryError) or text.startswith("OOM"):
        return QueueError(
            f"{where.address} is full: it takes no more data",
            hint="raise maxmemory, or remove jobs that have ended: comfyrun queue clean",
        )
    if isinstance(error, redis.BusyLoadingError):
        return QueueError(f"{where.address} is still loading its data", hint="try again in a moment")
    if isinstance(error, redis.ReadOnlyError):
        return QueueError(
            f"{where.address} is a replica: it takes no writes", hint="REDIS_HOST has to be the primary"
        )
    if isinstance(error, redis.TimeoutError):
        return QueueError(f"{where.address} does not answer within {TIMEOUT:g} s", hint=check)
    if isinstance(error, redis.ConnectionError):
        return QueueError(f"{where.address} cannot be reached ({text.rstrip('.')})", hint=check)
    return QueueError(f"{where.address}: {text}", hint=check)


def diagnose(where: Redis) -> list[Step]:
    """Name, TCP, TLS, password, rights and version, one after the other; what follows a failure is skipped."""
    steps = _Steps()
    address = steps.do("name resolution", lambda: _resolved(where))
    if address is not None:
        steps.do("TCP", lambda: _tcp(where))
    if where.tls:
        steps.do("TLS", lambda: _tls(where))
    client = connect(where, retries=0, timeout=CONNECT_TIMEOUT)
    try:
        steps.do("password", lambda: _password(client, where))
        steps.do("rights", lambda: _rights(client, where))
        steps.do("version", lambda: _version(client))
        steps.do("persistence", lambda: _persistence(client))
    finally:
        client.close()
    return steps.found


class _Steps:
    def __init__(self) -> None:
        self.found: list[Step] = []

    def do(self, name: str, look: object) -> str | None:
        if any(step.status == "failed" for step in self.found):
            self.found.append(Step(name=name, status="skipped", message="not looked at"))
            return None
        begin = time.monotonic()
        try:
            message = look()  # type: ignore[operator]
        except ComfyworkError as error:
            passed = time.monotonic() - begin
            self.found.append(
                Step(name=name, status="failed", message=str(error), hint=error.hint, seconds=passed)
            )
            return None
        self.found.append(Step(name=name, status="ok", message=message, seconds=time.monotonic() - begin))
        return str(message)


def _resolved(where: Redis) -> str:
    try:
        found = socket.getaddrinfo(where.host, where.port, type=socket.SOCK_STREAM)
    except OSError as error:
        raise QueueError(
            f"{where.host!r} has no address ({error.strerror or error})",
            hint="check REDIS_HOST; with a VPN give the address itself, and look whether the VPN is up",
        ) from None
    return f"{where.host} is {', '.join(sorted({str(entry[4][0]) for entry in found}))}"


def _tcp(where: Redis) -> str:
    try:
        with socket.create_connection((where.host, where.port), CONNECT_TIMEOUT):
            return f"port {where.port} takes connections"
    except TimeoutError:
        raise QueueError(
            f"port {where.port} of {where.host} does not answer within {CONNECT_TIMEOUT:g} s",
            hint="a firewall drops it, or the VPN is down: on the queue's machine look at the firewall's rules",
        ) from None
    except OSError as error:
        raise QueueError(
            f"port {where.port} of {where.host}: {error.strerror or error}",
            hint="Redis is not running there, or listens on another address or port (bind, port in redis.conf)",
        ) from None


def _tls(where: Redis) -> str:
    context = ssl.create_default_context(cafile=str(where.ca_file) if where.ca_file else None)
    try:
        with (
            socket.create_connection((where.host, where.port), CONNECT_TIMEOUT) as plain,
            context.wrap_socket(plain, server_hostname=where.host) as secure,
        ):
            return f"{secure.version()}, certificate holds for {where.host}"
    except ssl.SSLCertVerificationError as error:
        raise QueueError(
            f"the certificate of {where.host} does not hold: {error.verify_message}",
            hint="REDIS_CA_FILE names the authority that signed it",
        ) from None
    except (ssl.SSLError, OSError) as error:
        raise QueueError(
            f"no TLS with {where.host}:{where.port} ({error})",
            hint="if that Redis speaks without TLS: REDIS_TLS=false",
        ) from None


def _password(client: redis.Redis, where: Redis) -> str:
    try:
        client.ping()
    except redis.RedisError as error:
        if not where.tls and isinstance(error, redis.ConnectionError) and "closed" in str(error):
            raise QueueError(
                f"{where.host}:{where.port} hangs up at the first word",
                hint="it may want TLS: REDIS_TLS=true",
            ) from None
        raise said(error, where) from None
    return f"accepted for user {where.user or 'default'}" if where.password else "none is wanted"


def _rights(client: redis.Redis, where: Redis) -> str:
    """The kinds of command that a worker uses, on keys that nobody else has: one of each kind of name."""
    key = f"comfy:check:{socket.gethostname()}:{time.time_ns()}"
    try:
        with client.pipeline() as pipe:
            pipe.hset(key, "a", "1")
            pipe.expire(key, 10)
            pipe.execute()
        client.eval("return redis.call('HGET', KEYS[1], 'a')", 1, key)
        for name in (f"rq:job:{key}", f"worker:{key}"):
            client.hset(name, "a", "1")
            client.delete(name)
        client.time()
        client.rpush(f"{key}:list", "1")
        client.blpop([f"{key}:list"], timeout=1)
        client.publish("comfy:events", "{}")
        client.delete(key, f"{key}:list")
    except redis.RedisError as error:
        raise said(error, where) from None
    return "hashes, lists, scripts and channels work"


def _version(client: redis.Redis) -> str:
    try:
        text = str(client.info("server").get("redis_version", "0.0"))
    except redis.RedisError:
        return "unknown: INFO is not allowed here"
    parts = tuple(int(part) for part in text.split(".")[:2] if part.isdecimal())
    if parts < _MINIMUM:
        raise ConfigError(f"Redis {text} is too old", hint="6.2 or newer is needed")
    return f"Redis {text}"


def _persistence(client: redis.Redis) -> str:
    try:
        found = client.info("persistence")
    except redis.RedisError:
        return "unknown: INFO is not allowed here"
    if not found.get("aof_enabled"):
        return "no append-only file: what was submitted since the last snapshot is lost with the machine"
    return "append-only file"
