"""The name of an image in a registry: HOST/PATH, then :TAG or @DIGEST or both."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

from imgbuild.errors import ConfigError

_HOST = re.compile(r"(\[[0-9a-f:.]+\]|[A-Za-z0-9.-]+)(:[0-9]{1,5})?")
_PART = r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*"
_PATH = re.compile(rf"{_PART}(/{_PART})*")
_TAG = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}")
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
_LONGEST_PATH = 255
_HUB = "docker.io"
_HUB_API = "registry-1.docker.io"


@dataclass(frozen=True, kw_only=True)
class Reference:
    """An image, or several of one repository. Where both are given, the digest decides and the tag is for people."""

    host: str
    path: str
    tag: str | None = None
    digest: str | None = None

    @classmethod
    def parse(cls, text: str, *, tag: str | None = None) -> Reference:
        """`tag` is taken where the text has neither tag nor digest. ConfigError says what is wrong with a text.

        The registry is never guessed: a first part without a dot or a port is a folder of Docker Hub to docker and a
        mistake here, because what is read and written should not depend on who reads it.
        """
        name, at, digest = text.partition("@")
        host, slash, rest = name.partition("/")
        path, colon, named = rest.partition(":")
        if "://" in text:
            raise _wrong(text, f"without {text.partition('://')[0]}://")
        if not slash or not is_host(host):
            raise _wrong(
                text, f"its registry's name first; on Docker Hub it would be {_HUB}/{_hub_path(name)}"
            )
        path = _hub_path(path) if host == _HUB else path
        if not is_path(path):
            raise _wrong(text, "the path in small letters and digits, its parts joined by / . _ or -")
        if colon and not _TAG.fullmatch(named):
            raise _wrong(
                text, f"the tag in letters, digits, _ . and -, at most 128 of them; {named!r} is no tag"
            )
        if at and not _DIGEST.fullmatch(digest):
            raise _wrong(text, f"the digest as sha256: and 64 hexadecimal digits; {digest!r} is none")
        found = cls(host=host, path=path, tag=named or None, digest=digest or None)
        return replace(found, tag=tag) if tag and not (found.tag or found.digest) else found

    @property
    def repository(self) -> str:
        return f"{self.host}/{self.path}"

    @property
    def name(self) -> str:
        """What the registry is asked for: the digest, or the tag, or docker's `latest`."""
        return self.digest or self.tag or "latest"

    def __str__(self) -> str:
        return (
            self.repository
            + (f":{self.tag}" if self.tag else "")
            + (f"@{self.digest}" if self.digest else "")
        )

    def tagged(self, tag: str) -> Reference:
        return replace(self, tag=tag, digest=None)

    def at(self, digest: str) -> Reference:
        return replace(self, tag=None, digest=digest)


def image_in(registry: str, image: str) -> Reference:
    """Where REGISTRY/PATH has the image of that name; a path that ends with the name is the image's own already.

    What `--registry` takes, for who writes and for who reads. ConfigError says what is wrong with it.
    """
    host, _, path = registry.rstrip("/").partition("/")
    if is_host(host) and ("@" in path or ":" in path):
        bare = re.split("[@:]", path, maxsplit=1)[0]
        raise ConfigError(
            f"--registry {registry}: without a tag; each target has its own",
            hint=f"--registry {host}/{bare}",
        )
    if not is_host(host) or (path and not is_path(path)):
        raise ConfigError(
            f"--registry {registry!r} is no place in a registry",
            hint="write it as REGISTRY/PATH, the path in small letters, without https://",
        )
    own = path == image or path.endswith(f"/{image}")
    return Reference(host=host, path=path if own else "/".join(filter(None, (path, image))))


def is_host(text: str) -> bool:
    """Whether a text can only be a registry: it has a dot or a port, or is localhost."""
    return bool(_HOST.fullmatch(text)) and (text == "localhost" or "." in text or ":" in text)


def is_path(text: str) -> bool:
    return bool(_PATH.fullmatch(text)) and len(text) <= _LONGEST_PATH


def is_tag(text: str) -> bool:
    return bool(_TAG.fullmatch(text))


def api_host(host: str) -> str:
    """Where a registry's API is: Docker Hub's goes by another name than its images do."""
    return _HUB_API if host == _HUB else host


def _hub_path(path: str) -> str:
    return path if "/" in path else f"library/{path}"


def _wrong(text: str, how: str) -> ConfigError:
    return ConfigError(
        f"{text!r} is no image in a registry: write it as REGISTRY/PATH:TAG or REGISTRY/PATH@DIGEST, {how}"
    )
