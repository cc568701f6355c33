from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import socket
import ssl
import subprocess
import threading
import time
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import pytest
import requests
from fakeregistry import fake_registry

from imgbuild.errors import RegistryError, SelectionError, UnsoundError
from imgbuild.logins import authorization
from imgbuild.manifests import EMPTY, INDEX, MANIFEST, Descriptor, Document, Index, Manifest, digest_of
from imgbuild.reference import Reference
from imgbuild.refusals import RefusedError, SlowError, told
from imgbuild.registry import Repository
from imgbuild.remoteimage import find
from imgbuild.transport import AT_ONCE, Connection, Patience

QUICK = Patience(connect=1.0, silence=0.5, pause=0.01, longest=1.0)
BLOB = os.urandom(300_000)
SBOM = "application/vnd.cyclonedx+json"


@pytest.fixture
def env(tmp_path):
    return {"HOME": str(tmp_path), "PATH": os.environ["PATH"]}


@pytest.fixture
def fake():
    with fake_registry() as store:
        yield store


@pytest.fixture
def said():
    return []


@pytest.fixture
def repository(fake, env, said):
    with Repository(
        fake.host, "team/x", env=env, actions="pull,push", patience=QUICK, say=said.append
    ) as found:
        yield found


def descriptor(content: bytes, kind: str = "application/octet-stream", **more) -> Descriptor:
    return Descriptor(media_type=kind, digest=digest_of(content), size=len(content), **more)


def artifact(repository, text: bytes, subject: Descriptor | None = None) -> Document:
    """An artifact whose blobs are there."""
    repository.upload(digest_of(b"{}"), b"{}")
    repository.upload(digest_of(text), text)
    manifest = Manifest(
        artifact_type=SBOM,
        config=descriptor(b"{}", EMPTY),
        layers=(descriptor(text, SBOM),),
        subject=subject,
        annotations={"of": "a test"},
    )
    return Document(media_type=MANIFEST, raw=manifest.raw())


def times(number, status, **headers):
    """Refuse the first so many requests."""
    left = [number]

    def misbehave(handler):
        left[0] -= 1
        if left[0] < 0:
            return False
        handler.body()
        handler.refuse(status, **headers)
        return True

    return misbehave


def breaks(method, part, *, after=None, number=1):
    """Close the connection at a request; with `after`, when that much of the answer has gone."""
    left = [number]

    def misbehave(handler):
        if handler.command != method or part not in handler.path or left[0] <= 0:
            return False
        left[0] -= 1
        if after is not None:
            start = int((handler.headers.get("Range") or "bytes=0-")[6:-1])
            whole = BLOB[start:]
            handler.answer(206 if start else 200, whole[:after], length=len(whole))
        handler.connection.shutdown(socket.SHUT_RDWR)
        handler.close_connection = True
        return True

    return misbehave


# Blobs and manifests


def test_blob_goes_and_comes(fake, repository):
    sent, came = [], []
    assert repository.upload(digest_of(BLOB), BLOB, progress=sent.append) == "sent"
    assert repository.upload(digest_of(BLOB), io.BytesIO(BLOB), progress=sent.append) == "there"
    buffer = io.BytesIO()
    repository.download(descriptor(BLOB), buffer, came.append)
    assert buffer.getvalue() == BLOB
    assert sum(sent) == sum(came) == len(BLOB)
    repository.upload(digest_of(b""), b"")
    assert repository.read(descriptor(b"")) == b""


def test_manifest_of_a_tag_and_of_a_digest(fake, repository):
    document = artifact(repository, b"text")
    assert repository.manifest("a") is None
    repository.put_manifest("a", document)
    assert repository.manifest("a") == document
    assert repository.manifest(document.digest) == document
    assert repository.has_manifest("a")
    fake.manifests["team/x", document.digest] = (MANIFEST, b"{}")
    with pytest.raises(UnsoundError, match="not what its digest says"):
        repository.manifest(document.digest)


def test_unknown_fields_are_kept():
    raw = b'{"mediaType":"x","digest":"sha256:%s","size":1,"data":"e30="}' % (b"0" * 64)
    index = Index.model_validate_json(b'{"schemaVersion":2,"more":[1],"manifests":[%s]}' % raw)
    again = json.loads(index.raw())
    assert again["more"] == [1]
    assert again["manifests"][0]["data"] == "e30="


