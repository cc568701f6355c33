from __future__ import annotations

import base64
import contextlib
import errno
import hashlib
import http.server
import json
import os
import re
import shutil
import socket
import subprocess
import threading
import time
import urllib.request
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pytest
from test_wheelhouse import FACTS, KEY, OTHER, imgbuild, make_wheel, store, tree, wheel  # noqa: F401

from imgbuild import artifacts
from imgbuild.artifacts import Artifacts
from imgbuild.errors import ConfigError, DiskError, RegistryError
from imgbuild.transport import Patience
from imgbuild.wheelhouse import Wheelhouse

TITLE = "org.opencontainers.image.title"


@pytest.fixture
def entry(store, wheel):  # noqa: F811
    return store.put("sageattention", "2.2.0", KEY, wheel, **FACTS)


@pytest.fixture
def second(tmp_path):
    """Another machine's empty store."""
    return Wheelhouse(tmp_path / "second", say=pytest.fail)


@pytest.fixture
def env(tmp_path):
    return {"HOME": str(tmp_path), "PATH": os.environ["PATH"]}


# A registry in some lines, that can be told to misbehave


class Fake(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_args):
        pass

    def handle_one_request(self):
        with contextlib.suppress(ConnectionError):
            super().handle_one_request()

    def answer(self, status, body=b"", *, length=None, **headers):
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(body) if length is None else length))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def refuse(self, status, code="DENIED", message="no, says the registry", **headers):
        self.answer(status, json.dumps({"errors": [{"code": code, "message": message}]}).encode(), **headers)

    def do_any(self):
        state = self.server.state
        state.asked.append(f"{self.command} {self.path}")
        if state.misbehave and state.misbehave(self):
            return
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        place, query = urlsplit(self.path).path, parse_qs(urlsplit(self.path).query)
        kind = place.rpartition("/")[0]
        match self.command, kind.rpartition("/")[2]:
            case "GET" | "HEAD", "blobs" | "manifests":
                held = state.held.get(place)
                if held is None:
                    self.refuse(404, "UNKNOWN", "not here")
                else:
                    kind = "manifests" in place and "application/vnd.oci.image.manifest.v1+json"
                    self.answer(200, held, Content_Type=kind or "application/octet-stream")
            case "POST", "uploads":
                self.answer(202, Location=f"{place}1?state=x")
            case "PUT", "uploads":
                digest = query["digest"][0]
                if digest != f"sha256:{hashlib.sha256(body).hexdigest()}":
                    self.refuse(400, "DIGEST_INVALID", "provided digest did not match uploaded content")
                else:
                    state.held[f"{kind.removesuffix('/uploads')}/{digest}"] = body
                    self.answer(201)
            case "PUT", "manifests":
                state.held[place] = body
                self.answer(201)
            case _:
                self.refuse(405)

    do_GET = do_HEAD = do_POST = do_PUT = do_any  # noqa: N815


class State:
    def __init__(self):
        self.held, self.asked, self.misbehave, self.where = {}, [], None, ""

    def blobs(self):
        return {place: body for place, body in self.held.items() if "/blobs/" in place}


@pytest.fixture
def fake():
    state = State()
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Fake) as server:
        server.state, server.daemon_threads = state, True
        state.where = f"127.0.0.1:{server.server_port}/comfyui"
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        yield state
        server.shutdown()


PLACE = "/v2/comfyui/wheelhouse/sageattention"


@pytest.fixture
def pushed(fake, entry, env):
    Artifacts(fake.where, env=env).push(entry)
    return fake


