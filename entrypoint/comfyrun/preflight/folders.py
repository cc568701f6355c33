"""The volumes: what must be writable is, what must be there is, and compiled code may be loaded."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

from comfyrun.preflight.finding import Cause, Finding, error, info, ok, warning
from comfyrun.preflight.vram import gib

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from comfyrun.preflight.system import Space, System

MOUNTS = "/proc/self/mountinfo"
LITTLE = 1 << 30
_OWN = ("overlay", "aufs", "fuse.fuse-overlayfs", "vfs", "btrfs")
"""File systems that an engine lays under a container."""


@dataclass(frozen=True, kw_only=True)
class Mount:
    point: str
    kind: str


def check(
    system: System,
    *,
    data: str,
    cache: str,
    compiled: str | None,
    temp: str,
    troubles: Sequence[str],
) -> Iterator[Finding]:
    """`compiled`: where Triton keeps libraries, if it will; `troubles`: why a folder cannot be used, with the remedy."""
    for trouble in troubles:
        message, _, remedy = trouble.partition("; ")
        yield error("folders", Cause.MACHINE, message, *([remedy] if remedy else []))
    mounts = list(read_mounts(system.read(MOUNTS) or ""))
    if not troubles:
        for name, path in (("data", data), ("cache", cache)):
            yield _volume(name, path, mount_of(path, mounts), system.space(path))
        if compiled is not None:
            yield _exec(compiled, system.executable(compiled))
    yield _temp(temp, system.writable(temp))


def read_mounts(text: str) -> Iterator[Mount]:
    """The mounts in /proc/self/mountinfo; what cannot be understood is left out."""
    for line in text.splitlines():
        left, dash, right = line.partition(" - ")
        fields, kinds = left.split(), right.split()
        if dash and len(fields) > 4 and kinds:  # noqa: PLR2004  (id, parent, device, root, mount point)
            yield Mount(point=_plain(fields[4]), kind=kinds[0])


def _plain(point: str) -> str:
    for code, character in (("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")):
        point = point.replace(code, character)
    return point


def mount_of(path: str, mounts: Sequence[Mount]) -> Mount | None:
    """The last mount that holds `path`: the deepest, and of those at one place the one on top."""
    parts = path.rstrip("/").split("/")
    best: Mount | None = None
    depth = -1
    for mount in mounts:
        found = [part for part in mount.point.split("/") if part]
        if parts[1 : len(found) + 1] == found and len(found) >= depth:
            best, depth = mount, len(found)
    return best


def _volume(name: str, path: str, mount: Mount | None, space: Space | None) -> Finding:
    room = f"; {gib(space.free)} free" if space is not None else ""
    if mount is not None and mount.point == "/" and mount.kind in _OWN:
        return warning(
            name,
            f"{path} is in the container's own layer: what is written there goes when the container goes",
            f"mount a volume there: --volume comfy-{name}:{path}",
        )
    if space is not None and space.free < LITTLE:
        return warning(
            name, f"{path} is writable{room}", "free some space before a model is loaded or a picture saved"
        )
    return ok(name, f"{path} is writable{room}")


def _exec(path: str, allowed: bool | None) -> Finding:
    if allowed is False:
        return warning(
            "exec",
            f"{path} does not allow execution, so what Triton compiles cannot be loaded: attention falls back at every call",
            "mount it without noexec (a tmpfs: --tmpfs /cache:exec), or point COMFY_CACHE elsewhere",
        )
    if allowed is None:
        return info("exec", f"whether {path} allows execution could not be tried")
    return ok("exec", f"{path} allows execution")


def _temp(path: str, why: OSError | None) -> Finding:
    if why is None:
        return ok("temp", f"{path} is writable")
    return warning(
        "temp",
        f"{path} cannot be written to by UID {os.getuid()} ({why.strerror or why}): what expects it there fails",
        "--tmpfs /tmp:exec",
    )


def shared(system: System, paths: Sequence[str], origin: str, *, strict: bool) -> Iterator[Finding]:
    """Storage that others fill (COMFY_MODELS, or what `origin` calls it). Nothing is ever made in its place."""
    for path in paths:
        if not system.exists(path):
            yield error(
                "models",
                Cause.MACHINE,
                f"{path} is not there, and {origin} names it: the storage is not mounted",
                f"mount it on the host, and into the container (--volume /where/it/is:{path}:ro), "
                f"or take it out of {origin}",
            )
        elif system.folder(path) and not system.names(path):
            # What an engine makes of a source that does not exist.
            text = f"{path} ({origin}) is empty, or UID {os.getuid()} may not list it"
            remedy = "is the storage mounted on the host? An engine makes an empty folder of a source that is missing"
            yield error("models", Cause.MACHINE, text, remedy) if strict else warning("models", text, remedy)
        else:
            yield ok("models", f"{path} is there")


def temporary(environ: Mapping[str, str]) -> str:
    """Where programs of this environment put temporary files, if they can."""
    return next((environ[name] for name in ("TMPDIR", "TEMP", "TMP") if environ.get(name)), "/tmp")  # noqa: S108
