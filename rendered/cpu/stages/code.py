"""Runs in a host stage: makes code that was copied to /o ready to be a layer."""

import argparse
import shutil

from settle import OUT, settle

# Of ComfyUI's tree a server needs neither its history nor its tests; the folders of users' files are in /data.
_LEFT_OUT = (".git", ".github", ".ci", "tests", "tests-unit", "custom_nodes", "input", "output")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--epoch", type=int, required=True)
    parser.add_argument("--tree", help="ComfyUI's folder under /o")
    args = parser.parse_args()
    if args.tree:
        for name in _LEFT_OUT:
            shutil.rmtree(OUT / args.tree / name, ignore_errors=True)
    # A checkout's own bytecode carries times and paths of the machine it was run on.
    for folder in list(OUT.rglob("__pycache__")):
        shutil.rmtree(folder)
    settle(args.epoch)


if __name__ == "__main__":  # compileall's workers import this file
    main()
