"""What an error of the operating system means for a volume, and the next step."""

from __future__ import annotations

import errno
import os
from contextlib import suppress
from typing import TYPE_CHECKING

from comfywork import quantities
from comfywork.storage.errors import StorageError

if TYPE_CHECKING:
    from pathlib import Path

_FULL = (errno.ENOSPC, errno.EDQUOT)
_FORBIDDEN = (errno.EACCES, errno.EPERM)
# A server that comes back, a machine under pressure: the same call may succeed later.
_PASSING = (
    *(errno.EIO, errno.ESTALE, errno.EAGAIN, errno.EINTR, errno.ETIMEDOUT, errno.EBUSY, errno.ENOMEM),
    *(errno.EMFILE, errno.ENFILE, errno.ECONNREFUSED, errno.EHOSTDOWN, errno.EHOSTUNREACH, errno.ENOTCONN),
)


def told(error: OSError, where: Path | str) -> StorageError:  # noqa: PLR0911 - one return a cause
    why = error.strerror or str(error)
    if error.errno in _FULL:
        free = ""
        with suppress(OSError):
            found = os.statvfs(where)
            free = f", {quantities.human(found.f_bavail * found.f_frsize)} are free"
        return StorageError(
            f"{where} is full ({why}{free})",
            hint="make room there, or shorten RETENTION (comfyrun queue clean); the job is kept meanwhile",
            retryable=True,
        )
    if error.errno == errno.EROFS:
        return StorageError(f"{where} is read-only", hint="mount the volume without :ro", retryable=False)
    if error.errno in _FORBIDDEN:
        return StorageError(
            f"{where}: user {os.geteuid()}, groups {sorted({os.getegid(), *os.getgroups()})} may not write there ({why})",
            hint="workers that share a volume run as the same user, or with one group that owns it "
            "(chgrp, chmod g+ws on its top folder)",
            retryable=False,
        )
    if error.errno == errno.EXDEV:
        return StorageError(
            f"{where} holds a mount below it: files cannot be renamed across it",
            hint="one volume for all of OUTPUTS_PATH, and one for all of INPUTS_PATH",
            retryable=False,
        )
    if error.errno in (errno.ELOOP, errno.ENOTDIR):
        return StorageError(
            f"{where} holds a link or a file where a folder belongs ({why}: {error.filename})",
            hint="nothing but this program should write into the volume; take it away",
            retryable=False,
        )
    if error.errno == errno.ENOENT:
        return StorageError(
            f"{where} is not there", hint="mount the volume, or make the folder", retryable=False
        )
    return StorageError(
        f"{where}: {why}",
        hint="look at the volume, and at the server behind it",
        retryable=error.errno in _PASSING,
    )
