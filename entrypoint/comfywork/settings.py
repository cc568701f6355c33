"""What an operator sets, from the environment, by the names of the document for GPU workers.

Every NAME may also be given as NAME_FILE, a file that holds the value: a secret then stands in no process list, no
`docker inspect` and no log.
"""

from __future__ import annotations

import os
import socket
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar
from urllib.parse import SplitResult, unquote, urlsplit

from comfywork import names, quantities
from comfywork.errors import ComfyworkError, ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

T = TypeVar("T")

_TRUE, _FALSE = ("1", "true", "yes", "on"), ("", "0", "false", "no", "off")
_LEVELS = ("DEBUG", "INFO", "WARNING", "ERROR")


@dataclass(frozen=True, kw_only=True)
class Redis:
    """Where the queue is. `password` never appears in a message or a representation."""

    host: str = "127.0.0.1"
    port: int = 6379
    user: str | None = None
    password: str | None = field(default=None, repr=False)
    tls: bool = False
    ca_file: Path | None = None
    database: int = 0

    @property
    def address(self) -> str:
        return f"{'rediss' if self.tls else 'redis'}://{self.host}:{self.port}/{self.database}"


@dataclass(frozen=True, kw_only=True)
class Settings:
    redis: Redis = field(default_factory=Redis)
    worker_id: str = "worker-1"
    heartbeat_timeout: float = 60.0
    """Seconds of silence after which a worker counts as dead and its job goes to another."""
    poll_interval: float = 2.0
    """Seconds between two looks for a job, when no bell rings."""
    job_timeout: float = 3600.0
    """Seconds that one job may run, unless it says otherwise."""
    attempts: int = 3
    """Times that a job is begun, when workers die of it or machines fail."""
    drain_timeout: float = 60.0
    """Seconds that a job which runs may take after SIGTERM, before it is handed back."""
    max_workflow: int = 8_000_000
    """Bytes of a workflow as JSON."""
    depth: int = 200
    """Jobs that one tenant may have waiting."""
    rate: float = 0.0
    """Jobs a minute that one tenant may submit; 0 for any number."""
    ageing: float = 120.0
    """Seconds of waiting that lift a job by one priority: nobody starves."""
    result_ttl: float = 7 * 86400.0
    """Seconds that a job which has ended is remembered."""
    server: str = "http://127.0.0.1:8188"
    """The ComfyUI of this worker."""
    state_file: Path = Path("/tmp/comfywork/agent.json")  # noqa: S108
    """What the worker says of itself to `comfyrun health`."""
    log_level: str = "INFO"
    verbose: bool = False

    @classmethod
    def from_environment(cls, environ: Mapping[str, str] | None = None) -> Settings:
        """ConfigError with every mistake in it."""
        return _Reader(os.environ if environ is None else environ).settings()