def rewrite(state, change_config=None, change_manifest=None, wheel=None):  # noqa: F811
    """Store another artifact under the key, whose digests agree."""
    raw = state.held[f"{PLACE}/manifests/{KEY}"]
    manifest = json.loads(raw)
    config = json.loads(state.held[f"{PLACE}/blobs/{manifest['config']['digest']}"])
    if wheel is not None:
        digest = hashlib.sha256(wheel).hexdigest()
        config |= {"sha256": digest, "size": len(wheel)}
        manifest["layers"][0] |= {"digest": f"sha256:{digest}", "size": len(wheel)}
        state.held[f"{PLACE}/blobs/sha256:{digest}"] = wheel
    config |= change_config or {}
    body = json.dumps(config).encode()
    digest = f"sha256:{hashlib.sha256(body).hexdigest()}"
    state.held[f"{PLACE}/blobs/{digest}"] = body
    manifest["config"] |= {"digest": digest, "size": len(body)}
    manifest |= change_manifest or {}
    state.held[f"{PLACE}/manifests/{KEY}"] = json.dumps(manifest).encode()


# What an artifact is


def test_push(fake, entry, env):
    registry = Artifacts(fake.where, env=env)
    assert not registry.exists("sageattention", KEY)
    digest = registry.push(entry)
    raw = fake.held[f"{PLACE}/manifests/{KEY}"]
    assert digest == f"sha256:{hashlib.sha256(raw).hexdigest()}"
    assert registry.exists("sageattention", KEY)
    assert registry.name("sageattention", KEY) == f"{fake.where}/wheelhouse/sageattention:{KEY}"
    manifest = json.loads(raw)
    assert manifest["artifactType"] == "application/vnd.imgbuild.kernel.v1"
    (layer,) = manifest["layers"]
    assert layer["annotations"] == {TITLE: entry.wheel.name}
    assert fake.held[f"{PLACE}/blobs/{layer['digest']}"] == entry.wheel.read_bytes()
    config = json.loads(fake.held[f"{PLACE}/blobs/{manifest['config']['digest']}"])
    assert config == json.loads((entry.wheel.parent / "entry.json").read_text())
    assert manifest["annotations"] == {
        TITLE: "sageattention 2.2.0",
        "org.opencontainers.image.created": entry.made,
        "org.opencontainers.image.version": "2.2.0",
        "imgbuild.kernel": "sageattention",
        "imgbuild.key": KEY,
        "imgbuild.platform": "linux/arm64",
        "imgbuild.code": "compute_90 sm_121a",
        "imgbuild.build.seconds": "578",
        "imgbuild.build.peak-bytes": "5000000000",
        "imgbuild.component.torch": "2.13.0",
        "imgbuild.component.python": "3.13",
    }


def test_blobs_go_first_and_only_once(pushed, entry, env):
    sent = [a.split("?")[0] for a in pushed.asked if a.startswith("PUT")]
    assert sent == [f"PUT {PLACE}/blobs/uploads/1"] * 2 + [f"PUT {PLACE}/manifests/{KEY}"]
    pushed.asked.clear()
    held = dict(pushed.held)
    Artifacts(pushed.where, env=env).push(entry)
    assert [a for a in pushed.asked if "uploads" in a] == []
    assert pushed.held == held, "equal entries are equal artifacts"


def test_pull(pushed, entry, second, env):
    registry = Artifacts(pushed.where, env=env)
    found = registry.pull("sageattention", KEY, second, distribution="sageattention")
    assert found == second.get("sageattention", KEY)
    assert found.record == entry.record
    assert found.wheel.read_bytes() == entry.wheel.read_bytes()
    assert len(tree(second.folder)) == 4
    pushed.asked.clear()
    assert registry.pull("sageattention", KEY, second) == found
    assert pushed.asked == [], "what is here is not asked for"


def test_pull_of_what_is_not_there(fake, second, env):
    assert Artifacts(fake.where, env=env).pull("sageattention", KEY, second) is None
    assert tree(second.folder) == []


