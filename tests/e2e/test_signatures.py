"""cosign's signatures at a real registry with TLS and a password, on an image of a few kilobytes."""

from __future__ import annotations

import os
import shutil
import subprocess
from typing import TYPE_CHECKING

import pytest
from registries import client_env, make_certificate, real_registry
from tinyimage import write_layout

from imgbuild.cosign import sign, verify_signature
from imgbuild.errors import ConfigError, RegistryError, VerificationError
from imgbuild.layout import Layout
from imgbuild.publisher import Publisher

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from registries import Registry

    from imgbuild.plan import Plan
    from imgbuild.publisher import Staged
    from imgbuild.reference import Reference

pytestmark = pytest.mark.skipif(
    shutil.which("cosign") is None, reason="cosign is not installed: apt-get install cosign"
)


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Registry]:
    folder = tmp_path_factory.mktemp("registry")
    with real_registry(folder, certificate=make_certificate(folder / "tls"), password=True) as found:
        yield found


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """mine.key, mine.pub, theirs.key, theirs.pub; the password is 'open'."""
    folder = tmp_path_factory.mktemp("keys")
    for name in ("mine", "theirs"):
        subprocess.run(
            ["cosign", "generate-key-pair", "--output-key-prefix", name],
            cwd=folder,
            env={**os.environ, "COSIGN_PASSWORD": "open"},
            check=True,
            capture_output=True,
        )
    return folder


@pytest.fixture
def env(registry: Registry, tmp_path: Path) -> dict[str, str]:
    return {
        **client_env(tmp_path, registry.host, certificate=registry.certificate),
        "COSIGN_PASSWORD": "open",
    }


def publisher(registry: Registry, env: dict[str, str], path: str, key: Path | None) -> Publisher:
    return Publisher(
        registry=f"{registry.host}/{path}",
        env=env,
        say=lambda _: None,
        day="20261121",
        key=str(key) if key else None,
    )


@pytest.fixture
def signed(
    registry: Registry, env: dict[str, str], keys: Path, plans: dict[str, Plan], tmp_path: Path
) -> tuple[Publisher, Staged]:
    """An image of a test of its own, and who published it."""
    write_layout(tmp_path / "layout", plans["cpu"])
    work = publisher(registry, env, tmp_path.name.strip("_").replace("__", "-").lower(), keys / "mine.key")
    return work, work.stage(plans["cpu"], Layout(tmp_path / "layout"))


def names(work: Publisher, staged: Staged) -> tuple[Reference, Reference]:
    """The platform's manifest, and the index that a tag points to."""
    name = work.name("comfyui")
    return name.at(staged.digest), name.at(staged.top.digest)


def test_image_and_index_are_signed_before_the_tags(
    signed: tuple[Publisher, Staged], keys: Path, env: dict[str, str], registry: Registry
) -> None:
    work, staged = signed
    assert staged.signed
    path = work.name("comfyui").path
    tags = registry.tags(path)
    assert {f"{d.replace(':', '-')}.sig" for d in (staged.digest, staged.top.digest)} < set(tags)
    assert "cpu" not in tags
    for reference in names(work, staged):
        verify_signature(reference, str(keys / "mine.pub"), env)
    work.finish([staged], "comfyui")
    plain = ["cosign", "verify", "--insecure-ignore-tlog=true", "--key", str(keys / "mine.pub")]
    tagged = str(work.name("comfyui").tagged("cpu"))
    assert subprocess.run([*plain, tagged], env=env, check=False, capture_output=True).returncode == 0


def test_signed_once(
    signed: tuple[Publisher, Staged], keys: Path, env: dict[str, str], registry: Registry
) -> None:
    work, staged = signed
    before = registry.tags(work.name("comfyui").path)
    assert sign(names(work, staged), str(keys / "mine.key"), env) == ()
    assert registry.tags(work.name("comfyui").path) == before


def test_other_keys_and_none(
    signed: tuple[Publisher, Staged], keys: Path, env: dict[str, str], registry: Registry
) -> None:
    work, staged = signed
    image, _ = names(work, staged)
    with pytest.raises(VerificationError, match=r"is not signed by .*theirs\.pub") as caught:
        verify_signature(image, str(keys / "theirs.pub"), env)
    assert "\n" not in str(caught.value)
    with pytest.raises(VerificationError, match=r"is not signed$"):
        verify_signature(work.name("comfyui").at(staged.sbom), str(keys / "mine.pub"), env)
    with pytest.raises(ConfigError, match="a signature is of a digest, not of a tag"):
        verify_signature(work.name("comfyui").tagged("cpu"), str(keys / "mine.pub"), env)
    with pytest.raises(ConfigError, match="there is no key"):
        verify_signature(image, str(keys / "nobody.pub"), env)
    assert sign([image], str(keys / "theirs.key"), env) == (image,), "a second signature beside the first"
    for key in ("mine.pub", "theirs.pub"):
        verify_signature(image, str(keys / key), env)


def test_signature_of_another_image(
    signed: tuple[Publisher, Staged], keys: Path, env: dict[str, str], registry: Registry
) -> None:
    """Whoever may write tags can move a signature; it then is of other bytes."""
    from imgbuild.registry import Repository

    work, staged = signed
    name = work.name("comfyui")
    with Repository.of(name, env=env, actions="pull,push") as repository:
        signature = repository.manifest(f"{staged.digest.replace(':', '-')}.sig")
        assert signature is not None
        repository.put_manifest(f"{staged.sbom.replace(':', '-')}.sig", signature)
    with pytest.raises(VerificationError, match="is not signed by"):
        verify_signature(name.at(staged.sbom), str(keys / "mine.pub"), env)


def test_password_of_the_key(signed: tuple[Publisher, Staged], keys: Path, env: dict[str, str]) -> None:
    work, staged = signed
    wrong = env | {"COSIGN_PASSWORD": "wrong"}
    with pytest.raises(ConfigError, match="cannot be used") as caught:
        sign(names(work, staged), str(keys / "mine.key"), wrong)
    assert caught.value.hint == "see COSIGN_PASSWORD"
    without = {k: v for k, v in env.items() if k != "COSIGN_PASSWORD"}
    with pytest.raises(ConfigError, match=r"the password of .* is not known"):
        sign(names(work, staged), str(keys / "mine.key"), without)


def test_registry_that_does_not_answer(
    keys: Path, env: dict[str, str], signed: tuple[Publisher, Staged]
) -> None:
    work, staged = signed
    nobody = work.name("comfyui").at(staged.digest).parse(f"localhost:1/x@{staged.digest}")
    with pytest.raises(RegistryError, match="localhost:1 does not run"):
        verify_signature(nobody, str(keys / "mine.pub"), env)
