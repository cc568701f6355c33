"""python -m comfywork.models …: the same as python -m comfywork models …"""

from __future__ import annotations

import sys

from comfywork.cli import main

if __name__ == "__main__":
    sys.exit(main(["models", *sys.argv[1:]]))