def test_kernel_of_another_name(fake, store, second, tmp_path, env):  # noqa: F811
    probe = make_wheel(tmp_path, "imgbuild-probe", "1.0.0")
    entry = store.put("probe", "1.0.0", KEY, probe, distribution="imgbuild-probe", **FACTS)
    registry = Artifacts(fake.where, env=env)
    registry.push(entry)
    with pytest.raises(RegistryError, match=r"is corrupt: .* says imgbuild-probe, not other"):
        registry.pull("probe", KEY, second, distribution="other")
    assert registry.pull("probe", KEY, second).distribution == "imgbuild-probe"


# What comes from a registry is not believed


def _blob(which):
    def change(state, body):
        manifest = json.loads(state.held[f"{PLACE}/manifests/{KEY}"])
        digest = manifest["config" if which == "config" else "layers"]
        digest = digest["digest"] if which == "config" else digest[0]["digest"]
        place = f"{PLACE}/blobs/{digest}"
        state.held[place] = body(state.held[place])
        if state.held[place] is None:
            del state.held[place]

    return change


_LAYER, _CONFIG = _blob("layer"), _blob("config")
NOT_RECORDED = {"more": [("evil.pth", b"import os")]}

CORRUPT = {
    "flipped byte": (lambda s, _: _LAYER(s, lambda b: b[:50] + bytes([b[50] ^ 1]) + b[51:]), "other bytes"),
    "truncated": (lambda s, _: _LAYER(s, lambda b: b[:-9]), "other bytes"),
    "longer": (lambda s, _: _LAYER(s, lambda b: b + b"!"), "sends more than it announced"),
    "no layer": (lambda s, _: _LAYER(s, lambda _: None), "sha256:.* is missing"),
    "no config": (lambda s, _: _CONFIG(s, lambda _: None), "sha256:.* is missing"),
    "other config": (lambda s, _: _CONFIG(s, lambda b: b.replace(b"578", b"579")), "other bytes"),
    "a web page": (
        lambda s, _: s.held.update({f"{PLACE}/manifests/{KEY}": b"<html>"}),
        "manifest: Invalid JSON",
    ),
    "an image": (
        lambda s, _: rewrite(s, change_manifest={"artifactType": "application/vnd.other"}),
        "manifest: artifactType: ",
    ),
    "no layers": (lambda s, _: rewrite(s, change_manifest={"layers": []}), "manifest: layers"),
    "a huge config": (
        lambda s, _: rewrite(
            s, change_manifest={"config": {"mediaType": "x", "digest": "sha256:" + "0" * 64, "size": 10**9}}
        ),
        "a configuration of 1000000000 bytes",
    ),
    "config of another kernel": (
        lambda s, _: rewrite(s, {"kernel": "flash-attn"}),
        f"it holds flash-attn {KEY}",
    ),
    "config of another key": (lambda s, _: rewrite(s, {"key": OTHER}), f"it holds sageattention {OTHER}"),
    "config of another wheel": (lambda s, _: rewrite(s, {"sha256": "0" * 64}), "not the wheel that"),
    "config of no use": (lambda s, _: rewrite(s, {"size": "x"}), "entry.json: size: "),
    "a path": (lambda s, _: rewrite(s, {"wheel": "../../x.whl"}), "entry.json: wheel: "),
    "a wheel of another name": (
        lambda s, t: rewrite(s, wheel=make_wheel(t, "flash-attn", "2.2.0").read_bytes()),
        "METADATA says flash-attn",
    ),
    "a wheel with more than it records": (
        lambda s, t: rewrite(s, wheel=make_wheel(t, **NOT_RECORDED).read_bytes()),
        "no hash of evil.pth",
    ),
}


@pytest.mark.parametrize(("spoil", "says"), CORRUPT.values(), ids=CORRUPT)
def test_corrupt_artifact(pushed, entry, second, env, tmp_path, spoil, says):
    spoil(pushed, tmp_path / "spoilt")
    with pytest.raises(RegistryError, match=f"is corrupt: .*{says}") as caught:
        Artifacts(pushed.where, env=env).pull("sageattention", KEY, second)
    assert f"{pushed.where}/wheelhouse/sageattention:{KEY} is corrupt" in str(caught.value)
    assert "imgbuild wheels push --wheelhouse" in caught.value.hint
    assert tree(second.folder) == []
    pushed.held.clear()
    Artifacts(pushed.where, env=env).push(entry)
    assert Artifacts(pushed.where, env=env).pull("sageattention", KEY, second)


