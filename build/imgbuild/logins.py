"""Logins of registries: what `docker login` left, and the headers that registries ask for."""

from __future__ import annotations

import base64
import re
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

from imgbuild.errors import RegistryError
from imgbuild.refusals import UNAUTHORISED, RefusedError, words

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import Protocol

    import requests

    class _Ask(Protocol):
        def __call__(self, method: str, url: str, **more: object) -> requests.Response: ...


_OK = 200


def find_login(host: str, env: Mapping[str, str]) -> dict[str, str]:
    """What `docker login` left: username and password, or identitytoken; empty when there is nothing."""
    from docker import auth, errors  # noqa: PLC0415  (only where a registry asks)

    folder = env.get("DOCKER_CONFIG") or str(Path(env.get("HOME", "/root")) / ".docker")
    file = Path(folder) / "config.json"
    if not file.is_file():
        return {}
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that a helper is missing: the exception says so too
            found = auth.load_config(str(file), credstore_env=dict(env)).resolve_authconfig(host) or {}
    except (errors.DockerException, OSError, ValueError, LookupError, AttributeError, TypeError) as e:
        raise RegistryError(
            f"the login for {host} cannot be read by way of {file}: {e}", hint=f"docker login {host}"
        ) from None
    return {name.lower(): value for name, value in found.items() if isinstance(value, str) and value}


def authorization(
    challenge: str, login: Mapping[str, str], scopes: Sequence[str], *, plain: bool, ask: _Ask
) -> str | None:
    """The Authorization header that a WWW-Authenticate header asks for; None when there is no login.

    `scopes` are what a token has to be good for: our own and not the one asked for, because a token for reading would
    have to be replaced for writing. `plain` allows a login to go over plain HTTP; `ask` sends a request.
    """
    scheme, _, rest = challenge.partition(" ")
    match scheme.lower():
        case "basic":
            return basic(login) if "username" in login else None
        case "bearer":
            asked = dict(re.findall(r'(\w+)="([^"]*)"', rest))
            return f"Bearer {_token(asked, login, scopes, plain=plain, ask=ask)}"
        case _:
            raise RefusedError(
                UNAUTHORISED, f"a login of the kind {scheme!r} is asked for, which is not known"
            )


def basic(login: Mapping[str, str]) -> str:
    pair = f"{login['username']}:{login.get('password', '')}"
    return f"Basic {base64.b64encode(pair.encode()).decode()}"


def _token(
    asked: Mapping[str, str], login: Mapping[str, str], scopes: Sequence[str], *, plain: bool, ask: _Ask
) -> str:
    realm = asked.get("realm", "")
    if not realm.startswith("https://") and not plain:
        raise RefusedError(UNAUTHORISED, f"logins are asked for at {realm!r}, which is not HTTPS")
    query: dict[str, object] = {"service": asked.get("service", ""), "scope": list(scopes)}
    if identity := login.get("identitytoken"):
        own = {"grant_type": "refresh_token", "refresh_token": identity, "client_id": "imgbuild"}
        answer = ask("POST", realm, data=query | {"scope": " ".join(scopes)} | own)
    else:
        headers = {"Authorization": basic(login)} if "username" in login else {}
        answer = ask("GET", realm, params=query, headers=headers)
    if answer.status_code != _OK:
        raise RefusedError(answer.status_code, f"no token: {words(answer)}")
    try:
        given = answer.json()
        return str(given.get("token") or given["access_token"])
    except (ValueError, KeyError, AttributeError):
        raise RefusedError(_OK, "no token: an answer, but not a token server's") from None
