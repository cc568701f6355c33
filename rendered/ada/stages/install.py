"""Runs in a host stage: installs one layer's wheels for the target's platform into /o/opt/venv."""

import argparse
import fnmatch
import hashlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

from settle import OUT, settle

VENV = Path("/opt/venv")
REQUIREMENTS = Path("/tmp/requirements.txt")
EDITS = Path("/tmp/edits.json")
WHEELS = Path("/wheels")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--epoch", type=int, required=True)
    parser.add_argument("--platform", required=True, help="the target's, in uv's spelling")
    parser.add_argument("--wheels", action="store_true", help="what lies in /wheels, and nothing else")
    args = parser.parse_args()
    install(args.platform, what_lies_there() if args.wheels else REQUIREMENTS)
    if EDITS.exists():
        apply_edits(json.loads(EDITS.read_text()))
    (OUT / "opt").mkdir(parents=True)
    VENV.rename(OUT / "opt/venv")
    settle(args.epoch)


def what_lies_there() -> Path:
    """Requirements of the wheels at hand: compiled ones, which no lock can name before they are made."""
    requirements = Path("/opt/requirements.txt")
    found = sorted(WHEELS.glob("*.whl"))
    hashes = [hashlib.sha256(w.read_bytes()).hexdigest() for w in found]
    lines = [f"{w} --hash=sha256:{h}\n" for w, h in zip(found, hashes, strict=True)]
    requirements.write_text("".join(lines))
    return requirements


def install(platform: str, requirements: Path) -> None:
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(VENV)], check=True)
    for script in VENV.glob("bin/[aA]ctivate*"):
        script.unlink()
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    # Python's own file names the patch release: a Debian fix would then change every layer.
    VENV.joinpath("pyvenv.cfg").write_text(
        f"home = /usr/bin\ninclude-system-site-packages = false\nversion = {version}\n"
    )
    # Several stages download at once: few connections each, and more patience than uv's own.
    env = {"UV_CONCURRENT_DOWNLOADS": "8", "UV_HTTP_RETRIES": "8", "UV_HTTP_TIMEOUT": "120", **os.environ}
    if any(WHEELS.glob("*.whl")):
        env["UV_FIND_LINKS"] = ",".join(filter(None, [str(WHEELS), env.get("UV_FIND_LINKS")]))
    command = ["/uv/bin/uv", "pip", "install", "--python", str(VENV / "bin/python")]
    command += ["--python-platform", platform, "--requirement", str(requirements)]
    command += ["--require-hashes", "--no-deps", "--only-binary", ":all:", "--no-config", "--no-progress"]
    # uv's cache lies beside the venv and goes with it: hard links, and nothing is stored twice.
    command += ["--cache-dir", "/opt/uv-cache", "--link-mode", "hardlink"]
    done = subprocess.run(command, check=False, env=env)
    if done.returncode:
        sys.exit(done.returncode)
    shutil.rmtree("/opt/uv-cache")
    VENV.joinpath(".lock").unlink(missing_ok=True)
    forget_wheel_times()


def forget_wheel_times() -> None:
    """uv notes when a wheel that was at hand last changed on the building machine: other bytes on every machine."""
    for note in VENV.glob("lib/python3*/site-packages/*.dist-info/uv_cache.json"):
        record = note.with_name("RECORD")
        lines = record.read_text().splitlines(keepends=True)
        record.write_text("".join(x for x in lines if not x.startswith(f"{note.parent.name}/{note.name},")))
        note.unlink()


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
            path.write_text(text.replace(edit["old"], edit["new"]))


if __name__ == "__main__":  # compileall's workers import this file
    main()