def test_manifest_that_is_not_its_digest(pushed, second, env):
    body = pushed.held[f"{PLACE}/manifests/{KEY}"]

    def lie(handler):
        if "/manifests/" not in handler.path:
            return False
        handler.answer(200, body, Docker_Content_Digest="sha256:" + "0" * 64)
        return True

    pushed.misbehave = lie
    with pytest.raises(RegistryError, match="its manifest is not what its digest says"):
        Artifacts(pushed.where, env=env).pull("sageattention", KEY, second)


def test_disk_full_while_pulling(pushed, second, env, monkeypatch):
    def full(_self, _blob, _file):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(artifacts.Repository, "download", full)
    with pytest.raises(DiskError):
        Artifacts(pushed.where, env=env).pull("sageattention", KEY, second)
    assert tree(second.folder) == []


def test_interrupted_while_pulling(pushed, second, env, monkeypatch):
    def interrupted(_self, _blob, file):
        file.write(b"PK")
        raise KeyboardInterrupt

    monkeypatch.setattr(artifacts.Repository, "download", interrupted)
    with pytest.raises(KeyboardInterrupt):
        Artifacts(pushed.where, env=env).pull("sageattention", KEY, second)
    assert tree(second.folder) == []


# Registries that fail


def dies_at(method, part, *, after=0):
    """Close the connection at a request, having read some of its body."""

    def misbehave(handler):
        if handler.command != method or part not in handler.path:
            return False
        handler.rfile.read(after)
        handler.connection.shutdown(socket.SHUT_RDWR)
        handler.close_connection = True
        return True

    return misbehave


@pytest.mark.parametrize(
    ("method", "part"),
    [("HEAD", "/blobs/"), ("POST", "/uploads/"), ("PUT", "/uploads/"), ("PUT", "/manifests/")],
)
def test_registry_dies_in_the_middle_of_a_push(fake, store, entry, second, env, method, part):  # noqa: F811
    before = tree(store.folder)
    fake.misbehave = dies_at(method, part, after=100 if method == "PUT" else 0)
    registry = Artifacts(fake.where, env=env)
    begun = time.monotonic()
    with pytest.raises(RegistryError) as caught:
        registry.push(entry)
    assert time.monotonic() - begun < 5
    assert f"sageattention:{KEY}: push failed: {fake.where.partition('/')[0]} broke the connection" in str(
        caught.value
    )
    assert caught.value.hint.endswith(
        f"imgbuild wheels push --wheelhouse {fake.where} --kernel sageattention {KEY}"
    )
    assert "\n" not in str(caught.value)
    assert tree(store.folder) == before
    assert store.get("sageattention", KEY) == entry
    fake.misbehave = None
    assert registry.pull("sageattention", KEY, second) is None, "no reader sees half an artifact"
    registry.push(entry)
    assert registry.pull("sageattention", KEY, second).sha256 == entry.sha256


