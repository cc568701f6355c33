"""Part of every host stage: gives a tree under /o bytes that depend on its inputs alone."""

import compileall
import os
import py_compile
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

OUT = Path("/o")

# Bytecode depends on what its process compiled before (which strings it shares). So the work is cut into
# the same parts on every machine, however many cores it has, and each part gets a process of its own.
_PARTS = 16


def settle(epoch: int) -> None:
    """Bytecode without time stamps; one time, one owner, and nobody else may write.

    The image may be read-only and its user is not root: what is not compiled
    here would be compiled anew at every start.
    """
    os.environ["PYTHONHASHSEED"] = "0"
    files = sorted(OUT.rglob("*.py"))
    parts = [files[i::_PARTS] for i in range(min(_PARTS, len(files)))]
    with ProcessPoolExecutor(os.cpu_count(), mp_context=get_context("spawn"), max_tasks_per_child=1) as pool:
        list(pool.map(compile_files, parts))
    for folder, folders, names in os.walk(OUT, topdown=False):
        for name in (*names, *folders):
            path = Path(folder, name)
            if not path.is_symlink():
                path.chmod(0o755 if path.is_dir() or path.stat().st_mode & 0o100 else 0o644)
            os.chown(path, 0, 0, follow_symlinks=False)
            os.utime(path, (epoch, epoch), follow_symlinks=False)
    os.utime(OUT, (epoch, epoch))


def compile_files(files: list[Path]) -> None:
    """A file that does not compile (a template, Python 2) is simply left as it is."""
    for path in files:
        compileall.compile_file(
            path,
            quiet=2,
            stripdir=str(OUT),
            prependdir="/",
            invalidation_mode=py_compile.PycInvalidationMode.UNCHECKED_HASH,
        )
