"""Outputs and inputs in folders: a disk, a container volume, NFS.

Only rename() moves anything, within one file system; no hard links and no extended attributes are needed.
"""

from __future__ import annotations

import errno
import os
import secrets
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, BinaryIO, Self

from comfywork.names import check_tenant
from comfywork.storage import media, names
from comfywork.storage.base import ListedObject, Place, Stored, Swept, nobody_holds
from comfywork.storage.errors import MissingError, StorageError
from comfywork.storage.intake import Intake
from comfywork.storage.tree import Tree
from comfywork.storage.volumeerrors import told

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path
    from types import TracebackType

    from comfywork.storage.base import OpenedObject

_TRIES = 20


class VolumeStorage:
    """`outputs` and `inputs` may be the same folder, and may lie on different file systems."""

    name = "volume"

    def __init__(self, outputs: Path, inputs: Path, *, max_output: int, max_input: int) -> None:
        self._outputs, self._inputs = Tree(outputs), Tree(inputs)
        self._max_output, self._max_input = max_output, max_input

    # --- outputs ---------------------------------------------------------------------------------

    def stage(self, place: Place, content: BinaryIO, size: int | None, media_type: str) -> Stored:  # noqa: ARG002
        intake = Intake(content, size, what=place.key, limit=self._max_output, setting="STORAGE_MAX_OUTPUT")
        self._write(self._outputs, place.staged, intake, size)
        return intake.stored(place.key)

    def publish(self, places: Sequence[Place]) -> None:
        # Folders are flushed once each, and those that gained a name before those that lost one: after a power cut
        # the object is at one of its two names, or at both.
        finals = {place.key.rpartition("/")[0] for place in places}
        with self._telling(self._outputs):
            for place in places:
                self._move(self._outputs, place.staged, place.key)
            for folder in sorted(finals) + sorted({place.staged.rpartition("/")[0] for place in places}):
                with suppress(FileNotFoundError), self._outputs.folder(folder) as opened:
                    os.fsync(opened)
            for place in places:
                self._outputs.prune(place.staged.rpartition("/")[0])

    def discard(self, tenant: str, job: str, token: int) -> None:
        self._clear(self._outputs, names.staging_of(tenant, job, token).rstrip("/"))

    def sweep_staging(
        self, older_than: float, held: Callable[[str, str], bool] = nobody_holds, *, dry_run: bool = False
    ) -> Swept:
        swept = Swept()
        for tree in self._trees():
            with self._telling(tree):
                swept += self._sweep(tree, self._clock(tree) - older_than, held, dry_run=dry_run)
        return swept

    def _sweep(self, tree: Tree, before: float, held: Callable[[str, str], bool], *, dry_run: bool) -> Swept:
        leases: dict[str, list[tuple[str, os.stat_result]]] = {}
        for path, status in tree.files(names.STAGING):
            leases.setdefault("/".join(path.split("/")[:4]), []).append((path, status))
        swept = Swept()
        for lease, files in leases.items():
            parts = lease.split("/")
            tenant, job = parts[1], parts[2] if len(parts) > 2 else ""  # noqa: PLR2004
            # One lease as a whole: its first output may be hours older than its last.
            if max(status.st_mtime for _, status in files) > before or held(tenant, job):
                continue
            swept += Swept(objects=len(files), size=sum(status.st_size for _, status in files))
            if not dry_run:
                for path, _ in files:
                    tree.remove(path)
        if not dry_run:
            tree.prune_old(names.STAGING, before)
        return swept

    # --- inputs ----------------------------------------------------------------------------------

    def put_input(
        self,
        tenant: str,
        name: str,
        content: BinaryIO,
        size: int | None,
        media_type: str,  # noqa: ARG002
    ) -> Stored:
        check_tenant(tenant)
        plain = names.input_name(name)
        intake = Intake(content, size, what=plain, limit=self._max_input, setting="STORAGE_MAX_INPUT")
        staging = names.staging_of(tenant, names.INPUTS, secrets.randbits(62))
        self._write(self._inputs, staging + "input", intake, size)
        key = names.input_key(tenant, intake.sha256, plain)
        with self._telling(self._inputs):
            self._move(self._inputs, staging + "input", key)
            with self._inputs.folder(key.rpartition("/")[0]) as folder:
                os.fsync(folder)
            self._inputs.prune(staging.rstrip("/"))
        return intake.stored(key)

    # --- what is published -----------------------------------------------------------------------

    def open(self, key: str) -> OpenedObject:
        tree = self._tree(key)
        parent, _, name = key.rpartition("/")
        with self._telling(tree):
            try:
                with tree.folder(parent) as folder:
                    return OpenedFile(tree.opened(folder, name), key)
            except (FileNotFoundError, NotADirectoryError):
                raise MissingError(key) from None

    def delete(self, key: str) -> None:
        tree = self._tree(key)
        with self._telling(tree):
            tree.remove(key)

    def keys(self, prefix: str) -> Iterator[ListedObject]:
        # The part of the prefix that names folders saves walking the rest.
        start = prefix.rpartition("/")[0] if not prefix.startswith(("/", ".")) else ""
        if any(part in (".", "..", "") for part in start.split("/")) and start:
            return
        found: dict[str, os.stat_result] = {}
        for tree in self._trees():
            with self._telling(tree):
                found |= {
                    path: status
                    for path, status in tree.files(start)
                    if path.startswith(prefix) and names.is_key(path) and self._tree(path) is tree
                }
        for path, status in sorted(found.items()):
            yield ListedObject(key=path, size=status.st_size, modified=status.st_mtime)

    def link(self, key: str, seconds: int) -> str | None:  # noqa: ARG002
        names.check_key(key)
        return None

    def now(self) -> float:
        with self._telling(self._outputs):
            return self._clock(self._outputs)

    def check(self) -> None:
        for tree in self._trees():
            with self._telling(tree):
                here = f"{names.STAGING}/check-{secrets.token_hex(8)}"
                try:
                    intake = Intake(_Probe(), None, what="a probe", limit=CHECK, setting="")  # type: ignore[arg-type]
                    self._write(tree, f"{here}/staged", intake, None)
                    self._move(tree, f"{here}/staged", f"{here}/published")
                finally:
                    self._clear(tree, here)

    # --- how -------------------------------------------------------------------------------------

    def _trees(self) -> tuple[Tree, ...]:
        return (self._outputs,) if self._inputs.root == self._outputs.root else (self._outputs, self._inputs)

    def _tree(self, key: str) -> Tree:
        if names.job_of(key) is not None or self._inputs.root == self._outputs.root:
            return self._outputs
        return self._inputs

    def _write(self, tree: Tree, path: str, intake: Intake, size: int | None) -> None:
        """The whole content at `path`, or nothing there: it is written beside and flushed before it has its name."""
        parent, _, name = path.rpartition("/")
        part = f".{secrets.token_hex(8)}.part"
        try:
            with self._telling(tree, intake), tree.new_file(parent, part) as (folder, file):
                try:
                    _room(folder, size)
                    for piece in intake.pieces():
                        _write_all(file, piece)
                    os.fsync(file)
                    os.rename(part, name, src_dir_fd=folder, dst_dir_fd=folder)
                except BaseException:
                    with suppress(OSError):
                        os.unlink(part, dir_fd=folder)
                    raise
                os.fsync(folder)
        except BaseException:
            with suppress(OSError):
                tree.prune(parent)
            raise

    def _move(self, tree: Tree, source: str, target: str) -> None:
        source_folder, _, source_name = source.rpartition("/")
        target_folder, _, target_name = target.rpartition("/")
        for _ in range(_TRIES):
            try:
                with tree.folder(source_folder) as here:
                    os.stat(source_name, dir_fd=here, follow_symlinks=False)
                    with tree.folder(target_folder, make=True) as there:
                        os.rename(source_name, target_name, src_dir_fd=here, dst_dir_fd=there)
                        return
            except FileNotFoundError:
                # Moved by another, or the target's empty folder was taken away between the two calls.
                if self._is_there(tree, target):
                    return
                if not self._is_there(tree, source):
                    raise MissingError(
                        target,
                        hint="it is not staged either: this job's result is lost, and has to be made again",
                    ) from None
        raise OSError(errno.EAGAIN, "the folder vanishes as often as it is made", target)

    def _is_there(self, tree: Tree, path: str) -> bool:
        parent, _, name = path.rpartition("/")
        try:
            with tree.folder(parent) as folder:
                os.close(tree.opened(folder, name))
        except (FileNotFoundError, NotADirectoryError):
            return False
        return True

    def _clear(self, tree: Tree, path: str) -> None:
        with self._telling(tree):
            for file, _ in list(tree.files(path)):
                tree.remove(file)
            tree.prune(path)

    def _clock(self, tree: Tree) -> float:
        """The time of the machine that keeps the files, which a mount over the network makes another one."""
        probe = f".clock-{secrets.token_hex(8)}"
        with tree.new_file(names.STAGING, probe) as (folder, file):
            try:
                os.write(file, b"0")
                return os.fstat(file).st_mtime
            finally:
                with suppress(FileNotFoundError):
                    os.unlink(probe, dir_fd=folder)

    @contextmanager
    def _telling(self, tree: Tree, intake: Intake | None = None) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            if intake is not None and intake.failure is error:
                raise
            raise told(error, tree.root) from error