def test_registry_dies_in_the_middle_of_a_pull(pushed, entry, second, env):
    def half(handler):
        if entry.sha256 not in handler.path:
            return False
        body = entry.wheel.read_bytes()
        handler.answer(200, body[: len(body) // 2], length=len(body))
        handler.connection.shutdown(socket.SHUT_RDWR)
        handler.close_connection = True
        return True

    pushed.misbehave = half
    with pytest.raises(RegistryError, match=r"pull failed: .* broke the connection"):
        Artifacts(pushed.where, env=env).pull("sageattention", KEY, second)
    assert tree(second.folder) == []


def test_registry_that_does_not_run(entry, second, env, unused_port):
    registry = Artifacts(f"localhost:{unused_port}/x", env=env)
    begun = time.monotonic()
    for call in (
        lambda: registry.push(entry),
        lambda: registry.pull("sageattention", KEY, second),
        lambda: registry.exists("sageattention", KEY),
    ):
        with pytest.raises(
            RegistryError, match=f"localhost:{unused_port} does not run: the connection was refused"
        ):
            call()
    assert time.monotonic() - begun < 5


def test_name_that_is_not_known(entry, env, monkeypatch):
    def unknown(*_args, **_more):
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    with pytest.raises(RegistryError, match=r"registry\.invalid is a name that is not known"):
        Artifacts("registry.invalid/x", env=env).push(entry)


def test_silent_registry(fake, entry, env, monkeypatch):
    monkeypatch.setattr(artifacts, "AT_ONCE", Patience(tries=1, connect=1.0, silence=0.2))
    fake.misbehave = lambda _handler: time.sleep(1) or False
    with pytest.raises(RegistryError, match="fell silent"):
        Artifacts(fake.where, env=env).push(entry)


@pytest.mark.parametrize(
    ("status", "says"),
    [(403, "no, says the registry"), (413, "no, says"), (500, "no, says"), (507, "no, says")],
)
def test_refused(fake, store, entry, env, status, says):  # noqa: F811
    fake.misbehave = lambda h: h.command == "POST" and (h.refuse(status) or True)
    with pytest.raises(RegistryError, match=rf"push refused: {says}.* \(status {status}\)") as caught:
        Artifacts(fake.where, env=env).push(entry)
    assert ("docker login" in caught.value.hint) == (status == 403)
    assert store.get("sageattention", KEY) == entry


def test_words_of_a_registry_stay_on_one_line(fake, entry, env):
    fake.misbehave = lambda h: h.command == "POST" and (h.refuse(500, message="a\n\x1b[31mb" * 200) or True)
    with pytest.raises(RegistryError) as caught:
        Artifacts(fake.where, env=env).push(entry)
    assert re.fullmatch(r"[^\x00-\x1f]+", str(caught.value))
    assert len(str(caught.value)) < 500


def test_a_web_server_is_no_registry(fake, env):
    fake.misbehave = lambda h: h.answer(200, b"<html>", Content_Type="text/html") or True
    with pytest.raises(RegistryError, match="not a registry's"):
        Artifacts(fake.where, env=env).exists("sageattention", KEY)


def test_damaged_wheel_is_refused_by_the_registry(fake, entry, env):
    entry.wheel.write_bytes(b"x" + entry.wheel.read_bytes()[1:])
    with pytest.raises(RegistryError, match="did not match uploaded content"):
        Artifacts(fake.where, env=env).push(entry)
    assert f"{PLACE}/manifests/{KEY}" not in fake.held


def test_location_elsewhere_gets_no_password(fake, entry, env):
    """A registry may have its blobs stored by another host, which is none of a login's business."""
    seen = []

    def elsewhere(handler):
        seen.append((handler.command, handler.headers["Host"], "Authorization" in handler.headers))
        if "Authorization" not in handler.headers and handler.headers["Host"].startswith("127"):
            handler.rfile.read(int(handler.headers.get("Content-Length") or 0))
            handler.refuse(401, WWW_Authenticate='Basic realm="x"')
            return True
        if handler.command == "POST":
            port = handler.server.server_port
            handler.answer(202, Location=f"http://localhost:{port}{handler.path}1")
            return True
        return False

    fake.misbehave = elsewhere
    docker_login(env, fake.where)
    Artifacts(fake.where, env=env).push(entry)
    assert ("PUT", f"localhost:{fake.where.partition('/')[0].partition(':')[2]}", False) in seen
    assert not any(authorised for _, host, authorised in seen if host.startswith("localhost"))


# Logins


def docker_login(env, where, password="secret", **more):
    host = where.partition("/")[0]
    folder = Path(env["HOME"]) / ".docker"
    folder.mkdir(exist_ok=True)
    login = {"auth": base64.b64encode(f"me:{password}".encode()).decode()} | more
    (folder / "config.json").write_text(json.dumps({"auths": {host: login}}))


class Tokens:
    """A token server as Docker's: a token for exactly the scope that is asked for."""

    def __init__(self, *, login="Basic bWU6c2VjcmV0"):
        self.login, self.scopes, self.valid = login, [], set()

    def __call__(self, handler):
        parts = urlsplit(handler.path)
        if parts.path == "/token":
            body = handler.rfile.read(int(handler.headers.get("Content-Length") or 0)).decode()
            asked = parse_qs(parts.query or body)
            self.scopes.append(asked["scope"][0])
            good = handler.headers.get("Authorization") == self.login
            if asked.get("grant_type") == ["refresh_token"]:
                good = asked["refresh_token"] == ["identity"]
            if not good:
                handler.refuse(401, "UNAUTHORIZED", "incorrect username or password")
                return True
            self.valid.add(f"Bearer {len(self.scopes)}")
            handler.answer(200, json.dumps({"token": str(len(self.scopes))}).encode())
            return True
        if handler.headers.get("Authorization") in self.valid:
            return False
        handler.rfile.read(int(handler.headers.get("Content-Length") or 0))
        realm = f"http://{handler.headers['Host']}/token"
        need = "pull" if handler.command in ("GET", "HEAD") else "pull,push"
        scope = f"repository:comfyui/wheelhouse/sageattention:{need}"
        handler.refuse(
            401, "UNAUTHORIZED", WWW_Authenticate=f'Bearer realm="{realm}",service="it",scope="{scope}"'
        )
        return True


def test_token(fake, entry, second, env):
    fake.misbehave = tokens = Tokens()
    docker_login(env, fake.where)
    Artifacts(fake.where, env=env).push(entry)
    assert tokens.scopes == ["repository:comfyui/wheelhouse/sageattention:pull,push"], (
        "one, that is good for all"
    )
    assert Artifacts(fake.where, env=env).pull("sageattention", KEY, second)
    assert tokens.scopes[1:] == ["repository:comfyui/wheelhouse/sageattention:pull"]


def test_token_that_ends_in_the_middle(fake, entry, env):
    fake.misbehave = tokens = Tokens()

    def forgetful(handler):
        if handler.command == "PUT" and len(tokens.scopes) == 1:
            tokens.valid.clear()
        return tokens(handler)

    fake.misbehave = forgetful
    docker_login(env, fake.where)
    Artifacts(fake.where, env=env).push(entry)
    assert len(tokens.scopes) == 2
    assert len(fake.blobs()) == 2, "the wheel was sent again from its beginning"


def test_token_for_everybody(fake, entry, env):
    fake.misbehave = Tokens(login=None)
    Artifacts(fake.where, env=env).push(entry)
    assert len(fake.held) == 3


def test_identity_token(fake, entry, env):
    fake.misbehave = Tokens()
    docker_login(env, fake.where, identitytoken="identity")
    Artifacts(fake.where, env=env).push(entry)
    assert len(fake.held) == 3


def test_wrong_password(fake, entry, env):
    fake.misbehave = Tokens()
    docker_login(env, fake.where, "wrong")
    host = fake.where.partition("/")[0]
    with pytest.raises(
        RegistryError, match="push refused: no token: incorrect username or password"
    ) as caught:
        Artifacts(fake.where, env=env).push(entry)
    assert caught.value.hint.startswith(f"docker login {host}, then: imgbuild wheels push")


@pytest.mark.parametrize("helper", ["credsStore", "credHelpers", "missing", "broken"])
def test_credential_helper(fake, entry, env, tmp_path, monkeypatch, helper):
    fake.misbehave = Tokens()
    host = fake.where.partition("/")[0]
    program = tmp_path / "bin" / "docker-credential-mine"
    program.parent.mkdir()
    answer = json.dumps({"ServerURL": host, "Username": "me", "Secret": "secret"})
    program.write_text(f"#!/bin/sh\nread host\n[ \"$host\" = {host} ] && echo '{answer}'\n")
    if helper == "broken":
        program.write_text("#!/bin/sh\necho oh; exit 1\n")
    if helper != "missing":
        program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
    env["DOCKER_CONFIG"] = str(tmp_path / "elsewhere")
    (tmp_path / "elsewhere").mkdir()
    config = {"credHelpers": {host: "mine"}} if helper == "credHelpers" else {"credsStore": "mine"}
    (tmp_path / "elsewhere" / "config.json").write_text(json.dumps(config))
    if helper in ("missing", "broken"):
        with pytest.raises(RegistryError, match=f"the login for {host} cannot be read"):
            Artifacts(fake.where, env=env).push(entry)
    else:
        Artifacts(fake.where, env=env).push(entry)
        assert len(fake.held) == 3


@pytest.mark.parametrize("text", ["", "{", "[]", '{"auths": {"x": {"auth": "?"}}}', '{"auths": []}'])
def test_config_json_that_is_none(fake, entry, env, text):
    fake.misbehave = Tokens()
    docker_login(env, fake.where)
    (Path(env["HOME"]) / ".docker" / "config.json").write_text(text)
    with pytest.raises(RegistryError) as caught:
        Artifacts(fake.where, env=env).push(entry)
    assert "docker login" in caught.value.hint


def test_unknown_kind_of_login(fake, entry, env):
    fake.misbehave = lambda h: h.refuse(401, WWW_Authenticate="Negotiate") or True
    with pytest.raises(RegistryError, match="a login of the kind 'Negotiate'"):
        Artifacts(fake.where, env=env).push(entry)


# Places


@pytest.mark.parametrize(
    "where", ["", "x", "x/y", "https://r.example/x", "r.example/X", "r.example//x", "r.example/../x"]
)
def test_no_place(where, env):
    with pytest.raises(ConfigError, match="is no place in a registry"):
        Artifacts(where, env=env)


# A registry as people run it


@pytest.fixture
def unused_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


PASSWORDS = "me:$2y$04$abcdefghijklmnopqrstuu2r9OfJnfCsdneAXAGHnS4UpFFP8WIrW\n"  # secret


@pytest.fixture(params=["open", "htpasswd"])
def real(request, tmp_path, unused_port, env):
    program = shutil.which("docker-registry")
    if program is None:
        pytest.skip("docker-registry is not installed")
    config = {
        "version": "0.1",
        "log": {"level": "error", "accesslog": {"disabled": True}},
        "storage": {"filesystem": {"rootdirectory": str(tmp_path / "registry")}},
        "http": {"addr": f"127.0.0.1:{unused_port}"},
    }
    if request.param == "htpasswd":
        (tmp_path / "htpasswd").write_text(PASSWORDS)
        config["auth"] = {"htpasswd": {"realm": "a registry", "path": str(tmp_path / "htpasswd")}}
        docker_login(env, f"127.0.0.1:{unused_port}")
    (tmp_path / "registry.yml").write_text(json.dumps(config))
    with (
        (tmp_path / "registry.log").open("wb") as log,
        subprocess.Popen(
            [program, "serve", str(tmp_path / "registry.yml")], stdout=log, stderr=log
        ) as process,
    ):
        try:
            _wait_for(unused_port, process)
            yield f"127.0.0.1:{unused_port}/team/comfyui"
        finally:
            process.terminate()


def _wait_for(port, process):
    for _ in range(200):
        assert process.poll() is None, "the registry ended"
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
            return
        time.sleep(0.05)
    pytest.fail("the registry does not answer")


def test_round_trip(real, store, entry, second, tmp_path, env, request):  # noqa: F811
    flash = make_wheel(tmp_path, "flash-attn", "2.8.3.post2", content=os.urandom(3_000_000))
    other = store.put("flash-attn", "2.8.3.post2", OTHER, flash, **FACTS)
    registry = Artifacts(real, env=env)
    assert registry.pull("sageattention", KEY, second) is None
    digests = [registry.push(e) for e in (entry, other)]
    assert [registry.push(e) for e in (entry, other)] == digests
    assert registry.exists("flash-attn", OTHER)
    assert not registry.exists("flash-attn", KEY)
    for one in (entry, other):
        found = registry.pull(one.kernel, one.key, second)
        assert found.record == one.record
        assert found.wheel.read_bytes() == one.wheel.read_bytes()
    stored = tmp_path / "registry/docker/registry/v2/repositories/team/comfyui/wheelhouse"
    assert sorted(p.name for p in stored.iterdir()) == ["flash-attn", "sageattention"]
    if "htpasswd" in request.node.name:
        with pytest.raises(RegistryError, match=r"refused: .*Unauthorized.* \(status 401\)"):
            Artifacts(real, env={"HOME": "/nowhere"}).push(entry)
        return
    host, _, path = real.partition("/")
    with urllib.request.urlopen(
        urllib.request.Request(
            f"http://{host}/v2/{path}/wheelhouse/sageattention/manifests/{KEY}",
            headers={"Accept": "application/vnd.oci.image.manifest.v1+json"},
        )
    ) as answer:
        assert answer.headers["Docker-Content-Digest"] == digests[0]
        assert json.load(answer)["artifactType"] == "application/vnd.imgbuild.kernel.v1"


def test_corrupt_in_a_real_registry(real, entry, second, tmp_path, env):
    registry = Artifacts(real, env=env)
    registry.push(entry)
    (blob,) = tmp_path.glob(f"registry/docker/registry/v2/blobs/sha256/*/{entry.sha256}/data")
    blob.write_bytes(blob.read_bytes()[:-1] + b"!")
    with pytest.raises(RegistryError, match=r"is corrupt: .* has other bytes than its digest says"):
        registry.pull("sageattention", KEY, second)
    assert tree(second.folder) == []


# The command line


def test_push_and_pull_commands(fake, imgbuild, entry, tmp_path, monkeypatch):  # noqa: F811
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("IMGBUILD_WHEELHOUSE", fake.where)
    code, out, err = imgbuild("push")
    assert (code, out) == (0, "")
    assert f"pushed {fake.where}/wheelhouse/sageattention:{KEY}@sha256:" in err
    assert imgbuild("push", OTHER)[0] == 3
    assert "sageattention 0123456789abcdef is here already" in imgbuild("pull", "--all")[2]
    monkeypatch.setenv("IMGBUILD_CACHE", str(tmp_path / "other"))
    code, _, err = imgbuild("pull", "-t", "gb10")
    assert code == 0
    assert f"sageattention {KEY} pulled: " in err
    assert "578 s of compiling spared" in err
    assert f"flash-attn {KEY} is not at {fake.where}" in err
    assert KEY in imgbuild("list")[1]
    assert imgbuild("pull", "--all", "-t", "gb10")[0] == 2
    assert imgbuild("pull")[0] == 3
    assert imgbuild("pull", "--all", "--kernel", "flashattn")[0] == 3


def test_push_command_leaves_the_unsound_out(fake, imgbuild, entry, tmp_path, monkeypatch):  # noqa: F811
    monkeypatch.setenv("HOME", str(tmp_path))
    entry.wheel.write_bytes(b"x")
    code, _, err = imgbuild("push", "--wheelhouse", fake.where)
    assert code == 7
    assert f"not pushed, because not sound: sageattention {KEY}" in err
    assert fake.held == {}


def test_registry_failure_has_its_exit_code(imgbuild, entry, unused_port):  # noqa: F811
    code, _, err = imgbuild("push", "--wheelhouse", f"localhost:{unused_port}/x")
    assert code == 9
    assert "hint: see that it runs, then: imgbuild wheels push" in err
