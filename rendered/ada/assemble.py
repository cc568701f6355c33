"""Runs inside the host stages: makes a tree under /o whose bytes depend on its inputs alone.

`venv` installs one layer's wheels for the target's platform; `code` takes what
the stage copied to /o. Both compile to bytecode that carries no time stamp, and
give every file the same time.
"""

import argparse
import compileall
import fnmatch
import json
import os
import py_compile
import shutil
import subprocess
import sys
from pathlib import Path

OUT = Path("/o")
VENV = Path("/opt/venv")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("what", choices=["venv", "code"])
    parser.add_argument("--epoch", type=int, required=True)
    parser.add_argument("--platform", help="the target's, in uv's spelling")
    parser.add_argument("--tree", help="ComfyUI's folder under /o: what a server never needs is left out")
    args = parser.parse_args()
    if args.what == "venv":
        install(args.platform)
        apply_edits(json.loads(Path("/tmp/edits.json").read_text()))
        (OUT / "opt").mkdir(parents=True)
        VENV.rename(OUT / "opt/venv")
    if args.tree:
        clean(OUT / args.tree)
    # The bytecode of a file that does not compile (templates, Python 2) is simply not there.
    compileall.compile_dir(
        OUT,
        quiet=2,
        workers=0,
        stripdir=str(OUT),
        prependdir="/",
        invalidation_mode=py_compile.PycInvalidationMode.UNCHECKED_HASH,
    )
    settle(args.epoch)


def install(platform: str) -> None:
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(VENV)], check=True)
    for script in VENV.glob("bin/[aA]ctivate*"):
        script.unlink()
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    # Python's own file names the patch release: a Debian fix would then change every layer.
    VENV.joinpath("pyvenv.cfg").write_text(
        f"home = /usr/bin\ninclude-system-site-packages = false\nversion = {version}\n"
    )
    env = dict(os.environ)
    if any(Path("/wheels").glob("*.whl")):
        env["UV_FIND_LINKS"] = ",".join(filter(None, ["/wheels", env.get("UV_FIND_LINKS")]))
    # uv's cache lies beside the venv and goes with it: hard links, and nothing is stored twice.
    command = ["/uv/bin/uv", "pip", "install", "--python", str(VENV / "bin/python")]
    command += ["--python-platform", platform, "--requirement", "/tmp/requirements.txt"]
    command += ["--require-hashes", "--no-deps", "--only-binary", ":all:", "--no-config", "--no-progress"]
    command += ["--cache-dir", "/opt/uv-cache", "--link-mode", "hardlink"]
    done = subprocess.run(command, check=False, env=env)
    if done.returncode:
        sys.exit(done.returncode)
    shutil.rmtree("/opt/uv-cache")
    VENV.joinpath(".lock").unlink(missing_ok=True)


def apply_edits(edits: list[dict[str, object]]) -> None:
    """Only to packages of this layer; a text must occur exactly once, a pattern must match something."""
    site = next(VENV.glob("lib/python3*/site-packages"))
    here = {p.name.partition("-")[0].lower().replace("_", "-") for p in site.glob("*.dist-info")}
    for edit in edits:
        if edit["package"] not in here:
            continue
        for pattern in edit.get("remove", ()):
            found = [p for p in site.rglob("*") if fnmatch.fnmatch(str(p.relative_to(site)), pattern)]
            if not found:
                sys.exit(f"edit of {edit['package']}: nothing matches {pattern}")
            for path in found:
                path.unlink()
        if "file" in edit:
            path = site / edit["file"]
            text = path.read_text()
            if text.count(edit["old"]) != 1:
                sys.exit(
                    f"edit of {edit['package']}: the old text occurs {text.count(edit['old'])} times in {path}"
                )
            path.unlink()  # a hard link into uv's cache otherwise
            path.write_text(text.replace(edit["old"], edit["new"]))


def clean(tree: Path) -> None:
    for name in (".git", ".github", ".ci", "tests", "tests-unit", "__pycache__"):
        for path in tree.glob(name):
            shutil.rmtree(path) if path.is_dir() else path.unlink()


def settle(epoch: int) -> None:
    """One time, one owner, nobody else may write."""
    for folder, folders, files in os.walk(OUT, topdown=False):
        for name in (*files, *folders):
            path = Path(folder, name)
            if not path.is_symlink():
                path.chmod(0o755 if path.is_dir() or path.stat().st_mode & 0o100 else 0o644)
            os.chown(path, 0, 0, follow_symlinks=False)
            os.utime(path, (epoch, epoch), follow_symlinks=False)
    os.utime(OUT, (epoch, epoch))


if __name__ == "__main__":  # compileall's workers import this file
    main()
