"""Hugging Face: addresses, metadata and access, by its own library."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from comfywork.errors import ConfigError
from comfywork.models.errors import DeniedError, UnreachableError, WrongFileError
from comfywork.models.wire import Told, TransientError, denial

if TYPE_CHECKING:
    from collections.abc import Mapping

    from comfywork.models.modellist import ModelFile

DEFAULT = "https://huggingface.co"
LARGEST = 50_000_000_000
"""Bytes: what the hub sends by plain HTTP (huggingface_hub's MAX_HTTP_DOWNLOAD_SIZE); more only by its Xet protocol."""

_SHA256 = re.compile(r"[0-9a-f]{64}")
_LOOPBACK = ("127.0.0.1", "localhost", "::1")


@dataclass(frozen=True, kw_only=True)
class Hub:
    endpoint: str = DEFAULT
    token: str | None = field(default=None, repr=False)

    @classmethod
    def from_environment(cls, environ: Mapping[str, str]) -> Hub:
        """HF_ENDPOINT; HF_TOKEN, HF_TOKEN_FILE, else what `hf auth login` has stored."""
        endpoint = (environ.get("HF_ENDPOINT") or DEFAULT).rstrip("/")
        parts = urlsplit(endpoint)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ConfigError(f"HF_ENDPOINT={endpoint} is no address: https://HOST")
        token = _token(environ)
        if token and parts.scheme == "http" and parts.hostname not in _LOOPBACK:
            raise ConfigError(
                f"HF_ENDPOINT={endpoint} is not encrypted, and there is a token: it would be sent in the open"
            )
        return cls(endpoint=endpoint, token=token)

    def url(self, file: ModelFile, revision: str | None = None) -> str:
        from huggingface_hub import hf_hub_url  # noqa: PLC0415  (half a second, and not every verb needs it)

        assert file.repository is not None
        assert file.file is not None
        return hf_hub_url(
            file.repository, file.file, revision=revision or file.revision or "main", endpoint=self.endpoint
        )

    def ask(self, file: ModelFile, revision: str | None = None) -> Told:
        """What the hub knows of a file. Raises as `wire.request` does."""
        from huggingface_hub import errors, get_hf_file_metadata  # noqa: PLC0415
        from huggingface_hub.errors import HTTPError  # type: ignore[attr-defined]  # noqa: PLC0415  (of httpx2)

        url = self.url(file, revision)
        where = f"{file.repository}@{revision or file.revision or 'main'}"
        try:
            found = get_hf_file_metadata(url, token=self.token or False, endpoint=self.endpoint)
        except errors.GatedRepoError:
            raise DeniedError(denial(url, "GatedRepo", 403)) from None
        except errors.DisabledRepoError:
            raise WrongFileError(f"{where}: the hub has switched this repository off") from None
        except errors.RevisionNotFoundError:
            raise WrongFileError(f"{where}: the repository has no such revision") from None
        except errors.RepositoryNotFoundError:
            raise DeniedError(
                f"{where}: no such repository, or a private one that {'this' if self.token else 'no'} token opens"
            ) from None
        except errors.EntryNotFoundError:
            raise WrongFileError(f"{where} has no file {file.file}") from None
        except errors.OfflineModeIsEnabled:
            raise UnreachableError(
                "HF_HUB_OFFLINE is set", hint="unset it (COMFY_OFFLINE sets it) for a pull or a lock"
            ) from None
        except errors.HfHubHTTPError as error:
            raise _meant(error, url, self.endpoint) from error
        except HTTPError as error:
            reason = (str(error) or type(error).__name__).splitlines()[0]
            raise TransientError(f"{urlsplit(self.endpoint).hostname}: {reason}") from error
        stated = found.etag or ""
        return Told(
            size=found.size,
            sha256=stated if _SHA256.fullmatch(stated) else None,
            revision=found.commit_hash,
        )


def _meant(error: Exception, url: str, endpoint: str) -> Exception:
    response = getattr(error, "response", None)
    status = getattr(response, "status_code", 0)
    headers = getattr(response, "headers", {})
    host = urlsplit(endpoint).hostname
    if status in (401, 403):
        return DeniedError(denial(url, str(headers.get("x-error-code", "")), status))
    if status in (408, 425, 429) or status >= 500 or not status:  # noqa: PLR2004
        after = str(headers.get("retry-after", ""))
        return TransientError(f"{host} answers {status}", float(after) if after.isdecimal() else None)
    return WrongFileError(f"{host} answers {status} for {urlsplit(url).path}")


def _token(environ: Mapping[str, str]) -> str | None:
    token, file = environ.get("HF_TOKEN", "").strip(), environ.get("HF_TOKEN_FILE", "")
    if token and file:
        raise ConfigError("HF_TOKEN and HF_TOKEN_FILE are both set: which one?")
    if file:
        try:
            with open(file, encoding="utf-8") as opened:  # noqa: PTH123
                token = opened.read().strip()
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(
                f"HF_TOKEN_FILE={file} cannot be read: {getattr(error, 'strerror', error)}"
            ) from None
        if not token:
            raise ConfigError(f"HF_TOKEN_FILE={file} is empty")
    if token:
        if not token.isascii() or not token.isprintable() or " " in token:
            raise ConfigError("HF_TOKEN is no token: it has a space, a line break or a letter that none has")
        return token
    from huggingface_hub import get_token  # noqa: PLC0415

    return get_token()
