"""What an operator sets of storage, from the environment. Secrets may stand in files, and in no message."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypeVar
from urllib.parse import urlsplit

from comfywork import quantities
from comfywork.errors import ComfyworkError, ConfigError, nearest
from comfywork.names import check_tenant

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

T = TypeVar("T")
Kind = Literal["volume", "s3", "queue"]

KINDS: tuple[Kind, ...] = ("volume", "s3", "queue")
NAMES = (
    *("STORAGE", "STORAGE_MAX_OUTPUT", "STORAGE_MAX_INPUT", "STORAGE_QUEUE_OBJECT", "STORAGE_QUEUE_TOTAL"),
    *("OUTPUTS_PATH", "INPUTS_PATH", "RETENTION"),
    *(
        "S3_ENDPOINT",
        "S3_LINK_ENDPOINT",
        "S3_BUCKET",
        "S3_PREFIX",
        "S3_REGION",
        "S3_ADDRESSING",
        "S3_CA_FILE",
    ),
    *("S3_ACCESS_KEY", "S3_ACCESS_KEY_FILE", "S3_SECRET_KEY", "S3_SECRET_KEY_FILE"),
    *("S3_ENCRYPTION", "S3_KMS_KEY"),
)
_OURS = re.compile(r"(S3|STORAGE|OUTPUTS|INPUTS)_")
# Kubernetes sets these for a Service that is called s3 or storage.
_SERVICE = re.compile(r"_SERVICE_(HOST|PORT)|_PORT$|_PORT_\d+_(TCP|UDP)")
_BUCKET = re.compile(r"(?!\d+\.\d+\.\d+\.\d+$)[a-z0-9](?:[a-z0-9-]|\.(?![.-])){1,61}[a-z0-9]")
_PREFIX = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]*(/[A-Za-z0-9_-][A-Za-z0-9._-]*)*")
_REGION = re.compile(r"[A-Za-z0-9][A-Za-z0-9-]{0,62}")
_NEVER = ("never", "off", "forever")
_BUNDLES = ("AWS_CA_BUNDLE", "SSL_CERT_FILE", "REQUESTS_CA_BUNDLE")


@dataclass(frozen=True, kw_only=True)
class S3Settings:
    bucket: str
    endpoint: str | None = None
    """None is AWS' own for the region."""
    link_endpoint: str | None = None
    """The address at which browsers reach the same storage; without it, and with an endpoint, there are no links."""
    prefix: str = ""
    """Before every key; ends with a slash, or is empty."""
    region: str = "us-east-1"
    access_key: str | None = field(default=None, repr=False)
    secret_key: str | None = field(default=None, repr=False)
    """Without both, boto3's own chain: its variables, files, a role of the machine."""
    addressing: str = "path"
    """path or virtual (bucket.host)."""
    ca_file: Path | None = None
    encryption: str | None = None
    """AES256 or aws:kms."""
    kms_key: str | None = None


@dataclass(frozen=True, kw_only=True)
class StorageSettings:
    """Sizes in bytes, durations in seconds."""

    kind: Kind = "volume"
    outputs: Path = Path("/data/output")
    inputs: Path = Path("/data/input")
    s3: S3Settings | None = None
    max_output: int = 20 * 10**9
    max_input: int = 2 * 10**9
    queue_object: int = 8 * 10**6
    """The largest object in the queue."""
    queue_total: int = 256 * 10**6
    """Of all objects in the queue together."""
    retention: float | None = None
    """None: nothing is deleted for its age. In the queue: a week."""
    retention_of: Mapping[str, float | None] = field(default_factory=dict)
    """By tenant, where it differs."""

    @classmethod
    def from_environment(cls, environ: Mapping[str, str] | None = None) -> StorageSettings:
        """ConfigError with every mistake in it. An empty variable counts as unset."""
        return _Reader(os.environ if environ is None else environ).settings()

    def retention_for(self, tenant: str) -> float | None:
        """Seconds that a tenant's objects are kept; None for ever."""
        return self.retention_of.get(tenant, self.retention)


