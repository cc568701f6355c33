"""What the tests of models share: lists, quiet boards, a pull with little patience."""

from __future__ import annotations

import random
import threading
from pathlib import Path

from comfywork.models import modellist
from comfywork.models.hub import Hub
from comfywork.models.pull import Pull
from comfywork.models.wire import Patience

QUICK = Patience(failures=6, first=0.005, most=0.02, asked=0.3)


class Board:
    """Remembers what was said."""

    def __init__(self):
        self.said = []
        self.outcomes = {}
        self._guard = threading.Lock()

    def meter(self, path, size):
        return _Meter(self, path)

    def done(self, path, outcome):
        self.outcomes[path] = outcome

    def say(self, text):
        with self._guard:
            self.said.append(text)


class _Meter:
    def __init__(self, board, path):
        self._board, self._path = board, path

    def at(self, offset, size):
        pass

    def hashed(self, count):
        pass

    def said(self, text):
        self._board.say(f"{self._path}: {text}")


def content(size, seed=1):
    return random.Random(seed).randbytes(size)


def file_entry(**more):
    lines = "\n".join(
        f"        {k}: {v!r}" if isinstance(v, str) else f"        {k}: {v}" for k, v in more.items()
    )
    return "      -" + lines[7:]


def model_list(*files, name="tiny", gated=False):
    """The text of a list with one model."""
    return "\n".join(
        [
            "schema: 1",
            "title: A list for tests",
            "source: tests",
            "models:",
            f"  - name: {name}",
            "    title: Tiny",
            "    licence: MIT",
            f"    gated: {str(gated).lower()}",
            "    vram: {gb: 2, by: nobody}",
            "    workloads: [image]",
            "    files:",
            *(file_entry(**file) for file in files),
            "",
        ]
    )


def models_of(text, tmp_path):
    path = Path(tmp_path) / "list.yaml"
    path.write_text(text, encoding="utf-8")
    return modellist.load(str(path)).models


def pull(folder, models, *, hub_url="http://127.0.0.1:9", board=None, token=None, patience=QUICK, **more):
    board = board or Board()
    found = Pull(
        models=Path(folder),
        hub=Hub(endpoint=hub_url, token=token),
        board=board,
        patience=patience,
        **more,
    ).run(models)
    return found, board