def test_mount(fake, env):
    fake.blobs["stage/x", digest_of(BLOB)] = BLOB
    with Repository(fake.host, "team/x", env=env, actions="pull,push", beside=("stage/x",)) as repository:
        assert repository.upload(digest_of(BLOB), BLOB, mount="stage/x") == "mounted"
        assert fake.blobs["team/x", digest_of(BLOB)] == BLOB
        assert repository.upload(digest_of(b"other"), b"other", mount="stage/x") == "sent"
    assert sum(a.startswith("DELETE") for a in fake.asked) == 1, (
        "an upload that nobody asked for is taken back"
    )


def test_tags_of_several_pages(fake, repository):
    assert repository.tags() == ()
    fake.page = 2
    document = artifact(repository, b"text")
    for tag in "cabed":
        repository.put_manifest(tag, document)
    assert repository.tags() == ("a", "b", "c", "d", "e")


@pytest.mark.parametrize("api", [True, False])
def test_referrers(fake, repository, api):
    """By the API, or by the tag that the specification names for registries without it."""
    fake.referrers = api
    image = artifact(repository, b"an image")
    repository.put_manifest("a", image)
    assert repository.referrers(image.digest) == ()
    sbom = artifact(repository, b"what is in it", image.descriptor())
    other = artifact(repository, b"something else", image.descriptor())
    assert repository.attach(sbom) == sbom.digest
    repository.attach(other)
    repository.attach(sbom)
    found = repository.referrers(image.digest, SBOM)
    assert {d.digest for d in found} == {sbom.digest, other.digest}
    assert len(found) == 2
    assert repository.referrers(image.digest, "application/x") == ()
    assert (image.digest.replace(":", "-") in repository.tags()) is not api


# Patience


@pytest.mark.parametrize("status", [429, 500, 502, 503, 504])
def test_what_passes_is_tried_again(fake, repository, said, status):
    fake.misbehave = times(3, status)
    assert repository.upload(digest_of(BLOB), BLOB) == "sent"
    assert f"(status {status})" in said[0]
    assert "once more in 0.0 s (2 of 5)" in said[0]
    assert len(said) == 3


@pytest.mark.parametrize("status", [400, 403, 404, 413, 507])
def test_what_does_not_pass_is_not(fake, repository, said, status):
    fake.misbehave = times(99, status)
    with pytest.raises(RefusedError):
        repository.put_manifest("a", Document(media_type=INDEX, raw=Index(manifests=()).raw()))
    assert len(fake.asked) == 1
    assert said == []


def test_after_some_tries_it_is_given_up(fake, repository):
    fake.misbehave = times(99, 503)
    with pytest.raises(RefusedError):
        repository.tags()
    assert len(fake.asked) == QUICK.tries


def test_pauses_grow_and_differ(fake, env, monkeypatch):
    pauses = []
    monkeypatch.setattr(time, "sleep", pauses.append)
    fake.misbehave = times(99, 503)
    with Repository(fake.host, "x", env=env, patience=Patience(pause=1, tries=7, longest=8)) as repository:
        for _ in range(2):
            with pytest.raises(RefusedError):
                repository.tags()
    first, second = pauses[:6], pauses[6:]
    assert first != second
    for pause, most in zip(first, (1, 2, 4, 8, 8, 8), strict=True):
        assert most / 2 <= pause <= most


@pytest.mark.parametrize("form", ["seconds", "date"])
def test_retry_after(fake, env, monkeypatch, form):
    pauses = []
    monkeypatch.setattr(time, "sleep", pauses.append)
    text = (
        "7"
        if form == "seconds"
        else format_datetime(datetime.now(tz=UTC) + timedelta(seconds=7), usegmt=True)
    )
    fake.misbehave = times(1, 429, Retry_After=text)
    with Repository(fake.host, "x", env=env) as repository:
        repository.tags()
    (pause,) = pauses
    assert 5.5 <= pause <= 7


def test_retry_after_an_hour_is_told_at_once(fake, repository):
    fake.misbehave = times(99, 429, Retry_After="3600")
    with pytest.raises(RegistryError, match="takes no more requests") as caught, told("x", host=fake.host):
        repository.tags()
    assert len(fake.asked) == 1
    assert "wait 3600 s" in caught.value.hint


@pytest.mark.parametrize("ranges", [True, False])
def test_broken_download_goes_on(fake, repository, ranges):
    fake.ranges = ranges
    repository.upload(digest_of(BLOB), BLOB)
    fake.misbehave = breaks("GET", "/blobs/", after=100_000, number=2 if ranges else 1)
    fake.asked.clear()
    came, buffer = [], io.BytesIO()
    repository.download(descriptor(BLOB), buffer, came.append)
    assert buffer.getvalue() == BLOB
    assert sum(came) == len(BLOB)
    assert len(fake.asked) == (3 if ranges else 2)


