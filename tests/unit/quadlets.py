"""Podman's own quadlet generator: where it lies, how to get it, and what it makes of units.

Podman has it since 4.4. As a program, this fetches Debian 13's, which needs no Podman beside it:

    python tests/unit/quadlets.py
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

sys.path.append(str(Path(__file__).parents[2] / "build"))

from imgbuild.project import cache_dir

if TYPE_CHECKING:
    from collections.abc import Mapping

FETCH = "python tests/unit/quadlets.py"
_INSIDE = "./usr/libexec/podman/quadlet"
_PACKAGES = ("podman/trixie", "podman")
"""Debian 13's first: Debian 12's Podman has no generator."""
_WORD = re.compile(r'(?:"(?:[^"\\]|\\.)*"|[^\s"])+')
_ESCAPED = {"n": "\n", "t": "\t"}


def fetched() -> Path:
    return cache_dir(os.environ) / "quadlet" / "quadlet"


def generator() -> str | None:
    """QUADLET names one; else the machine's own, or the one that was fetched."""
    places = (
        os.environ.get("QUADLET"),
        "/usr/libexec/podman/quadlet",
        "/usr/lib/podman/quadlet",
        str(fetched()),
    )
    return next((p for p in places if p and Path(p).is_file()), None)


def generate(files: Mapping[str, str], folder: Path, *, user: bool) -> subprocess.CompletedProcess[str]:
    """`quadlet -dryrun -v` of these units, in a folder of their own."""
    folder.mkdir(exist_ok=True)
    for name, text in files.items():
        (folder / name).write_text(text)
    found = generator()
    assert found
    return subprocess.run(
        [found, "-dryrun", "-v", *(["-user"] if user else [])],
        env={**os.environ, "QUADLET_UNIT_DIRS": str(folder)},
        capture_output=True,
        text=True,
        check=False,
    )


def services(said: str) -> dict[str, list[str]]:
    """The lines of each service in what the generator printed."""
    found: dict[str, list[str]] = {}
    for line in said.splitlines():
        if heading := re.fullmatch(r"---(\S+\.service)---", line):
            found[heading[1]] = []
        elif found:
            found[list(found)[-1]].append(line)
    return found


def command(lines: list[str], key: str, specifiers: Mapping[str, str]) -> list[str]:
    """The words of ExecStart= or ExecStop=, as systemd splits them and replaces %x and $$ in them."""
    [line] = [line for line in lines if line.startswith(f"{key}=")]
    return [_meant(word, specifiers) for word in _WORD.findall(line.partition("=")[2])]


def _meant(word: str, specifiers: Mapping[str, str]) -> str:
    def plain(quoted: re.Match[str]) -> str:
        return re.sub(r"\\(.)", lambda m: _ESCAPED.get(m[1], m[1]), quoted[1])

    text = re.sub(r'"((?:[^"\\]|\\.)*)"', plain, word)
    return re.sub(r"%(.)", lambda m: {"%": "%", **specifiers}[m[1]], text).replace("$$", "$")


def main() -> int:
    """Fetch the generator where the machine has none. 1 where no package has it."""
    begun = time.monotonic()
    if (there := generator()) is not None:
        print(f"{there} is there")
        return 0
    with tempfile.TemporaryDirectory() as folder:
        for package in _PACKAGES:
            argv = ["apt-get", "--quiet", "download", package]
            got = subprocess.run(argv, cwd=folder, check=False, capture_output=True, text=True)
            for path in Path(folder).glob("podman_*.deb"):
                if _extract(path):
                    print(f"{fetched()}, out of {path.name}; {time.monotonic() - begun:.1f} s")
                    return 0
                path.unlink()
    print(f"no package of Podman here has a quadlet generator: {got.stderr.strip()}", file=sys.stderr)
    return 1


def _extract(package: Path) -> bool:
    with subprocess.Popen(["dpkg-deb", "--fsys-tarfile", package], stdout=subprocess.PIPE) as tar:
        done = subprocess.run(["tar", "-xO", _INSIDE], stdin=tar.stdout, check=False, capture_output=True)
    if done.returncode:
        return False
    fetched().parent.mkdir(parents=True, exist_ok=True)
    fetched().write_bytes(done.stdout)
    fetched().chmod(0o755)
    if subprocess.run([fetched(), "--version"], check=False, capture_output=True).returncode:
        fetched().unlink()  # of a newer Debian than this machine's libc
        return False
    return True


if __name__ == "__main__":
    raise SystemExit(main())
