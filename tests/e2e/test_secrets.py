"""Nothing of the machine that built an image is in it: every layer's bytes, every document beside them."""

from __future__ import annotations

import json
import os
import re
from typing import Any

import pytest
from imagelayers import CHUNK, read_layers
from kit import GUARDED

from imgbuild.settings import read_settings


class Search:
    """Finds texts in streams, also across the border of two chunks."""

    def __init__(self, words: dict[str, bytes]) -> None:
        self.words = words
        self.overlap = max(map(len, words.values())) - 1
        self.found: list[tuple[str, str]] = []
        self.documents: list[bytes] = []
        self.bytes = 0

    def layer(self, blob: str, stream: Any) -> None:
        tail = b""
        while chunk := stream.read(CHUNK):
            self._look(blob, tail + chunk)
            tail = chunk[-self.overlap :]
            self.bytes += len(chunk)

    def document(self, blob: str, text: bytes) -> None:
        self._look(blob, text)
        self.documents.append(text)

    def _look(self, blob: str, text: bytes) -> None:
        self.found += [(what, blob) for what, word in self.words.items() if word in text]


@pytest.fixture(scope="module")
def search(client, cpu, guarded) -> Search:
    words = dict(guarded.words)
    # What this machine really has: an index's address, folders, a proxy.
    words.update(
        {f"this machine's setting {w!r}": w for w in read_settings(os.environ).words() if len(w) > 7}
    )
    search = Search({what: word.encode() for what, word in words.items()})
    read_layers(client, GUARDED, search.layer, document=search.document)
    return search


def test_nothing_of_the_machine_is_in_the_image(search, cpu):
    assert search.found == []
    assert search.bytes > 1_000_000_000, "every layer was read"


def test_what_was_searched_is_the_whole_image(search):
    texts = b"\n".join(search.documents)
    for part in (b'"history"', b'"imgbuild.target"', b'"rootfs"', b"slsa.dev/provenance"):
        assert part in texts, part
    # mode=max: the steps with their commands; min would hold nothing to search.
    assert b"/tmp/stages/install.py" in texts
    assert b"llbDefinition" in texts


def test_nothing_of_the_machine_is_in_what_buildkit_reports(guarded):
    text = json.dumps(guarded.report.metadata)
    assert [what for what, word in guarded.words.items() if word in text] == []


def test_the_log_holds_no_password(guarded):
    # Paths of this machine may stand there: it is a file of this machine.
    secret = {what: word for what, word in guarded.words.items() if "path" not in what}
    assert [what for what, word in secret.items() if word in guarded.log] == []


def test_the_secrets_were_used(guarded):
    """Otherwise nothing above proves anything."""
    steps = set(re.findall(r"^(#\d+) \[(?:cpu )?(?:uv|venv-\S+) ", guarded.log, re.MULTILINE))
    assert len(steps) > 4
    # Each of them was given the secrets, and ran.
    assert not [step for step in steps if f"{step} CACHED\n" in guarded.log]
    if "index password" not in guarded.words:
        pytest.skip("a container cannot reach a port of this machine: no index with a password was used")
    assert guarded.admitted > 0
