"""A volume that is away is not a file that is missing: the one comes back, the other's job has failed."""

from __future__ import annotations

import io
from pathlib import Path

import pytest

from comfywork.storage import MissingError, Place, StorageError, StorageSettings, open_storage


def test_publishing_and_reading_wait_for_the_volume(tmp_path: Path) -> None:
    root = tmp_path / "outputs"
    root.mkdir()
    environ = {"OUTPUTS_PATH": str(root), "INPUTS_PATH": str(root)}
    storage = open_storage(StorageSettings.from_environment(environ))
    place = Place(tenant="acme", job="00000000-0000-4000-8000-000000000001", token=1, name="9_0.png")
    storage.stage(place, io.BytesIO(b"png"), None, "image/png")
    root.rename(tmp_path / "away")
    for act in (lambda: storage.publish([place]), lambda: storage.open(place.key), storage.check):
        with pytest.raises(StorageError, match="is not there") as caught:
            act()
        assert not isinstance(caught.value, MissingError)
    (tmp_path / "away").rename(root)
    storage.publish([place])
    assert storage.open(place.key).read() == b"png"
