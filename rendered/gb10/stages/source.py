"""Runs in a host stage: a kernel's source as it is compiled: the pinned files, with the recipe's edits, in /src."""

import argparse
import base64
import fnmatch
import hashlib
import json
import os
import re
import shutil
import ssl
import subprocess
import sys
import tarfile
import tempfile
import tomllib
import urllib.parse
import urllib.request
from pathlib import Path

IN = Path("/in")
SRC = Path("/src")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--epoch", type=int, required=True)
    parser.add_argument("--recipe", type=Path, required=True)
    parser.add_argument("--sdist", type=Path, help="a hashed requirement; else the source is mounted on /in")
    args = parser.parse_args()
    if args.sdist:
        unpack(args.sdist.read_text())
    else:
        shutil.copytree(IN, SRC, symlinks=True, ignore=shutil.ignore_patterns(".git", "__pycache__"))
    for edit in json.loads(args.recipe.read_text())["edits"]:
        apply(edit)
    for folder, folders, names in os.walk(SRC):  # ninja compares times
        for name in (*folders, *names):
            os.utime(Path(folder, name), (args.epoch, args.epoch), follow_symlinks=False)


def unpack(requirement: str) -> None:
    """Find the archive on the package index, fetch it, and unpack it if it is the pinned one."""
    pin, wanted = requirement.split(" --hash=sha256:")
    name, version = pin.split("==")
    with tempfile.TemporaryDirectory() as work:
        folder = Path(work)
        (folder / "in.txt").write_text(f"{pin}\n")
        # Or uv would run its setup.py, which imports torch, to ask what it depends on.
        (folder / "uv.toml").write_text(
            f'[[dependency-metadata]]\nname = "{name}"\nversion = "{version}"\nrequires-dist = []\n'
        )
        command = [
            "/uv/bin/uv",
            "pip",
            "compile",
            "in.txt",
            "--config-file",
            "uv.toml",
            "--no-deps",
            "--quiet",
        ]
        command += ["--no-binary", ":all:", "--format", "pylock.toml", "--output-file", "pylock.toml"]
        done = subprocess.run(command, cwd=folder, check=False)
        if done.returncode:
            sys.exit(done.returncode)
        url = tomllib.loads((folder / "pylock.toml").read_text())["packages"][0]["sdist"]["url"]
        archive = folder / "source.tar.gz"
        fetch(url, archive)
        found = hashlib.sha256(archive.read_bytes()).hexdigest()
        if found != wanted.strip():
            sys.exit(f"{pin}: the index gave a file with sha256 {found}, pinned is {wanted.strip()}")
        with tarfile.open(archive) as tar:
            tar.extractall(folder / "out", filter="data")
        (top,) = (folder / "out").iterdir()
        shutil.move(top, SRC)


def fetch(url: str, to: Path) -> None:
    """As uv would: with the machine's certificates, proxies, and its index's user and password."""
    context = ssl.create_default_context(cafile=os.environ.get("SSL_CERT_FILE"))
    request = urllib.request.Request(url)  # noqa: S310  (what uv answered)
    for index in (os.environ.get("UV_DEFAULT_INDEX", ""), *os.environ.get("UV_INDEX", "").split()):
        parts = urllib.parse.urlsplit(re.sub(r"^[\w.-]+=(?=\w+://)", "", index))
        if parts.username and parts.hostname == urllib.parse.urlsplit(url).hostname:
            user, password = (urllib.parse.unquote(x or "") for x in (parts.username, parts.password))
            word = base64.b64encode(f"{user}:{password}".encode()).decode()
            request.add_unredirected_header("Authorization", f"Basic {word}")
            break
    with urllib.request.urlopen(request, context=context, timeout=120) as answer, to.open("wb") as out:  # noqa: S310
        shutil.copyfileobj(answer, out)


def apply(edit: dict[str, object]) -> None:
    """Exactly once in each file, and to as many files as the recipe says."""
    names = sorted(p.relative_to(SRC).as_posix() for p in SRC.rglob("*") if p.is_file())
    paths = [SRC / n for n in names if fnmatch.fnmatchcase(n, edit["file"])]
    if len(paths) != edit["files"]:
        sys.exit(
            f"edit of {edit['file']}: there are {len(paths)} such files, and the recipe says {edit['files']}"
        )
    pattern = re.compile(edit["pattern"] if "pattern" in edit else re.escape(edit["old"]))
    for path in paths:
        text, count = pattern.subn(lambda _: edit["new"], path.read_text())
        if count != 1:
            sys.exit(f"edit of {path.relative_to(SRC)}: what it replaces occurs {count} times, and must once")
        path.write_text(text)


if __name__ == "__main__":
    main()
