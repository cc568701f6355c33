"""Nothing of the machine that built the image, and no secret, in any layer: also not in what a later layer hides."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from savedlayers import Search, search_image

from imgbuild.engines.blobs import blob_folder
from imgbuild.settings import read_settings

if TYPE_CHECKING:
    from collections.abc import Callable

    from imagecontainers import Engine

    from imgbuild.engines.docker import Docker
    from imgbuild.engines.podman import Podman
    from imgbuild.subject import Subject

pytestmark = pytest.mark.ring1

_SHORT = 8  # a word of fewer letters is somewhere by chance


@pytest.fixture(scope="module")
def search() -> Search:
    """For what this machine has and no image may hold. pytest shows a test's arguments when it fails: not the words."""
    settings = read_settings(os.environ)
    found = {f"setting {i} of this machine": w for i, w in enumerate(settings.words())}
    if settings.ca_bundle and not _everywhere(settings.ca_bundle):
        found["the certificate bundle's path"] = str(settings.ca_bundle)
    return Search({what: word.encode() for what, word in found.items() if len(word) >= _SHORT})


def _everywhere(path: Path) -> bool:
    """Whether a bundle lies where every Debian has one: then its path tells nothing."""
    return str(path).startswith(("/etc/ssl/certs/", "/usr/share/ca-certificates/", "/usr/lib/ssl/"))


def test_no_layer_holds_a_secret(
    engine: Engine,
    image: str,
    subject: Subject,
    own_engine: Docker | Podman,
    search: Search,
    record_property: Callable[[str, object], None],
) -> None:
    """Every file of every layer, the configuration and the attestations: by the words of this machine and by form."""
    digest = subject.image.digest
    folder = blob_folder(own_engine.data_root(), digest)
    search_image(engine, image, search, stored=(folder, digest) if folder else None)
    record_property("bytes_searched", search.read)
    assert search.layers >= 2
    assert search.read > 100_000_000, "every layer was read"
    assert sorted(search.found) == []
