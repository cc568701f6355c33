"""Runs in a host stage: installs the queue's wheels for the target's platform into /o/opt/work."""

import argparse
from pathlib import Path

import install
from settle import OUT, settle

WORK = Path("/opt/work")
# As install.py does it, in another venv. Its own text stays what it is: it is mounted into the stages of ComfyUI's
# layers, and gigabytes would be installed anew.
install.VENV = WORK


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--epoch", type=int, required=True)
    parser.add_argument("--platform", required=True, help="the target's, in uv's spelling")
    args = parser.parse_args()
    install.install(args.platform, install.REQUIREMENTS)
    WORK.joinpath("constraints.txt").write_text(what_was_wanted(install.REQUIREMENTS.read_text()))
    (OUT / "opt").mkdir(parents=True)
    WORK.rename(OUT / "opt/work")
    settle(args.epoch)


def what_was_wanted(requirements: str) -> str:
    """The pins without their hashes: what `imgbuild diff` reads in an image."""
    return "".join(f"{line.split()[0]}\n" for line in requirements.splitlines())


if __name__ == "__main__":  # compileall's workers import this file
    main()
