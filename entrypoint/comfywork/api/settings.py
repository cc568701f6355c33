"""Where the API listens, and whom it lets in."""

from __future__ import annotations

import ipaddress
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from comfywork.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Mapping

LISTEN = "127.0.0.1:8190"
_SHORTEST = 16  # characters of METRICS_TOKEN


@dataclass(frozen=True, kw_only=True)
class ApiSettings:
    host: str
    port: int
    tokens_file: Path
    metrics_token: str | None = field(default=None, repr=False)
    certificate: Path | None = None
    key: Path | None = None

    @classmethod
    def from_environment(
        cls,
        environ: Mapping[str, str] | None = None,
        *,
        listen: str | None = None,
        tokens_file: Path | None = None,
    ) -> ApiSettings:
        """API_LISTEN, TOKENS_FILE, METRICS_TOKEN(_FILE), API_TLS_CERTIFICATE and API_TLS_KEY; options go before."""
        environ = os.environ if environ is None else environ
        given = tokens_file or (Path(environ["TOKENS_FILE"]) if environ.get("TOKENS_FILE") else None)
        if given is None:
            raise ConfigError(
                "TOKENS_FILE is not set: without tokens nobody is let in",
                hint="comfyrun api token user001 --tokens-file tokens.yaml makes the first",
            )
        host, port = address(listen or environ.get("API_LISTEN") or LISTEN)
        certificate, key = (_file(environ, f"API_TLS_{name}") for name in ("CERTIFICATE", "KEY"))
        if (certificate is None) != (key is None):
            raise ConfigError("API_TLS_CERTIFICATE and API_TLS_KEY go together, and one is not set")
        return cls(
            host=host,
            port=port,
            tokens_file=given,
            metrics_token=_metrics_token(environ),
            certificate=certificate,
            key=key,
        )


def address(text: str) -> tuple[str, int]:
    """`127.0.0.1:8190`, `[::1]:8190`, `:8190` (this machine alone) or `8190`."""
    host, colon, port = text.rpartition(":")
    if not port.isdecimal() or not 0 <= int(port) < 65536:  # noqa: PLR2004
        raise ConfigError(f"--listen {text}: ADDRESS:PORT, such as {LISTEN} or 0.0.0.0:8190")
    host = host.strip("[]") if colon and host else "127.0.0.1"
    try:
        ipaddress.ip_address(host)
    except ValueError:
        if host != "localhost":
            raise ConfigError(
                f"--listen {text}: {host!r} is no address of this machine", hint="0.0.0.0 for all of them"
            ) from None
    return host, int(port)


def _file(environ: Mapping[str, str], name: str) -> Path | None:
    text = environ.get(name)
    if not text:
        return None
    if not Path(text).is_file():
        raise ConfigError(f"{name}={text}: no such file")
    return Path(text)


def _metrics_token(environ: Mapping[str, str]) -> str | None:
    token = environ.get("METRICS_TOKEN", "")
    if file := environ.get("METRICS_TOKEN_FILE", ""):
        if token:
            raise ConfigError("METRICS_TOKEN and METRICS_TOKEN_FILE are both set: which one?")
        try:
            token = Path(file).read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(
                f"METRICS_TOKEN_FILE={file} cannot be read: {getattr(error, 'strerror', None) or error}"
            ) from None
    if token and len(token) < _SHORTEST:
        raise ConfigError(
            f"METRICS_TOKEN is shorter than {_SHORTEST} characters", hint="openssl rand -hex 24"
        )
    return token or None
