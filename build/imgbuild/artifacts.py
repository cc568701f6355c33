"""The wheelhouse of a registry: `REGISTRY/PATH/wheelhouse/<kernel>:<key>`, one OCI artifact an entry.

A manifest with one layer, the wheel; its configuration is the entry's
entry.json, its annotations are what a person asks first. Blobs go up before the
manifest, so a reader finds a whole artifact or none.

The distribution API is spoken with requests, and credentials are found by
docker's own package. The oras client for Python was tried (0.2.43): it waits
131 s before it says that nobody answers or that a login is missing, cannot log
in to a registry with plain passwords, and goes on with a token for reading when
it is time to write.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import ipaddress
import json
import re
import socket
import warnings
from pathlib import Path
from typing import IO, TYPE_CHECKING, Annotated, Any, Literal
from urllib.parse import urlencode, urljoin, urlsplit

import requests
from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError
from requests.utils import should_bypass_proxies

from imgbuild import __version__
from imgbuild.errors import ConfigError, RegistryError, VerificationError
from imgbuild.settings import read_settings
from imgbuild.wheelhouse import Record, UnsoundError, first_mistake

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from imgbuild.wheelhouse import Entry, Wheelhouse

CONFIG_TYPE = "application/vnd.imgbuild.kernel.config.v1+json"
WHEEL_TYPE = "application/vnd.imgbuild.kernel.wheel.v1+zip"
_MANIFEST_TYPE = "application/vnd.oci.image.manifest.v1+json"
_TITLE = "org.opencontainers.image.title"
_ESSENTIAL = ("source", "architectures", "platform", "python", "torch", "cuda", "gcc", "flags")
"""Components worth an annotation; the configuration has all of them."""
_TIMEOUT = (10.0, 120.0)  # seconds to connect, and of silence
_SMALL = 4_000_000  # bytes; registries take no larger manifest
_CHUNK = 1 << 20
_HOST = re.compile(r"(\[[0-9a-f:.]+\]|[A-Za-z0-9.-]+)(:[0-9]{1,5})?")
_PART = r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*"
_PATH = re.compile(rf"{_PART}(/{_PART})*")


class Artifacts:
    """The kernels that a registry holds.

    `where` is REGISTRY/PATH. A registry on loopback is spoken to by plain HTTP, every other by HTTPS. `env` says where
    docker's config.json, certificates and proxies are. Every failure is a RegistryError that names the artifact.
    """

    def __init__(self, where: str, *, env: Mapping[str, str]) -> None:
        host, _, path = where.rstrip("/").partition("/")
        is_host = _HOST.fullmatch(host) and (host == "localhost" or "." in host or ":" in host)
        if not is_host or (path and not _PATH.fullmatch(path)):
            raise ConfigError(
                f"{where!r} is no place in a registry",
                hint="write it as REGISTRY/PATH, the path in small letters, without https://",
            )
        self.where = f"{host}/{path}" if path else host
        self._host = host
        self._path = f"{path}/wheelhouse" if path else "wheelhouse"
        self._env = env
        self._absent: set[tuple[str, str]] = set()
        self.down = False
        """Whether it did not answer, or refused: nobody need ask again."""

    def name(self, kernel: str, key: str) -> str:
        return f"{self._host}/{self._path}/{kernel}:{key}"

    def exists(self, kernel: str, key: str) -> bool:
        with self._repository("pull", kernel, key) as repository:
            return repository.has_manifest(key)

    def push(self, entry: Entry, *, replace: bool = True) -> str | None:
        """Store an entry; return its manifest's digest. Equal entries have equal digests.

        Where the key is taken by another build, its tag moves to this one; without `replace` nothing is sent then,
        and the answer is None.
        """
        config = _json(entry.record.model_dump(mode="json"))
        manifest = _json(_manifest(entry, config).model_dump(mode="json", by_alias=True))
        with self._repository("push", entry.kernel, entry.key) as repository:
            if not replace and repository.has_manifest(entry.key):
                return None
            with entry.wheel.open("rb") as wheel:
                repository.upload(f"sha256:{entry.sha256}", wheel)
            repository.upload(_digest(config), config)
            repository.put_manifest(entry.key, manifest)
        self._absent.discard((entry.kernel, entry.key))
        return _digest(manifest)

    def pull(
        self, kernel: str, key: str, store: Wheelhouse, *, distribution: str | None = None
    ) -> Entry | None:
        """The store's entry of a key, brought from the registry where the store has none; None when neither has it.

        `distribution` is the name the wheel must have, where it is not the recorded one. DiskError when the disk is
        full; whatever goes wrong, the store is as it was.
        """
        if there := store.get(kernel, key, distribution=distribution):
            return there
        if (kernel, key) in self._absent:
            return None
        with self._repository("pull", kernel, key) as repository, store.work_folder() as work:
            raw = repository.manifest(key)
            if raw is None:
                self._absent.add((kernel, key))
                return None
            manifest = _Manifest.parse(raw)
            record = Record.parse(repository.read(manifest.config))
            layer = manifest.layers[0]
            if (record.kernel, record.key) != (kernel, key):
                raise UnsoundError(f"it holds {record.kernel} {record.key}")
            if (f"sha256:{record.sha256}", record.size) != (layer.digest, layer.size):
                raise UnsoundError("its layer is not the wheel that its configuration names")
            wheel = work / record.wheel
            with wheel.open("xb") as file:
                repository.download(layer, file)
            try:
                return store.put(
                    kernel,
                    record.version,
                    key,
                    wheel,
                    components=record.components,
                    inventory=record.inventory,
                    seconds=record.seconds,
                    peak_bytes=record.peak_bytes,
                    distribution=distribution or record.distribution,
                    made=record.made,
                )
            except VerificationError as e:
                raise UnsoundError(e.message) from None

    @contextlib.contextmanager
    def _repository(self, verb: Literal["pull", "push"], kernel: str, key: str) -> Iterator[_Repository]:
        """A connection; whatever fails in the body is told as one RegistryError."""
        name = self.name(kernel, key)
        again = f"imgbuild wheels {verb} --wheelhouse {self.where} --kernel {kernel}"
        again += f" {key}" if verb == "push" else " --all"
        actions = "pull,push" if verb == "push" else "pull"
        repository = _Repository(self._host, f"{self._path}/{kernel}", actions=actions, env=self._env)
        try:
            yield repository
        except _RefusedError as e:
            login = e.status in (_UNAUTHORISED, _FORBIDDEN)
            self.down = login
            raise RegistryError(
                f"{name}: {verb} refused: {e}",
                hint=f"docker login {self._host}, then: {again}" if login else again,
            ) from None
        except UnsoundError as e:
            raise RegistryError(
                f"{name} is corrupt: {e}",
                hint=f"compile it anew and push that over it: imgbuild wheels build --kernel {kernel}, "
                f"then: imgbuild wheels push --wheelhouse {self.where} --kernel {kernel} --force {key}",
            ) from None
        except requests.RequestException as e:
            self.down = True
            raise RegistryError(
                f"{name}: {verb} failed: {self._host} {_why(e)}", hint=_remedy(e, again)
            ) from None
        finally:
            repository.close()


class _RefusedError(Exception):
    """The registry answered, with a status that is no success."""

    def __init__(self, status: int, words: str) -> None:
        super().__init__(f"{words} (status {status})")
        self.status = status


_OK, _CREATED, _ACCEPTED, _UNAUTHORISED, _FORBIDDEN, _MISSING = 200, 201, 202, 401, 403, 404


class _Descriptor(BaseModel):
    model_config = ConfigDict(frozen=True, strict=True, populate_by_name=True)

    media_type: Annotated[str, Field(alias="mediaType")]
    digest: Annotated[str, StringConstraints(pattern=r"^sha256:[0-9a-f]{64}$")]
    size: Annotated[int, Field(ge=0)]
    annotations: dict[str, str] = {}


class _Manifest(BaseModel):
    """Of what imgbuild stores: the part of an OCI image manifest that it uses."""

    model_config = ConfigDict(frozen=True, strict=True, populate_by_name=True)

    schema_version: Annotated[Literal[2], Field(alias="schemaVersion")] = 2
    media_type: Annotated[Literal["application/vnd.oci.image.manifest.v1+json"], Field(alias="mediaType")] = (
        "application/vnd.oci.image.manifest.v1+json"
    )
    artifact_type: Annotated[Literal["application/vnd.imgbuild.kernel.v1"], Field(alias="artifactType")] = (
        "application/vnd.imgbuild.kernel.v1"
    )
    config: _Descriptor
    layers: tuple[_Descriptor]
    annotations: dict[str, str] = {}

    @classmethod
    def parse(cls, raw: bytes) -> _Manifest:
        """UnsoundError with the first mistake."""
        try:
            return cls.model_validate_json(raw)
        except ValidationError as e:
            raise UnsoundError(f"manifest: {first_mistake(e)}") from None


class _Repository:
    """One repository of a registry, by the OCI distribution API.

    Raises requests' own exceptions when the connection fails, _RefusedError for an answer that is no success, and
    UnsoundError for content that is not what its digest says.
    """

    def __init__(self, host: str, name: str, *, actions: str, env: Mapping[str, str]) -> None:
        self._host, self._name, self._actions, self._env = host, name, actions, env
        self._origin = f"{'http' if _on_loopback(host) else 'https'}://{host}"
        settings = read_settings(env)
        self._proxies = {
            variable.removesuffix("_PROXY").lower(): value
            for variable, value in settings.proxies
            if variable != "NO_PROXY"
        }
        self._no_proxy = dict(settings.proxies).get("NO_PROXY", "")
        self._session = requests.Session()
        self._session.trust_env = False  # `env` is the environment; and no password from a .netrc
        self._session.verify = str(settings.ca_bundle) if settings.ca_bundle else True
        self._session.headers.update({"User-Agent": f"imgbuild/{__version__}", "Accept-Encoding": "identity"})
        self._authorization: str | None = None

    def close(self) -> None:
        self._session.close()

    def has_manifest(self, tag: str) -> bool:
        answer = self._send("HEAD", self._url("manifests", tag), {_OK, _MISSING}, accept=_MANIFEST_TYPE)
        if answer.status_code == _OK and not answer.headers.get("Content-Type", "").startswith(
            "application/vnd."
        ):
            raise _RefusedError(_OK, "an answer, but not a registry's")
        return answer.status_code == _OK

    def manifest(self, tag: str) -> bytes | None:
        url = self._url("manifests", tag)
        with self._send("GET", url, {_OK, _MISSING}, accept=_MANIFEST_TYPE, stream=True) as answer:
            if answer.status_code == _MISSING:
                return None
            raw = b"".join(_limited(answer, _SMALL))
            named = answer.headers.get("Docker-Content-Digest", _digest(raw))
        if named != _digest(raw):
            raise UnsoundError("its manifest is not what its digest says")
        return raw

    def put_manifest(self, tag: str, manifest: bytes) -> None:
        self._send("PUT", self._url("manifests", tag), {_CREATED}, body=manifest, kind=_MANIFEST_TYPE)

    def read(self, blob: _Descriptor) -> bytes:
        """A small blob."""
        if blob.size > _SMALL:
            raise UnsoundError(f"a configuration of {blob.size} bytes")
        return b"".join(self._blob(blob))

    def download(self, blob: _Descriptor, file: IO[bytes]) -> None:
        for chunk in self._blob(blob):
            file.write(chunk)

    def upload(self, digest: str, body: bytes | IO[bytes]) -> None:
        """Store a blob, unless it is there."""
        if self._send("HEAD", self._url("blobs", digest), {_OK, _MISSING}).status_code == _OK:
            return
        begun = self._send("POST", self._url("blobs", "uploads/"), {_ACCEPTED}, body=b"")
        place = urljoin(f"{self._origin}/", begun.headers.get("Location", ""))
        if urlsplit(place).netloc == self._host:  # behind a proxy, some registries forget that they are HTTPS
            place = f"{self._origin}{place.removeprefix(f'{urlsplit(place).scheme}://{self._host}')}"
        place += ("&" if urlsplit(place).query else "?") + urlencode({"digest": digest})
        self._send("PUT", place, {_CREATED}, body=body, kind="application/octet-stream")

    def _blob(self, blob: _Descriptor) -> Iterator[bytes]:
        digest = hashlib.sha256()
        with self._send("GET", self._url("blobs", blob.digest), {_OK, _MISSING}, stream=True) as answer:
            if answer.status_code == _MISSING:
                raise UnsoundError(f"{blob.digest} is missing")
            for chunk in _limited(answer, blob.size):
                digest.update(chunk)
                yield chunk
        if blob.digest != f"sha256:{digest.hexdigest()}":
            raise UnsoundError(f"{blob.digest} has other bytes than its digest says")

    def _url(self, kind: str, name: str) -> str:
        return f"{self._origin}/v2/{self._name}/{kind}/{name}"

    def _send(
        self,
        method: str,
        url: str,
        good: set[int],
        *,
        body: bytes | IO[bytes] | None = None,
        kind: str | None = None,
        accept: str | None = None,
        stream: bool = False,
    ) -> requests.Response:
        """`good` are the statuses that are an answer. Logs in when the registry asks, and again when a token ends."""
        headers = {name: value for name, value in (("Content-Type", kind), ("Accept", accept)) if value}
        answer = self._once(method, url, headers, body, stream=stream)
        challenge = answer.headers.get("WWW-Authenticate")
        if challenge and answer.status_code in (_UNAUTHORISED, _FORBIDDEN):
            answer.close()
            self._authorization = self._log_in(challenge)
            answer = self._once(method, url, headers, body, stream=stream)
        if answer.status_code in good:
            return answer
        with answer:
            raise _RefusedError(answer.status_code, _words(answer))

    def _once(
        self,
        method: str,
        url: str,
        headers: Mapping[str, str],
        body: bytes | IO[bytes] | None,
        *,
        stream: bool,
    ) -> requests.Response:
        own = dict(headers)
        if self._authorization and url.startswith(f"{self._origin}/"):
            own["Authorization"] = self._authorization
        if body is not None and not isinstance(body, bytes):
            body.seek(0)
        return self._session.request(
            method,
            url,
            headers=own,
            data=body,
            stream=stream,
            timeout=_TIMEOUT,
            proxies=self._proxies_for(url),
            allow_redirects=method in ("GET", "HEAD"),
        )

    def _proxies_for(self, url: str) -> dict[str, str]:
        if not self._proxies or _on_loopback(urlsplit(url).netloc):
            return {}
        return {} if should_bypass_proxies(url, no_proxy=self._no_proxy) else self._proxies

    def _log_in(self, challenge: str) -> str | None:
        """The Authorization header that a WWW-Authenticate header asks for; None when there is no login."""
        scheme, _, rest = challenge.partition(" ")
        login = _login(self._host, self._env)
        match scheme.lower():
            case "basic":
                return _basic(login) if "username" in login else None
            case "bearer":
                asked = dict(re.findall(r'(\w+)="([^"]*)"', rest))
                return f"Bearer {self._token(asked, login)}"
            case _:
                raise _RefusedError(
                    _UNAUTHORISED, f"a login of the kind {scheme!r} is asked for, which is not known"
                )

    def _token(self, asked: Mapping[str, str], login: Mapping[str, str]) -> str:
        realm = asked.get("realm", "")
        if urlsplit(realm).scheme != "https" and not _on_loopback(self._host):
            raise _RefusedError(_UNAUTHORISED, f"logins are asked for at {realm!r}, which is not HTTPS")
        # Our own scope and not the one asked for: a token for reading would have to be replaced for writing.
        words = {"service": asked.get("service", ""), "scope": f"repository:{self._name}:{self._actions}"}
        common: dict[str, Any] = {"timeout": _TIMEOUT, "proxies": self._proxies_for(realm)}
        if identity := login.get("identitytoken"):
            words |= {"grant_type": "refresh_token", "refresh_token": identity, "client_id": "imgbuild"}
            answer = self._session.post(realm, data=words, **common)
        else:
            headers = {"Authorization": _basic(login)} if "username" in login else {}
            answer = self._session.get(realm, params=words, headers=headers, **common)
        if answer.status_code != _OK:
            raise _RefusedError(answer.status_code, f"no token: {_words(answer)}")
        try:
            given = answer.json()
            return str(given.get("token") or given["access_token"])
        except (ValueError, KeyError, AttributeError):
            raise _RefusedError(_OK, "no token: an answer, but not a token server's") from None


def _manifest(entry: Entry, config: bytes) -> _Manifest:
    components = {
        f"imgbuild.component.{name}": entry.components[name]
        for name in _ESSENTIAL
        if name in entry.components
    }
    return _Manifest(
        config=_Descriptor(media_type=CONFIG_TYPE, digest=_digest(config), size=len(config)),
        layers=(
            _Descriptor(
                media_type=WHEEL_TYPE,
                digest=f"sha256:{entry.sha256}",
                size=entry.size,
                annotations={_TITLE: entry.wheel.name},
            ),
        ),
        annotations={
            _TITLE: f"{entry.kernel} {entry.version}",
            "org.opencontainers.image.created": entry.made,
            "org.opencontainers.image.version": entry.version,
            "imgbuild.kernel": entry.kernel,
            "imgbuild.key": entry.key,
            "imgbuild.platform": entry.platform,
            "imgbuild.code": " ".join(entry.arches) or "none",
            "imgbuild.build.seconds": f"{entry.seconds:.0f}",
            "imgbuild.build.peak-bytes": str(entry.peak_bytes),
            **components,
        },
    )


def _limited(answer: requests.Response, size: int) -> Iterator[bytes]:
    """The body, of which no more than `size` bytes are read."""
    for chunk in answer.iter_content(_CHUNK):
        size -= len(chunk)
        if size < 0:
            raise UnsoundError("the registry sends more than it announced")
        yield chunk


def _login(host: str, env: Mapping[str, str]) -> dict[str, str]:
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


def _basic(login: Mapping[str, str]) -> str:
    pair = f"{login['username']}:{login.get('password', '')}"
    return f"Basic {base64.b64encode(pair.encode()).decode()}"


def _on_loopback(host: str) -> bool:
    name = urlsplit(f"//{host}").hostname or ""
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return name == "localhost" or name.endswith(".localhost")


def _words(answer: requests.Response) -> str:
    """What a registry says of an error, on one line."""
    try:
        said = "; ".join(str(e.get("message") or e["code"]) for e in answer.json()["errors"])
    except (ValueError, KeyError, TypeError, AttributeError):
        said = ""
    return re.sub(r"[\x00-\x1f\x7f-\x9f]+", " ", said or answer.reason or "no reason given")[:300]


def _why(error: requests.RequestException) -> str:
    """The end of a sentence that begins with the registry's name."""
    cause = _root(error)
    match error:
        case requests.exceptions.SSLError():
            why = "has a certificate that is not trusted here"
        case requests.exceptions.ProxyError():
            why = "cannot be reached through the proxy"
        case requests.exceptions.ConnectTimeout():
            why = f"did not answer within {_TIMEOUT[0]:.0f} s"
        case requests.exceptions.Timeout():
            why = f"fell silent for {_TIMEOUT[1]:.0f} s"
        case _ if isinstance(cause, ConnectionRefusedError):
            why = "does not run: the connection was refused"
        case _ if isinstance(cause, socket.gaierror):
            why = "is a name that is not known"
        case requests.exceptions.ConnectionError() | requests.exceptions.ChunkedEncodingError():
            reason = getattr(cause, "strerror", None)
            why = f"broke the connection{f' ({reason})' if reason else ''}"
        case _:
            why = f"cannot be asked: {error}"
    return why


def _remedy(error: requests.RequestException, again: str) -> str:
    if isinstance(error, requests.exceptions.SSLError):
        return f"name the bundle with its certificate in SSL_CERT_FILE, then: {again}"
    return f"see that it runs, then: {again}"


def _root(error: BaseException) -> BaseException:
    """The exception at the bottom of what requests and urllib3 wrapped."""
    inner = getattr(error, "reason", None) or error.__cause__ or next(iter(error.args[::-1]), None)
    return _root(inner) if isinstance(inner, BaseException) else error


def _json(data: Any) -> bytes:
    return json.dumps(data, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()


def _digest(content: bytes) -> str:
    return f"sha256:{hashlib.sha256(content).hexdigest()}"
