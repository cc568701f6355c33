"""Part of every host stage: gives a tree under /o bytes that depend on its inputs alone."""

import compileall
import os
import py_compile
from pathlib import Path

OUT = Path("/o")


def settle(epoch: int) -> None:
    """Bytecode without time stamps; one time, one owner, and nobody else may write.

    The image may be read-only and its user is not root: what is not compiled
    here would be compiled anew at every start. A file that does not compile
    (a template, Python 2) is simply left as it is.
    """
    compileall.compile_dir(
        OUT,
        quiet=2,
        workers=0,
        stripdir=str(OUT),
        prependdir="/",
        invalidation_mode=py_compile.PycInvalidationMode.UNCHECKED_HASH,
    )
    for folder, folders, files in os.walk(OUT, topdown=False):
        for name in (*files, *folders):
            path = Path(folder, name)
            if not path.is_symlink():
                path.chmod(0o755 if path.is_dir() or path.stat().st_mode & 0o100 else 0o644)
            os.chown(path, 0, 0, follow_symlinks=False)
            os.utime(path, (epoch, epoch), follow_symlinks=False)
    os.utime(OUT, (epoch, epoch))