class _Reader:
    def __init__(self, environ: Mapping[str, str]) -> None:
        self._environ = {name: text for name, text in environ.items() if text}
        self._mistakes: list[str] = []

    def settings(self) -> StorageSettings:
        self._unknown()
        base, read = StorageSettings(), self._read
        kind = read("STORAGE", _kind, base.kind)
        found = StorageSettings(
            kind=kind,
            outputs=read("OUTPUTS_PATH", _folder, base.outputs),
            inputs=read("INPUTS_PATH", _folder, base.inputs),
            s3=self._s3() if kind == "s3" else None,
            max_output=read("STORAGE_MAX_OUTPUT", _size, base.max_output),
            max_input=read("STORAGE_MAX_INPUT", _size, base.max_input),
            queue_object=read("STORAGE_QUEUE_OBJECT", _queue_object, base.queue_object),
            queue_total=read("STORAGE_QUEUE_TOTAL", _size, base.queue_total),
            retention=read("RETENTION", _retention, base.retention),
            retention_of=self._tenants(),
        )
        if found.queue_object > found.queue_total:
            self._mistakes.append(
                "STORAGE_QUEUE_OBJECT is larger than STORAGE_QUEUE_TOTAL, which holds all objects"
            )
        if self._mistakes:
            raise ConfigError(*self._mistakes, hint="nothing was started; docs/storage.md has every setting")
        return found

    def _s3(self) -> S3Settings:
        read = self._read
        prefix = read("S3_PREFIX", _prefix, "")
        bucket = read("S3_BUCKET", _bucket, "")
        if not bucket and "S3_BUCKET" not in self._environ:
            self._mistakes.append("S3_BUCKET is not set: STORAGE=s3 needs a bucket that is there")
        access, secret = self._secret("S3_ACCESS_KEY"), self._secret("S3_SECRET_KEY")
        given = [name for name in ("S3_ACCESS_KEY", "S3_SECRET_KEY") if self._given(name)]
        if len(given) == 1:
            other = "S3_SECRET_KEY" if given == ["S3_ACCESS_KEY"] else "S3_ACCESS_KEY"
            self._mistakes.append(
                f"{given[0]} is set and {other} is not: both, or neither for the machine's role"
            )
        encryption = read("S3_ENCRYPTION", _encryption, None)
        kms_key = read("S3_KMS_KEY", str, None)
        if kms_key and encryption != "aws:kms":
            self._mistakes.append("S3_KMS_KEY is set: S3_ENCRYPTION has to be aws:kms then")
        return S3Settings(
            bucket=bucket,
            endpoint=read("S3_ENDPOINT", _endpoint, None),
            link_endpoint=read("S3_LINK_ENDPOINT", _endpoint, None),
            prefix=prefix,
            region=read("S3_REGION", _region, self._environ.get("AWS_REGION") or "us-east-1"),
            access_key=access,
            secret_key=secret,
            addressing=read(
                "S3_ADDRESSING", _addressing, "path" if "S3_ENDPOINT" in self._environ else "virtual"
            ),
            ca_file=read("S3_CA_FILE", _file, None) or self._bundle(),
            encryption=encryption,
            kms_key=kms_key,
        )

    def _bundle(self) -> Path | None:
        found = [self._environ[name] for name in _BUNDLES if name in self._environ]
        return Path(found[0]) if found and Path(found[0]).is_file() else None

    def _tenants(self) -> dict[str, float | None]:
        found: dict[str, float | None] = {}
        for name in sorted(self._environ):
            if not name.startswith("RETENTION_"):
                continue
            tenant = name.removeprefix("RETENTION_").lower().replace("_", "-")
            try:
                check_tenant(tenant)
            except ComfyworkError as error:
                self._mistakes.append(f"{name}: {error}")
                continue
            found[tenant] = self._read(name, _retention, None)
        return found

    def _unknown(self) -> None:
        for name in sorted(self._environ):
            if _OURS.match(name) and name not in NAMES and not _SERVICE.search(name):
                self._mistakes.append(f"{name}: storage knows no such variable{nearest(name, NAMES)}")

    def _given(self, name: str) -> bool:
        return name in self._environ or f"{name}_FILE" in self._environ

    def _secret(self, name: str) -> str | None:
        """The value of NAME, or what stands in the file NAME_FILE. It is never part of a mistake."""
        file = self._environ.get(f"{name}_FILE")
        if file is None:
            return self._environ.get(name)
        if name in self._environ:
            self._mistakes.append(f"{name} and {name}_FILE are both set: which one?")
            return None
        try:
            text = Path(file).read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError) as error:
            why = error.strerror if isinstance(error, OSError) else "is not text"
            self._mistakes.append(f"{name}_FILE={file} cannot be read: {why}")
            return None
        if not text or "\n" in text:
            self._mistakes.append(f"{name}_FILE={file} holds {'more than one line' if text else 'nothing'}")
            return None
        return text

    def _read(self, name: str, parse: Callable[[str], T], default: T) -> T:
        text = self._environ.get(name, "").strip()
        if not text:
            return default
        try:
            return parse(text)
        except ValueError as error:
            # Addresses may hold a password by mistake: only the reason is shown.
            shown = "" if "ENDPOINT" in name else f"={text[:80]}"
            self._mistakes.append(f"{name}{shown}: {error}")
        return default


