"""A ComfyUI tree of thirty lines with every kind of flag the real parsers have, and values around it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from comfyrun.launch import Machine

CLI_ARGS = """
import argparse
import enum
import os
import comfy.options


class EnumAction(argparse.Action):
    def __init__(self, **kwargs):
        kind = kwargs.pop("type")
        kwargs.setdefault("choices", tuple(e.value for e in kind))
        super().__init__(**kwargs)
        self.kind = kind

    def __call__(self, parser, namespace, values, option_string=None):
        setattr(namespace, self.dest, self.kind(values))


class VerboseAction(argparse.Action):
    def __call__(self, parser, namespace, values, option_string=None):
        setattr(namespace, self.dest, [*getattr(namespace, self.dest, []), values])


class Preview(enum.Enum):
    None_ = "none"
    Auto = "auto"


class Fast(enum.Enum):
    Accumulate = "fp16_accumulation"
    Matrix = "fp8_matrix_mult"


def is_valid_directory(path):
    if not os.path.isdir(path):
        raise argparse.ArgumentTypeError(f"The path '{path}' does not exist.")
    return path


parser = argparse.ArgumentParser()
parser.add_argument("--listen", type=str, default="127.0.0.1", nargs="?", const="0.0.0.0,::")
parser.add_argument("--port", type=int, default=8188)
parser.add_argument("--tls-keyfile", type=str)
parser.add_argument("--tls-certfile", type=str)
parser.add_argument("--base-directory", type=str, default=None)
parser.add_argument("--user-directory", type=is_valid_directory, default=None)
parser.add_argument("--database-url", type=str, default=os.path.join(os.path.dirname(__file__), "x.db"))
parser.add_argument("--extra-model-paths-config", nargs="+", action="append")
parser.add_argument("--disable-auto-launch", action="store_true")
parser.add_argument("--preview-method", type=Preview, default=Preview.None_, action=EnumAction)
parser.add_argument("--offline", "--disable-api-nodes", action="store_true")
parser.add_argument("--verbose", action=VerboseAction, nargs="*", default=[])
parser.add_argument("--fast", nargs="*", type=Fast)
parser.add_argument("--pair", nargs=2, type=int)
parser.add_argument("--rest", nargs=argparse.REMAINDER)
parser.add_argument("--colour", action="store_const", const=frozenset({1}), default=())
parser.add_argument("--reserve-vram", type=float, default=None)
parser.add_argument("--cache-ram", nargs="*", type=float, default=[])
attention = parser.add_mutually_exclusive_group()
attention.add_argument("--use-sage-attention", action="store_true")
attention.add_argument("--use-flash-attention", action="store_true")
vram = parser.add_mutually_exclusive_group()
vram.add_argument("--gpu-only", action="store_true")
vram.add_argument("--highvram", action="store_true")
vram.add_argument("--cpu", action="store_true")

if comfy.options.args_parsing:
    args = parser.parse_args()
else:
    args = parser.parse_args([])
if len(args.cache_ram) > 2:
    parser.error("--cache-ram accepts at most two values")
"""

OPTIONS = """
args_parsing = False


def enable_args_parsing(enable=True):
    global args_parsing
    args_parsing = enable
"""

PROFILE: dict[str, Any] = {
    "schema": 1,
    "target": "h100",
    "comfyui": "0.33.0",
    "torch": "2.13.0",
    "cuda": "13.0",
    "compute_capability": "9.0",
    "memory": "discrete",
    "profiles": {
        "default": {
            "environment": {
                "PYTHONUNBUFFERED": "1",
                "HF_HOME": "{cache}/huggingface",
                "NOTES": "{data}/{x}",
            },
            "flags": [["--use-sage-attention"], ["--gpu-only"], ["--reserve-vram", "8"]],
        },
        "classic": {"environment": {"OMP_NUM_THREADS": "20"}, "flags": [["--highvram"]]},
    },
}


def make_tree(root: Path, cli_args: str = CLI_ARGS, options: str = OPTIONS) -> Path:
    (root / "comfy").mkdir(parents=True)
    (root / "comfy" / "cli_args.py").write_text(cli_args)
    (root / "comfy" / "options.py").write_text(options)
    return root


MACHINE = Machine(uid=1000, gid=1000, user="comfy", home_writable=True)
STRANGER = Machine(uid=4321, gid=4321, user=None, home_writable=False)


def real_trees() -> list[Path]:
    """Unpacked ComfyUI trees on this machine, named by IMGBUILD_COMFYUI_TREES (like PATH)."""
    named = os.environ.get("IMGBUILD_COMFYUI_TREES", "")
    return [Path(entry) for entry in named.split(os.pathsep) if entry]
