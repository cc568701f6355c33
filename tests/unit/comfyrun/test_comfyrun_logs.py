"""Lines and what they say: pure functions over text."""

from __future__ import annotations

import json
import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from comfyrun.logs import Lines, Log
from comfyrun.watch import FALLBACKS, Watch

ILLEGAL = "CUDA error: an illegal memory access was encountered"
FAILED = "[ERROR] !!! Exception during processing !!! "
DONE = "[INFO] Prompt executed in 1.20 seconds"


def cut(*parts: bytes) -> list[str]:
    found: list[str] = []
    lines = Lines(found.append)
    for part in parts:
        lines.feed(part)
    lines.end()
    return found


def test_lines() -> None:
    assert cut(b"a\nb", b"c\n\n", b"d") == ["a", "bc", "", "d"]
    assert cut(b" 10%\r 20%\r100%\nx\r\ny") == ["100%", "x", "y"]
    assert cut(b"\x1b[31m[ERROR]\x1b[0m no \xff") == ["[ERROR] no \\xff"]


def test_a_line_without_end_is_cut_and_a_progress_bar_is_not() -> None:
    assert [len(x) for x in cut(b"x" * 40_000)] == [16384, 16384, 7232]
    assert cut(*[b"\r%5d" % i for i in range(9000)]) == [" 8999"]


@given(st.lists(st.binary(max_size=40), max_size=8))
def test_how_it_comes_in_does_not_matter(parts: list[bytes]) -> None:
    assert cut(*parts) == cut(b"".join(parts))


def watched(*lines: str) -> Watch:
    watch = Watch(lambda: None, lambda _name: None)
    for line in lines:
        watch.line(line)
    return watch


@pytest.mark.parametrize(
    "lines",
    [
        (FAILED + ILLEGAL, ILLEGAL, DONE, FAILED + ILLEGAL),
        (FAILED + ILLEGAL, DONE, "torch.AcceleratorError: CUDA error: unspecified launch failure"),
        ("RuntimeError: Triton Error [CUDA]: an illegal memory access was encountered", DONE, ILLEGAL),
        ("CUDA error: CUDA_ERROR_ASSERT: device-side assert triggered", DONE, FAILED, DONE, ILLEGAL),
        ("Exception in thread Thread-5 (prompt_worker):",),
    ],
)
def test_it_can_do_no_more_jobs(lines: tuple[str, ...]) -> None:
    assert watched(*lines).broken
    assert not watched(*lines[:-1]).broken


@pytest.mark.parametrize(
    "lines",
    [
        (FAILED + ILLEGAL, ILLEGAL, ILLEGAL, DONE),
        (FAILED + "CUDA out of memory", DONE, FAILED + "CUDA out of memory", DONE),
        (FAILED + "CUDA error: out of memory", DONE, FAILED + "CUDA error: out of memory", DONE),
        # A job that passes in between: it was another process's context.
        (FAILED + ILLEGAL, DONE, DONE, FAILED + ILLEGAL, DONE, DONE),
        ("Exception in thread Thread-5 (a_node_of_somebody):",),
        ("an illegal memory access was encountered by the mailman", DONE) * 3,
    ],
)
def test_it_still_can(lines: tuple[str, ...]) -> None:
    assert not watched(*lines).broken


def test_fallbacks() -> None:
    found: list[str] = []
    watch = Watch(lambda: None, found.append)
    for words in FALLBACKS.values():
        watch.line(f"[ERROR] {words}no kernel image, using pytorch attention instead.")
        watch.line(f"{words}again")
    assert watch.fallbacks == {"sage": 2, "sage3": 2, "flash": 2}
    assert found == ["sage", "sage3", "flash"]


def test_last_words() -> None:
    assert watched().last_words() == ""
    assert watched("a", "  ", "b").last_words() == "b"
    assert (
        watched("Traceback …", "torch.OutOfMemoryError: x", "goodbye").last_words()
        == "torch.OutOfMemoryError: x"
    )
    assert watched("main.py: error: unrecognized arguments: --x").last_words().startswith("main.py: error")
    assert watched(*map(str, range(100))).last_lines(2) == ["98", "99"]


def test_a_line_of_our_own_does_not_stick_to_a_progress_bar() -> None:
    reader, writer = os.pipe()
    log = Log(hidden=["hunter22"], err=writer)
    log.passed(b" 50%|#####", "stderr")
    log.say("stopping; the password is hunter22")
    log.say("stopped")
    os.close(writer)
    with os.fdopen(reader, "rb") as file:
        assert file.read() == b" 50%|#####\ncomfyrun: stopping; the password is ***\ncomfyrun: stopped\n"


def test_a_text_that_is_no_utf8() -> None:
    reader, writer = os.pipe()
    Log(err=writer).say("/data/\udcff")
    Log("json", err=writer).say("/data/\udcff", code=3)
    os.close(writer)
    with os.fdopen(reader, "rb") as file:
        text, value = file.read().splitlines()
    assert text == b"comfyrun: /data/\\udcff"
    assert json.loads(value)["code"] == 3
