"""A folder tree in which no path can lead anywhere else: every step is an openat() that follows no symbolic link."""

from __future__ import annotations

import errno
import os
import stat
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_FOLDER_MODE = 0o775
"""Beside the umask's: workers of different users, and one group, share a volume."""
_FILE_MODE = 0o664
_TRIES = 20


class RootGoneError(OSError):
    """The whole volume is away. No FileNotFoundError: nothing can be said of any file in it."""


class Tree:
    """`root` itself may be a link: where the volume lies is its operator's to say."""

    def __init__(self, root: Path) -> None:
        self.root = root

    @contextmanager
    def folder(self, path: str, *, make: bool = False) -> Iterator[int]:
        """A descriptor of the folder `path` below the root. FileNotFoundError when it is not there and not made."""
        for last in reversed(range(_TRIES if make else 1)):
            here = self._open_root()
            try:
                for part in filter(None, path.split("/")):
                    there = self._step(here, part, make=make)
                    os.close(here)
                    here = there
            except FileNotFoundError:
                # Somebody else took an empty folder away between two steps: from the top again.
                os.close(here)
                if last:
                    continue
                raise
            except BaseException:
                os.close(here)
                raise
            try:
                yield here
            finally:
                os.close(here)
            return

    def _open_root(self) -> int:
        try:
            return os.open(self.root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except FileNotFoundError as error:
            raise RootGoneError(error.errno, error.strerror, str(self.root)) from None

    def _step(self, here: int, part: str, *, make: bool) -> int:
        if part in (".", ".."):
            raise OSError(errno.EINVAL, "no name of a folder", part)
        if make:
            try:
                return os.open(part, _FOLDER, dir_fd=here)
            except FileNotFoundError:
                with suppress(FileExistsError):
                    os.mkdir(part, dir_fd=here)
                    _allow(part, _FOLDER_MODE, here)
                    os.fsync(here)
        return os.open(part, _FOLDER, dir_fd=here)

    @contextmanager
    def new_file(self, folder: str, name: str) -> Iterator[tuple[int, int]]:
        """Descriptors of the folder, made where missing, and of a new file in it, for writing."""
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        for last in reversed(range(_TRIES)):
            with self.folder(folder, make=True) as here:
                try:
                    file = os.open(name, flags, 0o666, dir_fd=here)
                except FileNotFoundError:  # the empty folder was taken away between the two calls
                    if not last:
                        raise
                    continue
                try:
                    with suppress(PermissionError):
                        os.fchmod(file, _FILE_MODE)
                    yield here, file
                finally:
                    os.close(file)
                return

    def opened(self, folder: int, name: str) -> int:
        """An existing file, for reading. FileNotFoundError for everything that is no regular file."""
        try:
            # Not blocking: a pipe of that name would stop us here.
            file = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=folder)
        except OSError as error:
            if error.errno in (errno.ELOOP, errno.ENXIO):
                raise FileNotFoundError(errno.ENOENT, "a link, or no file", name) from None
            raise
        if not stat.S_ISREG(os.fstat(file).st_mode):
            os.close(file)
            raise FileNotFoundError(errno.ENOENT, "no file", name)
        return file

    def files(self, path: str = "") -> Iterator[tuple[str, os.stat_result]]:
        """Every regular file below `path`, by its path from the root; sorted. What vanishes meanwhile is left out."""
        found: list[tuple[str, os.stat_result]] = []
        with suppress(FileNotFoundError, NotADirectoryError), self.folder(path) as folder:
            for entry in os.listdir(folder):  # noqa: PTH208 - of a descriptor
                with suppress(FileNotFoundError):
                    status = os.stat(entry, dir_fd=folder, follow_symlinks=False)
                    # Sorted as keys are: a folder by its name with the slash that follows it.
                    found.append((f"{entry}/" if stat.S_ISDIR(status.st_mode) else entry, status))
        for name, status in sorted(found, key=lambda pair: pair[0]):
            below = f"{path}/{name}" if path else name
            if name.endswith("/"):
                yield from self.files(below.rstrip("/"))
            elif stat.S_ISREG(status.st_mode):
                yield below, status

    def remove(self, path: str) -> bool:
        """Whether there was such a file; empty folders above it go too."""
        parent, _, name = path.rpartition("/")
        try:
            with self.folder(parent) as folder:
                os.unlink(name, dir_fd=folder)
                os.fsync(folder)
        except (FileNotFoundError, NotADirectoryError):
            return False
        finally:
            self.prune(parent)
        return True

    def prune(self, path: str) -> None:
        """Take away the folder `path` and those above it, as far as they are empty."""
        while path:
            parent, _, name = path.rpartition("/")
            try:
                with self.folder(parent) as folder:
                    os.rmdir(name, dir_fd=folder)
            except FileNotFoundError:
                pass
            except OSError:
                return
            path = parent

    def prune_old(self, path: str, before: float) -> None:
        """Take away every empty folder below `path` that has not changed since `before`."""
        with suppress(FileNotFoundError, NotADirectoryError), self.folder(path) as folder:
            for entry in os.listdir(folder):  # noqa: PTH208 - of a descriptor
                with suppress(FileNotFoundError):
                    status = os.stat(entry, dir_fd=folder, follow_symlinks=False)
                    if stat.S_ISDIR(status.st_mode):
                        self.prune_old(f"{path}/{entry}", before)
                        if status.st_mtime <= before:
                            with suppress(OSError):  # not empty
                                os.rmdir(entry, dir_fd=folder)


def _allow(name: str, mode: int, folder: int) -> None:
    with suppress(PermissionError, FileNotFoundError):
        os.chmod(name, mode, dir_fd=folder)
