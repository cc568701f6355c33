"""What goes wrong between the tool and a registry: one clear message, exit code 9, and the registry as it was.

A real docker-registry with a password, and a proxy with TLS in front of it that injects the faults.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pytest
from faultproxy import (
    FaultProxy,
    broken,
    dies,
    fault_proxy,
    flipped,
    flipped_sent,
    hangs_up,
    silent,
    slow,
    status,
    truncated,
)
from registries import Certificate, Registry, client_env, make_certificate, real_registry
from tinyimage import write_layout

from imgbuild.errors import ImgbuildError
from imgbuild.layout import Layout
from imgbuild.publisher import Publisher
from imgbuild.reference import Reference
from imgbuild.remoteimage import find
from imgbuild.report import tell_error
from imgbuild.transport import Patience

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from imgbuild.plan import Plan

PATH = "team/comfyui"
TAGS = ("0.33.0-cpu-20261121", "0.33.0-cpu", "cpu")
PATIENCE = Patience(connect=2.0, silence=1.0, pause=0.02, longest=2.0, slowest=5000)


@dataclass(frozen=True, kw_only=True)
class Case:
    """A fault, and what is told of it; without `says`, it passes after another try."""

    inject: Callable[[FaultProxy], Any] = lambda _: None
    says: str | None = None
    hint: str = ""
    env: dict[str, str] = field(default_factory=dict)
    login: str = "secret"
    trust: bool = True


def always(act: Any, method: str = ".*", path: str = "") -> Callable[[FaultProxy], Any]:
    return lambda proxy: proxy.inject(act, method=method, path=path)


def once(act: Any, method: str = ".*", path: str = "", times: int = 1) -> Callable[[FaultProxy], Any]:
    return lambda proxy: proxy.inject(act, method=method, path=path, times=times)


TAG = "/manifests/0.33.0-cpu$"
PUBLISHING = {
    "wrong password": Case(login="wrong", says="HOST wants another login", hint="docker login HOST"),
    "401 when writing": Case(
        inject=always(status(401), "POST"), says="HOST wants another login: no, says the proxy (status 401)"
    ),
    "403 when writing": Case(
        inject=always(status(403, "denied"), "POST"),
        says="HOST forbids it to this login: denied (status 403)",
        hint="docker login HOST",
    ),
    "404 when writing": Case(
        inject=always(status(404, "name unknown"), "POST"),
        says="HOST does not have it: name unknown (status 404)",
        hint="spelt as they are there",
    ),
    "429 once, with a wait": Case(inject=once(status(429, Retry_After="1"))),
    "429 for an hour": Case(
        inject=always(status(429, "toomanyrequests", Retry_After="3600")),
        says="HOST takes no more requests for now: toomanyrequests (status 429)",
        hint="wait 3600 s",
    ),
    "429 ever again": Case(
        inject=always(status(429)), says="takes no more requests for now", hint="wait some minutes"
    ),
    "500 twice": Case(inject=once(status(500), times=2)),
    "500 always": Case(
        inject=always(status(500, "boom"), "PUT"),
        says="HOST failed: boom (status 500)",
        hint="see the log of HOST",
    ),
    "502, 503, 504 one after the other": Case(
        inject=lambda p: [p.inject(status(code), times=1) for code in (502, 503, 504)]
    ),
    "507 when writing": Case(
        inject=always(status(507, "disk full"), "PUT"), says="HOST failed: disk full (status 507)"
    ),
    "TLS unknown": Case(
        trust=False, says="HOST has a certificate that is not trusted here", hint="SSL_CERT_FILE"
    ),
    "connection breaks in an upload, once": Case(inject=once(hangs_up(3000), "PUT", "uploads")),
    "connection breaks in every upload": Case(
        inject=always(hangs_up(3000), "PUT", "uploads"),
        says="HOST broke the connection",
        hint="see that it runs",
    ),
    "a bit flips in an upload": Case(
        inject=always(flipped_sent(5), "PUT", "uploads"),
        says="digest did not match uploaded content",
        hint="see what stands between here and HOST",
    ),
    "silent once": Case(inject=once(silent(1.5), "HEAD")),
    "silent": Case(
        inject=always(silent(1.5), "HEAD"), says="HOST fell silent for 1 s", hint="see that it runs"
    ),
    "gone in the middle of an upload": Case(
        inject=always(dies(3000), "PUT", "uploads"), says="HOST broke the connection", hint="see that it runs"
    ),
    "gone when the manifest comes": Case(
        inject=always(dies(), "PUT", "/manifests/sha256:"), says="HOST broke the connection"
    ),
    "gone before the first tag": Case(
        inject=always(dies(), "PUT", "/manifests/0.33.0-cpu-"), says="HOST broke the connection"
    ),
    "tag that the registry lets nobody move": Case(
        inject=always(status(409, "tag is immutable"), "PUT", TAG),
        says="the registry lets nobody move it: tag is immutable (status 409)",
        hint="have tags of this name made mutable",
    ),
}

READING = {
    "wrong password": Case(login="wrong", says="HOST wants another login", hint="docker login HOST"),
    "403": Case(inject=always(status(403)), says="HOST forbids it", hint="docker login HOST"),
    "404": Case(inject=always(status(404), "GET"), says="there is no such image"),
    "429 once": Case(inject=once(status(429, Retry_After="1"))),
    "503 thrice": Case(inject=once(status(503), times=3)),
    "500 always": Case(inject=always(status(500)), says="HOST failed: no, says the proxy (status 500)"),
    "TLS unknown": Case(trust=False, says="certificate that is not trusted here", hint="SSL_CERT_FILE"),
    "manifest with another bit": Case(
        inject=always(flipped(20), "GET", "/manifests/"), says="its manifest is not what its digest says"
    ),
    "configuration with another bit": Case(
        inject=always(flipped(20), "GET", "/blobs/"), says="has other bytes than its digest says"
    ),
    "truncated configuration": Case(
        inject=always(truncated(50), "GET", "/blobs/"), says="has other bytes than its digest says, and only"
    ),
    "connection breaks in a blob, twice": Case(inject=once(broken(50), "GET", "/blobs/", times=2)),
    "slow": Case(
        inject=always(slow(200, chunk=20), "GET", "/blobs/"),
        says="HOST became too slow",
        hint="see that it runs",
    ),
    "silent": Case(inject=always(silent(1.5)), says="HOST fell silent for 1 s"),
    "gone": Case(inject=always(dies()), says="HOST broke the connection"),
}


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Certificate:
    return make_certificate(tmp_path_factory.mktemp("tls"))


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Registry]:
    with real_registry(tmp_path_factory.mktemp("registry"), password=True) as found:
        yield found


@pytest.fixture(scope="module")
def running(registry: Registry, certificate: Certificate) -> Iterator[FaultProxy]:
    with fault_proxy(registry.host, certificate=certificate) as found:
        yield found


@pytest.fixture
def proxy(running: FaultProxy) -> FaultProxy:
    running.clear()
    return running


@pytest.fixture(scope="module")
def published(
    registry: Registry, plans: dict[str, Plan], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, str]:
    """An image of the day before, published with nothing in between: what every fault must leave as it is."""
    folder = tmp_path_factory.mktemp("old")
    write_layout(folder / "layout", plans["cpu"])
    env = client_env(folder, registry.host)
    work = Publisher(registry=f"{registry.host}/team", env=env, say=lambda _: None, day="20261120")
    work.finish([work.stage(plans["cpu"], Layout(folder / "layout"))], "comfyui")
    tags = registry.tags(PATH)
    assert sorted(t for t in tags if not t.startswith("sha256-")) == [
        "0.33.0-cpu",
        "0.33.0-cpu-20261120",
        "cpu",
    ]
    return tags


def environment(case: Case, proxy: FaultProxy, certificate: Certificate, home: Path) -> dict[str, str]:
    return client_env(home, proxy.host, certificate=certificate if case.trust else None, password=case.login)


def check_told(
    case: Case, error: ImgbuildError, proxy: FaultProxy, capsys: pytest.CaptureFixture[str]
) -> None:
    assert case.says is not None, f"it should have passed: {error}"
    capsys.readouterr()
    assert tell_error(error) == 9
    said = capsys.readouterr().err
    assert case.says.replace("HOST", proxy.host) in said
    assert case.hint.replace("HOST", proxy.host) in (error.hint or "")
    assert "Traceback" not in said
    assert "\n" not in str(error)


@pytest.mark.parametrize("name", PUBLISHING)
def test_publishing(
    name: str,
    proxy: FaultProxy,
    registry: Registry,
    published: dict[str, str],
    certificate: Certificate,
    plans: dict[str, Plan],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    case = PUBLISHING[name]
    # Each case publishes an image of its own, so that none finds the blobs of another.
    made = write_layout(tmp_path / "layout", plans["cpu"], profile=name.encode(), bulk=_noise(name))
    before = {p: p.read_bytes() for p in (tmp_path / "layout").rglob("*") if p.is_file()}
    said: list[str] = []
    day = f"20261121.{list(PUBLISHING).index(name) + 1}"
    work = Publisher(
        registry=f"{proxy.host}/team",
        env=environment(case, proxy, certificate, tmp_path),
        say=said.append,
        day=day,
        patience=PATIENCE,
        again="imgbuild publish …",
    )
    tags = registry.tags(PATH)
    case.inject(proxy)
    caught = None
    try:
        work.finish([work.stage(plans["cpu"], Layout(tmp_path / "layout"))], "comfyui")
    except ImgbuildError as e:
        caught = e
    assert {p: p.read_bytes() for p in before} == before, "what was to be published is kept"
    if caught is None:
        assert case.says is None
        assert said, "what was tried again is said"
        assert registry.tags(PATH)["cpu"] == made["index"]
        return
    check_told(case, caught, proxy, capsys)
    if "immutable" not in (case.says or ""):
        assert "imgbuild publish …" in (caught.hint or "")
    after = registry.tags(PATH)
    assert {t: after.get(t) for t in ("cpu", "0.33.0-cpu")} == {t: tags[t] for t in ("cpu", "0.33.0-cpu")}
    new = {t for t in after if t not in tags and not t.startswith("sha256-")}
    assert new <= ({f"0.33.0-cpu-{day}"} if "immutable" in (case.says or "") else set())
    # What was there serves as before, and with the fault gone the same command goes through.
    proxy.clear()
    direct = client_env(tmp_path / "direct", registry.host)
    assert find(Reference.parse(f"{registry.host}/{PATH}:cpu"), env=direct).top.digest == tags["cpu"]
    env = environment(Case(), proxy, certificate, tmp_path / "again")
    again = Publisher(registry=f"{proxy.host}/team", env=env, say=said.append, day=day, patience=PATIENCE)
    again.finish([again.stage(plans["cpu"], Layout(tmp_path / "layout"))], "comfyui")
    assert registry.tags(PATH)["cpu"] == made["index"]


@pytest.mark.parametrize("name", READING)
def test_reading(
    name: str,
    proxy: FaultProxy,
    published: dict[str, str],
    certificate: Certificate,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    case = READING[name]
    case.inject(proxy)
    env = environment(case, proxy, certificate, tmp_path)
    reference = Reference.parse(f"{proxy.host}/{PATH}:0.33.0-cpu-20261120")
    try:
        found = find(reference, env=env, patience=PATIENCE, again="again")
    except ImgbuildError as e:
        check_told(case, e, proxy, capsys)
    else:
        assert case.says is None
        assert found.top.digest == published["0.33.0-cpu-20261120"]


def test_proxy_alone_changes_nothing(
    proxy: FaultProxy, published: dict[str, str], certificate: Certificate, tmp_path: Path
) -> None:
    env = environment(Case(), proxy, certificate, tmp_path)
    found = find(Reference.parse(f"{proxy.host}/{PATH}:0.33.0-cpu-20261120"), env=env)
    assert found.top.digest == published["0.33.0-cpu-20261120"]
    assert proxy.seen


def _noise(name: str) -> bytes:
    """100 kB that no compressor makes small, and that are the same each time."""
    return b"".join(hashlib.sha256(f"{name}{n}".encode()).digest() for n in range(3200))