def test_download_that_breaks_ever_again(fake, repository):
    repository.upload(digest_of(BLOB), BLOB)
    fake.misbehave = breaks("GET", "/blobs/", after=0, number=99)
    with pytest.raises(requests.RequestException):
        repository.read(descriptor(BLOB))


def test_truncated_and_altered_blobs(fake, repository):
    place = ("team/x", digest_of(BLOB))
    for held, says in (
        (BLOB[:-10], "only 299990 of 300000"),
        (b"!" + BLOB[1:], "other bytes than its digest says"),
        (BLOB + b"!", "sends more than it announced"),
    ):
        fake.blobs[place] = held
        with pytest.raises(UnsoundError, match=says):
            repository.read(descriptor(BLOB))


def test_broken_upload_begins_again(fake, repository):
    sent = []
    fake.misbehave = breaks("PUT", "/uploads/")
    assert repository.upload(digest_of(BLOB), io.BytesIO(BLOB), progress=sent.append) == "sent"
    assert fake.blobs["team/x", digest_of(BLOB)] == BLOB
    assert sum(sent) == len(BLOB), "what has to go again is taken back"
    assert sum(a.startswith("POST") for a in fake.asked) == 2


def test_who_never_answered_is_not_asked_for_long(env):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    begun = time.monotonic()
    for host in (f"localhost:{port}", "registry.invalid"):
        with Repository(host, "x", env=env) as repository, pytest.raises(requests.ConnectionError):
            repository.tags()
    assert time.monotonic() - begun < 5


def test_silence(fake, repository):
    fake.misbehave = lambda _handler: time.sleep(1) or False
    with pytest.raises(RegistryError, match="fell silent"), told("x", host=fake.host):
        repository.tags()
    assert len(fake.asked) == QUICK.timeouts


def test_too_slow(fake, repository):
    """A byte now and then is as good as none, though no single wait is long."""
    repository.upload(digest_of(BLOB), BLOB)

    def drip(handler):
        if "/blobs/" not in handler.path:
            return False
        handler.answer(200, b"", length=len(BLOB))
        for byte in BLOB[:40]:
            handler.wfile.write(bytes([byte]))
            handler.wfile.flush()
            time.sleep(0.05)
        return True

    fake.misbehave = drip
    begun = time.monotonic()
    with pytest.raises(SlowError):
        repository.read(descriptor(BLOB))
    assert time.monotonic() - begun < 5


def test_a_bad_certificate_is_not_asked_twice(env, said):
    """See also test_tls: here it is what patience says of it."""
    connection = Connection("127.0.0.1:1", [], env=env, say=said.append)
    error = requests.exceptions.SSLError(ssl.SSLCertVerificationError(1, "no"))
    with pytest.raises(requests.exceptions.SSLError):
        connection.attempts().failed(error)
    connection.close()
    assert said == []


# TLS, proxies, logins