class OpenedFile:
    """A file of a volume, being read; its type is what its first bytes say."""

    def __init__(self, file: int, key: str) -> None:
        self._file: int | None = file
        self._key = key
        self._left = self.size = os.fstat(file).st_size
        self.media_type = media.decide(os.pread(file, media.HEAD, 0), key)

    def read(self, size: int = -1, /) -> bytes:
        if self._file is None:
            raise ValueError(f"{self._key} is closed")
        wanted = self._left if size < 0 else min(size, self._left)
        pieces = []
        while wanted:
            try:
                piece = os.read(self._file, min(wanted, 1 << 24))
            except OSError as error:
                raise told(error, self._key) from error
            if not piece:
                raise StorageError(
                    f"{self._key} ended {self._left} bytes early: somebody cut it while it was read",
                    hint="nothing but this program should write into the volume",
                    retryable=True,
                )
            pieces.append(piece)
            wanted -= len(piece)
            self._left -= len(piece)
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def close(self) -> None:
        file, self._file = self._file, None
        if file is not None:
            os.close(file)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None, /
    ) -> None:
        self.close()

    def __del__(self) -> None:
        self.close()


CHECK = 64
"""Bytes of the object that `check` writes."""


class _Probe:
    def __init__(self) -> None:
        self._left = CHECK

    def read(self, size: int = -1, /) -> bytes:
        taken = self._left if size < 0 else min(size, self._left)
        self._left -= taken
        return b"0" * taken


def _write_all(file: int, piece: bytes) -> None:
    view = memoryview(piece)
    while view:
        view = view[os.write(file, view) :]


def _room(folder: int, size: int | None) -> None:
    """A disk that is too small is told before it is filled."""
    found = os.fstatvfs(folder)
    if size is not None and size > found.f_bavail * found.f_frsize:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
