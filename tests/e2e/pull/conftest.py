"""A registry with tiny images of every target, somebody between who notes every request, and the tool as users call it."""

from __future__ import annotations

import contextlib
import os
from typing import TYPE_CHECKING, Any

import docker
import docker.errors
import pytest
from faultproxy import FaultProxy, fault_proxy
from kit import ROOT
from pullkit import NAME, PATH, tiny
from registries import Certificate, make_certificate, real_registry
from scratch import copy_project
from tinyimages import push

from imgbuild.matrix import load_matrix
from imgbuild.plan import make_plan
from imgbuild.project import Project

if TYPE_CHECKING:
    from collections.abc import Iterator

    from imgbuild.plan import Plan


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A copy of the project whose images have another name: nobody's own tags move."""
    folder = tmp_path_factory.mktemp("project")
    return copy_project(Project(root=ROOT, writable=False), folder / "project", image=NAME)


@pytest.fixture(scope="module")
def plans(own: Project) -> dict[str, Plan]:
    matrix = load_matrix(own.images)
    return {n: make_plan(own, matrix, t) for n, t in matrix.targets.items()}


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Certificate]:
    """The tool trusts it, here and in every process; the engine asks nobody for one on loopback."""
    made = make_certificate(tmp_path_factory.mktemp("tls"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SSL_CERT_FILE", str(made.bundle()))
        yield made


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory, certificate: Certificate) -> Iterator[FaultProxy]:
    """TLS, because Docker falls back to plain HTTP only where the answer to its handshake begins like HTTP."""
    with (
        real_registry(tmp_path_factory.mktemp("registry")) as behind,
        fault_proxy(behind.host, certificate=certificate) as proxy,
    ):
        yield proxy


@pytest.fixture(scope="module")
def published(registry: FaultProxy, plans: dict[str, Plan]) -> dict[str, str]:
    """Target → digest of its manifest."""
    where = f"{registry.host}/{PATH}"
    return {n: push(f"{where}:{n}", tiny(p), os.environ, attested=n == "h100") for n, p in plans.items()}


@pytest.fixture
def where(registry: FaultProxy, published: dict[str, str]) -> str:
    return f"{registry.host}/{PATH}"


@pytest.fixture(autouse=True)
def tidy(client: Any, registry: FaultProxy) -> Iterator[None]:
    yield
    registry.clear()
    forget(client, f"{NAME}:", f"{registry.host}/")


def forget(client: Any, *beginnings: str) -> None:
    """Remove images by the beginning of their names, also those that the engine does not list."""
    for image in client.api.images():
        names = [*(image.get("RepoTags") or ()), *(image.get("RepoDigests") or ())]
        for name in names:
            if name.startswith(beginnings):
                with contextlib.suppress(docker.errors.NotFound):  # it lists names that it makes up
                    client.api.remove_image(name, force=True)