class _Reader:
    def __init__(self, environ: Mapping[str, str]) -> None:
        self._environ = environ
        self._mistakes: list[str] = []

    def settings(self) -> Settings:
        base = Settings()
        read = self._read
        verbose = read("VERBOSE_LOGS", _boolean, default=False) or read("DEBUG", _boolean, default=False)
        debug = read("DEBUG", _boolean, default=False)
        found = Settings(
            redis=self._redis(),
            worker_id=read("WORKER_ID", names.check_worker, socket.gethostname()[:63] or "worker-1"),
            heartbeat_timeout=read(
                "WORKER_HEARTBEAT_TIMEOUT", _above(quantities.seconds, 3), base.heartbeat_timeout
            ),
            poll_interval=read("WORKER_POLL_INTERVAL", _above(quantities.seconds, 0.05), base.poll_interval),
            job_timeout=read("WORKER_JOB_TIMEOUT", _above(quantities.seconds, 1), base.job_timeout),
            attempts=read("WORKER_ATTEMPTS", _above(int, 1), base.attempts),
            drain_timeout=read("WORKER_DRAIN_TIMEOUT", _above(quantities.seconds, 0), base.drain_timeout),
            max_workflow=read("QUEUE_MAX_WORKFLOW", _above(quantities.size, 1000), base.max_workflow),
            depth=read("QUEUE_DEPTH_PER_TENANT", _above(int, 1), base.depth),
            rate=read("QUEUE_RATE_PER_TENANT", _above(float, 0), base.rate),
            ageing=read("QUEUE_AGEING", _above(quantities.seconds, 1), base.ageing),
            result_ttl=read("RESULT_TTL", _above(quantities.seconds, 60), base.result_ttl),
            server=read("COMFYWORK_SERVER", _server, base.server),
            state_file=read("COMFYWORK_STATE", Path, base.state_file),
            log_level="DEBUG" if debug else read("LOG_LEVEL", _level, base.log_level),
            verbose=verbose,
        )
        if self._mistakes:
            raise ConfigError(*self._mistakes, hint="nothing was started; docs/workers.md has every setting")
        return found

    def _redis(self) -> Redis:
        read, base = self._read, Redis()
        url = read("REDIS_URL", _url, None)
        if url is not None:
            base = Redis(
                host=url.hostname or base.host,
                port=url.port or base.port,
                user=unquote(url.username) if url.username else None,
                password=unquote(url.password) if url.password else None,
                tls=url.scheme == "rediss",
                database=int(url.path.strip("/") or 0),
            )
        return Redis(
            host=read("REDIS_HOST", _host, base.host),
            port=base.port if url is not None and self._linked() else read("REDIS_PORT", _port, base.port),
            user=read("REDIS_USER", str, base.user),
            password=read("REDIS_PASSWORD", str, base.password),
            tls=read("REDIS_TLS", _boolean, base.tls),
            ca_file=read("REDIS_CA_FILE", _file, base.ca_file),
            database=read("REDIS_DB", _above(int, 0), base.database),
        )

    def _linked(self) -> bool:
        """Whether Kubernetes set REDIS_PORT for a Service that is called redis."""
        return self._environ.get("REDIS_PORT", "").startswith("tcp://")

    def _read(self, name: str, parse: Callable[[str], T], default: T) -> T:
        text = self._environ.get(name, "")
        where = name
        if file := self._environ.get(f"{name}_FILE", ""):
            where = f"{name}_FILE"
            if text:
                self._mistakes.append(f"{name} and {where} are both set: which one?")
                return default
            try:
                text = Path(file).read_text(encoding="utf-8").strip()
            except (OSError, UnicodeDecodeError) as error:
                self._mistakes.append(
                    f"{where}={file} cannot be read: {getattr(error, 'strerror', None) or error}"
                )
                return default
            if not text:
                self._mistakes.append(f"{where}={file} is empty")
        if not text:
            return default
        try:
            return parse(text)
        except ComfyworkError as error:
            self._mistakes.append(f"{where}: {error}")
        except ValueError as error:
            self._mistakes.append(f"{where}={'…' if 'PASSWORD' in name or 'URL' in name else text}: {error}")
        return default


def _boolean(text: str) -> bool:
    if text.lower() in _TRUE:
        return True
    if text.lower() in _FALSE:
        return False
    raise ValueError("neither true nor false")


def _above(parse: Callable[[str], T], least: float) -> Callable[[str], T]:
    def parsed(text: str) -> T:
        try:
            value = parse(text)
        except ValueError as error:
            raise ValueError("not a number" if parse in (int, float) else str(error)) from None
        if not least <= float(value):  # type: ignore[arg-type]
            raise ValueError(f"{least:g} at least")
        return value

    return parsed


def _port(text: str) -> int:
    if text.startswith("tcp://"):
        # Kubernetes sets this for a Service that is called redis.
        raise ValueError(
            "a Kubernetes service link, not a port: set enableServiceLinks: false in the pod, or give REDIS_URL"
        )
    if not text.isdecimal() or not 0 < int(text) < 65536:  # noqa: PLR2004
        raise ValueError("a port is a number from 1 to 65535")
    return int(text)


def _host(text: str) -> str:
    if "://" in text or "/" in text:
        raise ValueError("a host name or an address; a whole address goes into REDIS_URL")
    return text


def _url(text: str) -> SplitResult | None:
    url = urlsplit(text)
    if url.scheme not in ("redis", "rediss") or not url.hostname:
        raise ValueError("redis://HOST:PORT/0 or rediss://USER:PASSWORD@HOST:PORT/0")
    try:
        _ = url.port
    except ValueError:
        raise ValueError("a port is a number from 1 to 65535") from None
    if url.query or url.fragment:
        raise ValueError("nothing follows the database's number; in a password, ? is %3F and # is %23")
    if not (url.path.strip("/") or "0").isdecimal():
        raise ValueError("what follows the port is a database's number")
    return url


def _server(text: str) -> str:
    url = urlsplit(text)
    if url.scheme not in ("http", "https") or not url.hostname:
        raise ValueError("http://HOST:PORT")
    return text.rstrip("/")


def _file(text: str) -> Path:
    if not Path(text).is_file():
        raise ValueError("no such file")
    return Path(text)


def _level(text: str) -> str:
    if text.upper() not in _LEVELS:
        raise ValueError(f"one of {', '.join(_LEVELS)}")
    return text.upper()
