"""What builds leave on the disk, and its removal. Only what this tool made is ever touched."""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from imgbuild.engines.docker import Docker

KINDS = ("images", "build-cache", "bases", "sources", "wheelhouse", "publish", "logs")
WHAT = {
    "images": "images we built, in the engine; a layer that two share counts for each",
    "build-cache": "BuildKit's cache: finished stages; without it the next build is a cold one",
    "bases": "bootstrapped Debian, as OCI layouts",
    "sources": "ComfyUI out of the package index",
    "wheelhouse": "compiled kernels",
    "publish": "images on their way to a registry; what a publish that was killed left",
    "logs": "one file a build",
}


@dataclass(frozen=True, kw_only=True)
class Usage:
    kind: str
    count: int
    bytes: int
    where: str


def usage(docker: Docker | None, cache: Path, repository: str) -> tuple[Usage, ...]:
    """Everything, by kind; without an engine only what lies under the cache folder."""
    found = []
    if docker is not None:
        system = docker.client.df()
        ours = [i for i in system.get("Images") or () if _own_tags(i.get("RepoTags") or (), repository)]
        found.append(
            Usage(kind="images", count=len(ours), bytes=sum(i["Size"] for i in ours), where="engine")
        )
        records = system.get("BuildCache") or ()
        size = sum(r["Size"] for r in records if not r.get("Shared"))
        found.append(Usage(kind="build-cache", count=len(records), bytes=size, where="engine"))
    for kind in KINDS[2:]:
        folder = cache / kind
        # Of the wheelhouse its wheels; its lock, and what it set aside, are none.
        pattern = "*/*/*.whl" if kind == "wheelhouse" else "*"
        entries = [p for p in folder.glob(pattern) if "rejected" not in p.parts] if folder.is_dir() else []
        found.append(Usage(kind=kind, count=len(entries), bytes=folder_size(folder), where=str(folder)))
    return tuple(found)


def folder_size(folder: Path) -> int:
    """Bytes on disk; a file with several hard links is counted once."""
    total, seen = 0, set()
    for root, _, names in os.walk(folder):
        for name in names:
            try:
                status = os.lstat(os.path.join(root, name))  # noqa: PTH118  (a walk over many files)
            except OSError:  # gone meanwhile
                continue
            if status.st_ino not in seen:
                seen.add(status.st_ino)
                total += status.st_blocks * 512
    return total


@dataclass(frozen=True, kw_only=True)
class Removed:
    what: str
    bytes: int


def prune(
    docker: Docker | None, cache: Path, repository: str, kinds: Sequence[str], *, dry_run: bool
) -> tuple[Removed, ...]:
    """Remove all of the given kinds; an image that a container uses stays."""
    removed: list[Removed] = []
    if docker is not None and "images" in kinds:
        removed += _prune_images(docker, repository, dry_run=dry_run)
    if docker is not None and "build-cache" in kinds:
        if dry_run:
            size = next(u.bytes for u in usage(docker, cache, repository) if u.kind == "build-cache")
        else:
            size = int(docker.client.api.prune_builds(all=True).get("SpaceReclaimed") or 0)
        removed.append(Removed(what="build cache", bytes=size))
    for kind in kinds:
        folder = cache / kind
        if kind in KINDS[2:] and folder.is_dir():
            removed.append(Removed(what=str(folder), bytes=folder_size(folder)))
            if not dry_run:  # out of sight by one rename: nobody may meet half of it
                going = folder.with_name(f".going-{kind}-{os.getpid()}")
                folder.rename(going)
                shutil.rmtree(going)
    return tuple(removed)


def _own_tags(tags: Sequence[str], repository: str) -> list[str]:
    """The tags that this tool gave; an image that somebody built from ours inherits our labels and is theirs."""
    return [t for t in tags if f"/{t.rpartition(':')[0]}".endswith(f"/{repository}")]


def _prune_images(docker: Docker, repository: str, *, dry_run: bool) -> list[Removed]:
    client = docker.client
    used = {c.attrs["Image"] for c in client.containers.list(all=True)}
    removed = []
    for image in client.images.list(filters={"label": "imgbuild.target"}):
        if image.id in used:
            continue
        for number, tag in enumerate(_own_tags(image.tags, repository)):
            size = int(image.attrs.get("Size", 0)) if number == 0 else 0  # once an image, not once a tag
            removed.append(Removed(what=tag, bytes=size))
            if not dry_run:
                client.images.remove(tag)
    return removed
