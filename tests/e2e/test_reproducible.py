"""Equal inputs give equal layers, and no two layers disagree about a file."""

from __future__ import annotations

import hashlib
from typing import Any, NamedTuple

import pytest
from imagelayers import CHUNK, walk
from kit import GUARDED, look


def test_built_twice_every_layer_is_the_same(client, copy, cpu, guarded):
    # Once out of the cache (so in some build before), once without it under other settings of the machine.
    again = look(client, copy, GUARDED).image
    first = {layer.name: layer.digest for layer in cpu.image.layers}
    second = {layer.name: layer.digest for layer in again.layers}
    assert set(first) == set(second)
    assert {name for name in first if first[name] != second[name]} == set()
    assert [layer.name for layer in cpu.image.layers] == [layer.name for layer in again.layers]


class Entry(NamedTuple):
    type: bytes
    mode: int
    uid: int
    gid: int
    mtime: int
    content: str
    """Hash of a file's bytes, target of a link."""


@pytest.fixture(scope="module")
def entries(client, cpu) -> dict[str, dict[str, Entry]]:
    """Layer's name → path → what stands there, for the layers above the base."""
    found: dict[str, dict[str, Entry]] = {}

    def visit(blob: str, tar: Any, member: Any) -> None:
        content = member.linkname
        if member.isreg():
            digest = hashlib.sha256()
            stream = tar.extractfile(member)
            while chunk := stream.read(CHUNK):
                digest.update(chunk)
            content = digest.hexdigest()
        found.setdefault(blob, {})[member.name.strip("/")] = Entry(
            member.type, member.mode, member.uid, member.gid, int(member.mtime), content
        )

    digests = walk(client, cpu.image.reference, visit)
    names = {layer.digest: layer.name for layer in cpu.image.layers}
    return {
        name: found[blob]
        for blob, digest in digests.items()
        if not (name := names[digest]).startswith("base")
    }


def test_no_path_differs_between_two_layers(entries, cpu):
    assert {layer.name for layer in cpu.image.layers} - {"base"} == set(entries)
    seen: dict[str, tuple[str, Entry]] = {}
    shared, different = 0, []
    for layer, paths in entries.items():
        for path, entry in paths.items():
            if path in seen:
                shared += 1
                if seen[path][1] != entry:
                    different.append((path, *seen[path], layer, entry))
            seen[path] = (layer, entry)
    assert not different
    assert shared > 20, "the groups share at least the folders of the venv and its scripts"


def test_one_time_one_owner_nobody_else_writes(entries, cpu):
    epoch = cpu.image.plan.epoch
    odd = [
        (layer, path, entry)
        for layer, paths in entries.items()
        for path, entry in paths.items()
        if (entry.uid, entry.gid) != (0, 0)
        or entry.mtime != epoch
        or (entry.mode & 0o022 and entry.type != b"2")  # a symbolic link is always 0777
    ]
    assert odd == []
