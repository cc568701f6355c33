"""`imgbuild publish` with the real cpu image, into a real registry with TLS and a password."""

from __future__ import annotations

import json
import shutil
import subprocess
from typing import TYPE_CHECKING, Any

import pytest
from kit import IMAGE, TARGET, imgbuild
from registries import client_env, make_certificate, real_registry

from imgbuild.reference import Reference
from imgbuild.registry import Repository
from imgbuild.remoteimage import find
from imgbuild.settings import read_settings

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from kit import Built
    from registries import Registry

    from imgbuild.project import Project

DAY = "20261121"


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Registry]:
    folder = tmp_path_factory.mktemp("registry")
    with real_registry(folder, certificate=make_certificate(folder / "tls"), password=True) as found:
        yield found
    shutil.rmtree(folder)  # half a gigabyte


@pytest.fixture(scope="module")
def env(registry: Registry, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    home = tmp_path_factory.mktemp("home")
    return client_env(home, registry.host, certificate=registry.certificate)


def publish(
    registry: Registry, project: Project, env: dict[str, str], *words: str
) -> subprocess.CompletedProcess[str]:
    own = ("--registry", f"{registry.host}/team", "--date", DAY, "--progress", "plain", "--json")
    return imgbuild(project, "publish", "--target", TARGET, *own, *words, env=env)


@pytest.fixture(scope="module")
def dry(registry: Registry, copy: Project, cpu: Built, env: dict[str, str]) -> Any:
    """What would be sent to a registry in which nothing is."""
    done = publish(registry, copy, env, "--dry-run")
    assert done.returncode == 0, done.stderr[-3000:]
    assert registry.tags(f"team/{IMAGE}") == {}
    assert not registry.blobs.exists()
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def first(registry: Registry, copy: Project, dry: Any, env: dict[str, str]) -> Any:
    done = publish(registry, copy, env)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout)


def test_first_push(first: Any, dry: Any, cpu: Built, registry: Registry, env: dict[str, str]) -> None:
    image = first["images"][TARGET]
    assert image["bytes"]["sent"] > 300_000_000
    assert (image["bytes"]["there"], image["bytes"]["mounted"]) == (0, 0)
    assert not image["differs_from_engine"]
    # Provenance alone is another each time, and with it some hundred bytes.
    assert abs(dry["images"][TARGET]["bytes"]["sent"] - image["bytes"]["sent"]) < 2000
    assert dry["images"][TARGET]["digest"] == image["digest"], "compressed twice, the bytes are the same"
    tags = {t["tag"].rpartition(":")[2] for t in first["tags"]}
    assert len(tags) == 3
    assert {"cpu"} < tags
    assert sum(t.endswith(f"-{DAY}") for t in tags) == 1
    assert {registry.tags(f"team/{IMAGE}")[t] for t in tags} == {image["index"]}
    found = find(Reference.parse(f"{registry.host}/team/{IMAGE}:{TARGET}"), env=env)
    assert (found.digest, found.index_digest) == (image["digest"], image["index"])
    assert found.labels["imgbuild.target"] == TARGET
    assert list(found.config.rootfs.diff_ids) == [layer.digest for layer in cpu.image.layers]
    assert all(layer.media_type.endswith("tar+zstd") for layer in found.layers)


def test_nothing_changed(first: Any, registry: Registry, copy: Project, env: dict[str, str]) -> None:
    before = registry.tags(f"team/{IMAGE}")
    done = publish(registry, copy, env)
    assert done.returncode == 0, done.stderr[-3000:]
    again = json.loads(done.stdout)
    assert again["images"][TARGET]["digest"] == first["images"][TARGET]["digest"]
    assert again["images"][TARGET]["index"] == first["images"][TARGET]["index"]
    assert again["images"][TARGET]["bytes"]["sent"] == 0
    assert {t["state"] for t in again["tags"]} == {"there"}
    assert registry.tags(f"team/{IMAGE}") == before


def test_tag_of_the_day_and_a_changed_profile(
    first: Any, registry: Registry, changed: Project, env: dict[str, str]
) -> None:
    before = registry.tags(f"team/{IMAGE}")
    path = changed.images / "targets" / f"{TARGET}.yaml"
    text = path.read_text()
    assert "title: " in text
    path.write_text(text.replace("title: ", "title: Another ", 1))
    done = publish(registry, changed, env)
    assert done.returncode == 9, done.stderr[-3000:]
    assert "tags of a day never move" in done.stderr
    assert f"--date {DAY}.2" in done.stderr
    assert registry.tags(f"team/{IMAGE}") == before
    own = ("--registry", f"{registry.host}/team", "--date", f"{DAY}.2", "--json")
    done = imgbuild(changed, "push", "-t", TARGET, *own, env=env)
    assert done.returncode == 0, done.stderr[-3000:]
    moved = json.loads(done.stdout)["images"][TARGET]
    assert moved["digest"] != first["images"][TARGET]["digest"]
    assert moved["bytes"]["sent"] < 1_000_000
    assert moved["bytes"]["there"] > 300_000_000
    after = registry.tags(f"team/{IMAGE}")
    assert {t: after[t] for t in before if t.endswith(DAY)} == {
        t: before[t] for t in before if t.endswith(DAY)
    }
    assert after[TARGET] == moved["index"] != before[TARGET]


def test_sbom(first: Any, registry: Registry, copy: Project, env: dict[str, str]) -> None:
    reference = f"{registry.host}/team/{IMAGE}@{first['images'][TARGET]['digest']}"
    done = imgbuild(copy, "sbom", reference, env=env)
    assert done.returncode == 0, done.stderr
    bom = json.loads(done.stdout)
    assert bom["metadata"]["component"]["bom-ref"] == first["images"][TARGET]["digest"]
    purls = [c.get("purl", "") for c in bom["components"]]
    assert sum(p.startswith("pkg:deb/debian/") for p in purls) > 100
    assert any(p.startswith("pkg:deb/debian/libc6@") for p in purls)
    assert any(p.startswith("pkg:pypi/torch@") for p in purls)


def test_provenance_knows_nothing_of_this_machine(
    first: Any, registry: Registry, env: dict[str, str]
) -> None:
    name = Reference.parse(f"{registry.host}/team/{IMAGE}")
    with Repository.of(name, env=env) as repository:
        index = repository.manifest(first["images"][TARGET]["index"])
        assert index is not None
        (entry,) = (m for m in index.index().manifests if m.is_attestation)
        attested = repository.manifest(entry.digest)
        assert attested is not None
        (statement,) = attested.manifest().layers
        text = repository.read(statement).decode()
    assert json.loads(text)["predicateType"].startswith("https://slsa.dev/provenance/")
    assert not [word for word in read_settings(env).words() if word in text]


def test_nothing_is_left(first: Any, cache: Path) -> None:
    folder = cache / "publish"
    assert not folder.exists() or not list(folder.iterdir())


def test_wrong_password_is_told_before_anything_is_built(
    registry: Registry,
    copy: Project,
    tmp_path: Path,
    first: Any,
) -> None:
    before = registry.tags(f"team/{IMAGE}")
    env = client_env(tmp_path, registry.host, certificate=registry.certificate, password="wrong")
    done = publish(registry, copy, env)
    assert done.returncode == 9
    assert f"{registry.host} wants another login" in done.stderr
    assert f"docker login {registry.host}, then: imgbuild publish --target {TARGET}" in done.stderr
    assert "#1 " not in done.stderr, "BuildKit was not started"
    assert registry.tags(f"team/{IMAGE}") == before
