"""`imgbuild save` and `imgbuild load`: an image out of one engine, into a file, into another."""

from __future__ import annotations

import errno
import os
import shutil
from typing import TYPE_CHECKING, Any

from imgbuild import __version__, archive
from imgbuild.contents import of_sbom
from imgbuild.engines.store import check_room
from imgbuild.errors import ConfigError, DiskError, EngineError, SelectionError, UnsoundError
from imgbuild.report import human

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from imgbuild.archive import Listing
    from imgbuild.engines.store import Store

    Say = Callable[[str], None]
    MeterOf = Callable[[str, int], Any]

_LEAST = 0.3
"""Of an image's bytes, what its archive takes at least: 0.35 for cpu (measured), 0.50 for h100 (bench/sizes.py)."""
_UNPACKED = 2.1
"""Bytes that one of a compressed layer is unpacked to."""


def save(
    engine_store: Store,
    reference: str,
    path: Path,
    *,
    sbom: bytes | None = None,
    meter: MeterOf,
    say: Say,
) -> Listing:
    """Write the image to `path`; what was there stays until the new file is whole.

    SelectionError when the engine has no such image, DiskError when the file would not fit.
    """
    engine = engine_store.engine
    if sbom is not None:
        try:
            of_sbom(sbom)
        except UnsoundError as e:
            raise ConfigError(
                f"--sbom: {e}", hint="imgbuild sbom prints the one of a published image"
            ) from None
    view = engine_store.view(reference, ())
    if view is None:
        target = view_target(reference)
        raise SelectionError(
            f"{engine.name} has no image {reference}",
            hint=f"imgbuild build --target {target}, or imgbuild pull --target {target} --registry REGISTRY/PATH",
        )
    folder = path.absolute().parent
    if not folder.is_dir():
        raise ConfigError(f"--output {path}: there is no folder {folder}")
    found = engine.find(reference)
    total = found.size if found and found.size else view.unpacked or 0
    free = shutil.disk_usage(folder).free
    if free < total * _LEAST:
        raise DiskError(
            f"{path}: the archive takes {human(int(total * _LEAST))} or more, and {human(free)} are free in {folder}",
            hint="name a file on another disk",
        )
    say(f"saving {reference} ({view.platform}, {human(total)} on disk)" if total else f"saving {reference}")
    partial = path.with_name(f".{path.name}.part-{os.getpid()}")
    try:
        with (
            meter(f"reading {reference}", total) as progress,
            partial.open("wb") as file,
            engine_store.save(reference) as stream,
        ):
            listing = archive.write(
                stream,
                file,
                reference=reference,
                platform=view.platform,
                labels=dict(view.labels),
                made_by=f"imgbuild {__version__}",
                sbom=sbom,
                progress=progress.add,
                threads=min(4, os.cpu_count() or 1),
            )
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except OSError as e:
        if e.errno == errno.ENOSPC:
            raise DiskError(
                f"the disk became full while {path} was written; the part is removed",
                hint="name a file on another disk",
            ) from None
        raise
    finally:
        partial.unlink(missing_ok=True)
    return listing


def load(engine_store: Store | None, path: Path, *, meter: MeterOf, say: Say) -> Listing:
    """Check the file and give its image to the engine; without one only check.

    VerificationError when the file is damaged or cut off: the engine then got nothing. DiskError when the image would
    not fit.
    """
    if not path.is_file():
        raise ConfigError(f"there is no file {path}")
    size = path.stat().st_size
    with meter(f"checking {path.name}", size) as progress:
        checked = archive.check(path, progress.at)
    listing = checked.listing
    try:
        _, manifest, config = checked.image()
    except UnsoundError as e:
        raise archive.damaged(path, str(e)) from None
    say(f"{len(listing.blobs)} blobs are what their digests say: {listing.reference} for {listing.platform}")
    if engine_store is None:
        return listing
    unpacked = sum(
        layer.size if layer.digest == diff else int(layer.size * _UNPACKED)
        for layer, diff in zip(manifest.layers, config.rootfs.diff_ids, strict=False)
    )
    check_room(engine_store, listing.size + unpacked, "the image takes")
    engine = engine_store.engine
    before = engine.find(listing.reference)
    with meter(f"giving it to {engine.name}", size) as progress:
        loaded = engine_store.load(archive.pieces(path, progress.at))
    # Podman puts docker.io/library in front of Docker's names, Docker takes Podman's localhost for a registry.
    own = {listing.reference, f"localhost/{listing.reference}" if engine.name == "podman" else ""}
    if loaded is not None and loaded not in own:
        engine_store.tag(loaded, listing.reference)
    after = engine.find(listing.reference)
    if after is None:
        raise EngineError(f"{engine.name} took {path} in, and has no {listing.reference}")
    if before is not None and before.digest != after.digest:
        say(f"{listing.reference} was {before.digest[:19]} before")
    return listing


def view_target(reference: str) -> str:
    """What a tag like comfyui:h100 names."""
    return reference.rpartition(":")[2] if ":" in reference else "NAME"