def _kind(text: str) -> Kind:
    for kind in KINDS:
        if text == kind:
            return kind
    raise ValueError(f"one of {', '.join(KINDS)}{nearest(text, KINDS)}")


def _size(text: str) -> int:
    found = quantities.size(text)
    if found < 1:
        raise ValueError("that would let nothing in")
    return found


def _queue_object(text: str) -> int:
    found = _size(text)
    if found > 128 << 20:
        raise ValueError("128MiB at most: Redis answers nobody else while it copies one")
    return found


def _retention(text: str) -> float | None:
    if text.lower() in _NEVER:
        return None
    found = quantities.seconds(text)
    if found < 60:  # noqa: PLR2004
        raise ValueError("60s at least; never keeps everything")
    return found


def _folder(text: str) -> Path:
    path = Path(text)
    if not path.is_absolute() or ".." in path.parts or "\0" in text:
        raise ValueError("an absolute path without ..")
    return path


def _file(text: str) -> Path:
    if not Path(text).is_file():
        raise ValueError("no such file")
    return Path(text)


def _endpoint(text: str) -> str:
    try:
        url = urlsplit(text)
        port = url.port
    except ValueError:
        raise ValueError("http://HOST:PORT or https://HOST; the port is a number from 1 to 65535") from None
    if url.scheme not in ("http", "https") or not url.hostname or port == 0:
        raise ValueError("it begins with http:// or https://, and names a host")
    if url.username or url.password or "@" in url.netloc:
        raise ValueError("no user and no password in it: they go into S3_ACCESS_KEY and S3_SECRET_KEY")
    if url.path.strip("/") or url.query or url.fragment:
        raise ValueError("a scheme, a host and a port; a bucket goes into S3_BUCKET, a folder into S3_PREFIX")
    return f"{url.scheme}://{url.netloc}"


def _bucket(text: str) -> str:
    if not _BUCKET.fullmatch(text):
        raise ValueError("a bucket has 3 to 63 lower case letters, digits, hyphens and dots")
    return text


def _prefix(text: str) -> str:
    if not _PREFIX.fullmatch(text.strip("/")):
        raise ValueError("names with slashes between: letters, digits, '_', '-', and '.' inside")
    return text.strip("/") + "/"


def _region(text: str) -> str:
    if not _REGION.fullmatch(text):
        raise ValueError("a region's name, such as us-east-1")
    return text


def _addressing(text: str) -> str:
    if text not in ("path", "virtual"):
        raise ValueError("path (https://host/bucket) or virtual (https://bucket.host)")
    return text


def _encryption(text: str) -> str:
    if text not in ("AES256", "aws:kms"):
        raise ValueError("AES256 or aws:kms")
    return text