@pytest.fixture(scope="module")
def certificate(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tls")
    words = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -subj /CN=localhost"
    words += " -addext subjectAltName=DNS:localhost,IP:127.0.0.1 -keyout tls.key -out tls.crt"
    subprocess.run(words.split(), cwd=folder, check=True, capture_output=True)
    return folder


def test_tls(certificate, env):
    """A registry on loopback that speaks TLS is spoken to by TLS, and its certificate is checked."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate / "tls.crt", certificate / "tls.key")
    with fake_registry() as store, socket.create_server(("127.0.0.1", 0)) as server:
        host = f"127.0.0.1:{server.getsockname()[1]}"
        threading.Thread(target=_relay, args=(server, context, store.host), daemon=True).start()
        repository = Repository(host, "x", env=env, patience=QUICK)
        with (
            pytest.raises(RegistryError, match="certificate that is not trusted here") as caught,
            told("x", host=host),
            repository,
        ):
            repository.tags()
        assert "SSL_CERT_FILE" in caught.value.hint
        assert store.asked == [], "nothing was asked of whom nobody trusts"
        env |= {"SSL_CERT_FILE": str(certificate / "tls.crt")}
        with Repository(host, "x", env=env, patience=QUICK) as repository:
            assert repository.tags() == ()
        assert repository.connection.origin == f"https://{host}"


def _relay(server, context, upstream):
    """End TLS, and pass what comes to a plain registry."""
    host, _, port = upstream.partition(":")
    while True:
        try:
            plain, _ = server.accept()
        except OSError:
            return
        try:
            with (
                context.wrap_socket(plain, server_side=True) as near,
                socket.create_connection((host, int(port))) as far,
            ):
                near.settimeout(2)
                far.sendall(near.recv(65536))
                far.settimeout(0.3)
                with contextlib.suppress(TimeoutError):
                    while piece := far.recv(65536):
                        near.sendall(piece)
        except OSError:
            continue


@pytest.mark.parametrize(
    ("host", "origin"),
    [
        ("localhost:1", "http://localhost:1"),
        ("127.9.9.9:1", "http://127.9.9.9:1"),
        ("[::1]:1", "http://[::1]:1"),
        ("10.0.0.1:5000", "https://10.0.0.1:5000"),
        ("localhost.example", "https://localhost.example"),
        ("registry.example:443", "https://registry.example:443"),
        ("docker.io", "https://registry-1.docker.io"),
    ],
)
def test_plain_http_on_loopback_only(host, origin, env):
    with Repository(host, "x", env=env) as repository:
        assert repository.url("blobs", "y") == f"{origin}/v2/x/blobs/y"


def test_who_says_nothing_on_loopback_is_plain_http(env):
    with socket.create_server(("127.0.0.1", 0)) as server:
        host = f"127.0.0.1:{server.getsockname()[1]}"
        with Repository(host, "x", env=env, patience=QUICK) as repository:
            assert repository.url("blobs", "y").startswith("http://")


def test_proxies_and_certificates_are_those_of_env(env, tmp_path, monkeypatch):
    monkeypatch.setenv("HTTPS_PROXY", "http://not-this:1")
    bundle = tmp_path / "ca.pem"
    bundle.write_text("-----BEGIN CERTIFICATE-----\n")
    env |= {"https_proxy": "http://proxy:3128", "NO_PROXY": "near.example", "REQUESTS_CA_BUNDLE": str(bundle)}
    connection = Connection("far.example", [], env=env)
    assert connection.session.verify == str(bundle)
    assert connection.proxies_for("https://far.example/v2/") == {"https": "http://proxy:3128"}
    assert connection.proxies_for("https://near.example/v2/") == {}
    assert connection.proxies_for("http://127.0.0.1:5000/v2/") == {}
    connection.close()


def test_http_location_of_an_https_registry(env, monkeypatch):
    """Registries behind a proxy that ends TLS often forget it."""
    asked = []

    def send(method, url, *_args, **_more):
        asked.append(f"{method} {url}")
        answer = requests.Response()
        answer.status_code = {"HEAD": 404, "POST": 202, "PUT": 201}[method]
        answer.headers["Location"] = "http://far.example/upload?a=1"
        return answer

    with Repository("far.example", "x", env=env, patience=AT_ONCE) as repository:
        monkeypatch.setattr(repository.connection, "send", send)
        repository.upload("sha256:1", b"x")
    assert asked[-1] == "PUT https://far.example/upload?a=1&digest=sha256%3A1"


def test_login_is_sent_by_https_only():
    with pytest.raises(RefusedError, match="which is not HTTPS"):
        authorization(
            'Bearer realm="http://registry.example/token"',
            {"username": "me", "password": "secret"},
            ["repository:x:pull"],
            plain=False,
            ask=pytest.fail,
        )


# What goes wrong is told


@pytest.mark.parametrize(
    ("status", "says", "hint"),
    [
        (401, "wants another login: no, says the registry (status 401)", "docker login HOST, then: again"),
        (403, "forbids it to this login", "docker login HOST, then: again"),
        (404, "does not have it", "see that registry, path and tag"),
        (429, "takes no more requests for now", "wait some minutes"),
        (500, "failed: no, says the registry (status 500)", "see the log of HOST, then: again"),
        (418, "refused", "see what HOST allows"),
    ],
)
def test_refusals_are_told(fake, env, status, says, hint):
    fake.misbehave = times(99, status)
    with (
        pytest.raises(RegistryError) as caught,
        told("team/x", host=fake.host, again="again"),
        Repository(fake.host, "team/x", env=env, patience=AT_ONCE) as repository,
    ):
        repository.put_manifest("a", Document(media_type=INDEX, raw=b""))
    assert str(caught.value).startswith("team/x: ")
    assert fake.host in str(caught.value)
    assert hint.replace("HOST", fake.host) in caught.value.hint
    assert caught.value.exit_code == 9
    assert "\n" not in str(caught.value)
    assert says in str(caught.value)


# An image, without a pull


@pytest.fixture
def image(fake, plans, tmp_path):
    """A tiny image of h100 that somebody pushed, and what it is made of."""
    from tinyimage import write_layout

    made = write_layout(tmp_path / "layout", plans["h100"], profile=b"secret of a layer")
    push_layout(fake, "team/comfyui", tmp_path / "layout", "h100")
    return made


def push_layout(fake, name, folder, tag):
    index = json.loads((folder / "index.json").read_text())["manifests"][0]
    for file in (folder / "blobs/sha256").iterdir():
        raw = file.read_bytes()
        kind = json.loads(raw).get("mediaType", "") if raw[:1] == b"{" else ""
        digest = f"sha256:{hashlib.sha256(raw).hexdigest()}"
        if "manifest" in kind or "index" in kind:
            fake.manifests[name, digest] = (kind, raw)
        else:
            fake.blobs[name, digest] = raw
    fake.manifests[name, tag] = fake.manifests[name, index["digest"]]


def test_find(fake, image, plans, env):
    found = find(Reference.parse(f"{fake.host}/team/comfyui:h100"), env=env)
    assert (found.digest, found.index_digest) == (image["image"], image["index"])
    assert (found.platform, found.platforms) == ("linux/amd64", ("linux/amd64",))
    assert found.labels == plans["h100"].labels
    assert found.env["PATH"] == "/opt/venv/bin:/usr/bin"
    assert found.size == image["size"]
    assert [layer.digest for layer in found.layers] == image["layers"]
    assert [layer.created_by for layer in found.layers] == [
        "ADD base.tar /",
        "COPY --link --from=venv-python /o/ /",
        "COPY --link --from=profile /o/ /",
    ]
    assert str(found.pinned) == f"{fake.host}/team/comfyui@{image['image']}"
    layers = {d.removeprefix("sha256:") for d in image["layers"]}
    assert not any(layer in asked for asked in fake.asked for layer in layers), "no layer was asked for"
    assert find(found.pinned, env=env).index_digest is None


def test_find_the_only_platform_there_is(fake, plans, tmp_path, env, monkeypatch):
    from tinyimage import write_layout

    write_layout(tmp_path / "layout", plans["gb10"])
    push_layout(fake, "x", tmp_path / "layout", "gb10")
    reference = Reference.parse(f"{fake.host}/x:gb10")
    assert find(reference, env=env).platform == "linux/arm64"
    assert find(reference, "linux/arm64/v8", env=env).platform == "linux/arm64"
    with pytest.raises(SelectionError, match="has no linux/amd64; its platforms are: linux/arm64"):
        find(reference, "linux/amd64", env=env)


def test_find_what_is_not_there(fake, image, env):
    def error(text):
        with pytest.raises(RegistryError, match="there is no such image") as caught:
            find(Reference.parse(f"{fake.host}/{text}"), env=env)
        return caught.value.hint

    assert error("team/comfyui:h10") == f"did you mean {fake.host}/team/comfyui:h100?"
    assert error("team/comfyui:zzz") == "there are: h100"
    assert "nothing at all is published under that path" in error("team/other:h100")


@pytest.mark.parametrize(
    ("kind", "raw", "says"),
    [
        (MANIFEST, b"<html>", "manifest: Invalid JSON"),
        (MANIFEST, b"{}", "manifest: config: Field required"),
        ("text/html", b"<html>", "a document of the kind 'text/html', which is no image"),
        (INDEX, b'{"schemaVersion":2,"manifests":[{"mediaType":"x","digest":"md5:1","size":1}]}', "index: "),
    ],
)
def test_find_what_is_no_image(fake, env, kind, raw, says):
    fake.manifests["x", "a"] = (kind, raw)
    with pytest.raises(RegistryError, match="gave something else than was asked for") as caught:
        find(Reference.parse(f"{fake.host}/x:a"), env=env)
    assert says in str(caught.value)


def test_find_an_image_without_labels(fake, env):
    """As docker writes it: null where there is nothing."""
    config = b'{"architecture":"amd64","os":"linux","config":{"Labels":null,"Env":null},"rootfs":{"diff_ids":[]},"history":null}'
    fake.blobs["x", digest_of(config)] = config
    raw = json.dumps(
        {"schemaVersion": 2, "config": {"mediaType": "c", "digest": digest_of(config), "size": len(config)}}
        | {"layers": []}
    ).encode()
    fake.manifests["x", "a"] = ("application/vnd.docker.distribution.manifest.v2+json", raw)
    found = find(Reference.parse(f"{fake.host}/x:a"), env=env)
    assert (found.labels, found.env, found.layers) == ({}, {}, ())
