"""The settings of the machine that builds: certificates, proxies, package index, wheel folders.

They reach a build as secret files only. Nothing of them may end in a layer,
a label, a history entry or an attestation.
"""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit

from imgbuild.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Mapping

_CA_VARIABLES = ("SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "PIP_CERT", "CURL_CA_BUNDLE")
_PROXY_VARIABLES = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY")
_CA_IN_BUILD = "/run/secrets/ca"


@dataclass(frozen=True, kw_only=True)
class Settings:
    ca_bundle: Path | None = None
    proxies: tuple[tuple[str, str], ...] = ()
    """(variable, value); a value may hold a password."""
    index: str | None = None
    extra_indexes: tuple[str, ...] = ()
    find_links: tuple[str, ...] = ()
    """Folders, or addresses of pages, with wheels."""

    @property
    def wheel_folders(self) -> tuple[Path, ...]:
        return tuple(
            Path(f.removeprefix("file://"))
            for f in self.find_links
            if "://" not in f or f.startswith("file://")
        )

    def environment(self, env: Mapping[str, str]) -> dict[str, str]:
        """`env` with these settings in the spelling of uv and of pip."""
        own = self._variables(str(self.ca_bundle) if self.ca_bundle else None, self.find_links)
        if self.ca_bundle:
            own["GIT_SSL_CAINFO"] = str(self.ca_bundle)
        return {**env, **own, "GIT_TERMINAL_PROMPT": "0"}

    def secret(self) -> str:
        """What a build step sources: `export NAME='value'` lines. Empty when there is nothing to say."""
        remote = tuple(f for f in self.find_links if "://" in f and not f.startswith("file://"))
        variables = self._variables(_CA_IN_BUILD if self.ca_bundle else None, remote)
        return "".join(f"export {name}={shlex.quote(value)}\n" for name, value in sorted(variables.items()))

    def _variables(self, ca: str | None, find_links: tuple[str, ...]) -> dict[str, str]:
        found: dict[str, str] = {}
        for name, value in self.proxies:
            found[name] = found[name.lower()] = value
        if ca:
            found.update(dict.fromkeys(_CA_VARIABLES, ca))
        if self.index:
            found["PIP_INDEX_URL"] = found["UV_DEFAULT_INDEX"] = self.index
        if self.extra_indexes:
            found["UV_INDEX"] = " ".join(self.extra_indexes)
            # uv lets an index have a name; pip would take it for a part of the address, and print it.
            found["PIP_EXTRA_INDEX_URL"] = " ".join(
                re.sub(r"^[\w.-]+=(?=\w+://)", "", x) for x in self.extra_indexes
            )
            # As pip does: the best version of all indexes. Hashes decide what may be installed.
            found["UV_INDEX_STRATEGY"] = "unsafe-best-match"
        if find_links:
            found["PIP_FIND_LINKS"] = " ".join(find_links)
            found["UV_FIND_LINKS"] = ",".join(find_links)
        return found

    def credentials(self, host: str) -> tuple[str, str] | None:
        """User and password of the configured index on a host."""
        for address in filter(None, (self.index, *self.extra_indexes)):
            parts = urlsplit(re.sub(r"^[\w.-]+=(?=\w+://)", "", address))
            if parts.hostname == host and parts.username is not None:
                return unquote(parts.username), unquote(parts.password or "")
        return None

    def words(self) -> tuple[str, ...]:
        """Every text that must not be found in an image: hosts with credentials, proxies, paths."""
        found = {value for name, value in self.proxies if name != "NO_PROXY"}
        found.update(filter(None, (self.index, *self.extra_indexes, *self.find_links)))
        return tuple(sorted(found))


def read_settings(env: Mapping[str, str], *, wheels: tuple[Path, ...] = ()) -> Settings:
    """Detect the settings in the environment; `wheels` are folders named on the command line."""
    ca = next((Path(env[name]) for name in _CA_VARIABLES if env.get(name)), None)
    if ca is not None:
        _check_readable(ca, next(name for name in _CA_VARIABLES if env.get(name)))
    for folder in wheels:
        if not folder.is_dir():
            raise ConfigError(f"--wheels {folder}: there is no such folder")
    proxies = tuple(
        (name, value) for name in _PROXY_VARIABLES if (value := env.get(name) or env.get(name.lower()))
    )
    links = [str(folder.resolve()) for folder in wheels]
    links += env.get("PIP_FIND_LINKS", "").split() + _commas(env.get("UV_FIND_LINKS", ""))
    extra = env.get("PIP_EXTRA_INDEX_URL", "").split()
    extra += env.get("UV_INDEX", "").split() + env.get("UV_EXTRA_INDEX_URL", "").split()
    return Settings(
        ca_bundle=ca,
        proxies=proxies,
        index=env.get("UV_DEFAULT_INDEX") or env.get("UV_INDEX_URL") or env.get("PIP_INDEX_URL") or None,
        extra_indexes=tuple(dict.fromkeys(extra)),
        find_links=tuple(dict.fromkeys(link for link in links if "://" in link or Path(link).is_dir())),
    )


def _commas(text: str) -> list[str]:
    return [part for word in text.split(",") for part in word.split()]


def _check_readable(ca: Path, variable: str) -> None:
    try:
        text = ca.read_bytes()
    except OSError as e:
        raise ConfigError(
            f"the certificate bundle {ca} ({variable}) cannot be read: {e.strerror}",
            hint=f"mend or unset {variable}",
        ) from None
    if b"BEGIN CERTIFICATE" not in text:
        raise ConfigError(
            f"the certificate bundle {ca} ({variable}) holds no certificate",
            hint=f"{variable} must name a PEM file",
        )
