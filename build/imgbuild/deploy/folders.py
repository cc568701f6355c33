"""Folders of this machine that a container is to have: there, writable by its user, and nobody else's."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import TYPE_CHECKING

from imgbuild.errors import ConfigError, nearest

if TYPE_CHECKING:
    from collections.abc import Mapping

# SELinux relabels what a container gets, and a container that owns one of these owns the machine.
_SYSTEM: tuple[str, ...] = (
    "/",
    "/lib64",
    *(f"/{n}" for n in ("bin", "boot", "dev", "etc", "home", "lib", "media", "mnt", "opt")),
)
_SYSTEM += tuple(f"/{n}" for n in ("proc", "root", "run", "sbin", "srv", "sys", "tmp", "usr", "var"))


def source_of(option: str, text: str, *, cwd: Path, env: Mapping[str, str]) -> str:
    """A folder as an absolute path, or the name of a volume: what has a slash, or begins with . or ~, is a folder."""
    if not text or any(c in text for c in ":,\n\0"):
        raise ConfigError(f"{option} {text!r}: a folder without : and , in its name, or a volume's name")
    if "/" not in text and not text.startswith((".", "~")):
        if (cwd / text).is_dir():
            raise ConfigError(
                f"{option} {text}: the named volume, or the folder of that name here?",
                hint=f"{option} ./{text} is the folder; another name, or another current folder, the volume",
            )
        return text
    home = env.get("HOME")
    path = Path(home + text[1:]) if home and (text == "~" or text.startswith("~/")) else Path(text)
    return os.path.normpath(cwd / path)


def owner(path: str) -> str:
    """UID:GID of who a folder belongs to."""
    found = Path(path).stat()
    return f"{found.st_uid}:{found.st_gid}"


def refuse_unusable(
    option: str, path: str, *, user: str, writable: bool, env: Mapping[str, str], mapped: bool = False
) -> None:
    """ConfigError for a folder that cannot serve. `user` is UID:GID; `mapped`: to the caller, by rootless Podman."""
    folder = Path(path)
    if path in _SYSTEM or path == os.path.normpath(env.get("HOME") or "/"):
        raise ConfigError(
            f"{option} {path}: a folder of the system's, or all of yours", hint="name a folder in it"
        )
    if not folder.exists():
        near = _near(folder)
        raise ConfigError(
            f"{option} {path}: there is no such folder" + (f"; did you mean {near}?" if near else ""),
            hint=f"mkdir -p {path}" + ("" if mapped else f" && sudo chown {user} {path}"),
        )
    if not folder.is_dir():
        raise ConfigError(f"{option} {path}: not a folder")
    found = folder.stat()
    uid, gid = (os.geteuid(), os.getegid()) if mapped else map(int, user.split(":"))
    if not may(folder, uid, gid, write=writable):
        what = "written" if writable else "read"
        raise ConfigError(
            f"{option} {path}: it belongs to {owner(path)}, and cannot be {what} by {uid}:{gid}",
            hint=("" if found.st_uid == 0 else f"--user {owner(path)}, or: ")
            + f"sudo chown {uid}:{gid} {path}",
        )


def may(folder: Path, uid: int, gid: int, *, write: bool) -> bool:
    """Whether a user of these numbers, without capabilities, gets into a folder; by its mode, so ACLs are not seen."""
    found = folder.stat()
    mode = stat.S_IMODE(found.st_mode)
    shift = 6 if found.st_uid == uid else 3 if found.st_gid == gid else 0
    wanted = 0o7 if write else 0o5
    return (mode >> shift) & wanted == wanted


def _near(folder: Path) -> str | None:
    try:
        siblings = [p.name for p in folder.parent.iterdir() if p.is_dir()]
    except OSError:
        return None
    name = nearest(folder.name, siblings)
    return str(folder.parent / name) if name else None
