"""What `make test` runs: four pytest processes at once, since three of them wait for an engine or a server more than they compute.

Not pytest-xdist with --dist loadgroup: 3.8 does not group under pytest 9.2, and the tests of a folder share one
image, one server, one build cache. Each process writes its log to test-results/; what it ended with is shown when it
ends, all of it where a test failed.

What needs an engine is not run twice for the same image and the same code (proofs.py), which is said;
IMGBUILD_AGAIN=1 runs it all the same.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

from proofs import key_of, recall, remember

ROOT = Path(__file__).parents[1]
LOGS = ROOT / "test-results"
PARTS = {
    "unit": ["--numprocesses=2", "tests/unit", "tests/dgls", "tests/gpu"],
    "queue": ["--numprocesses=2", "tests/queue"],
    "image": ["tests/image"],
    "engine": ["tests/e2e"],
}
ELSEWHERE = (
    ("builds without cache, updates, compose, pulls, workers, fronts, several machines", "make test-slow"),
    ("images of gb10, h100, ada", "imgbuild build --all, then imgbuild test --all"),
    ("kernels compiled whole", "imgbuild wheels build --all"),
    ("Podman", "imgbuild test --target cpu --engine podman; deployed, and as a service: make test-slow"),
    ("speed and size", "bench/"),
)
_TELL_EVERY = 60.0  # seconds
_NOTHING_CHOSEN = 5
_RESULT = "not covered by this run"


def main(arguments: list[str]) -> int:
    """Run all parts with these arguments of pytest. 0, or 1 when a test failed."""
    LOGS.mkdir(exist_ok=True)
    begun = said = time.monotonic()
    running = {}
    keys = {part: None if part in ("unit", "queue") or arguments else key_of(part) for part in PARTS}
    for part, folders in PARTS.items():
        if (key := keys[part]) and (proven := recall(key)) and not os.environ.get("IMGBUILD_AGAIN"):
            print(
                f"=== {part}: of this image and this code proven {proven}; again: IMGBUILD_AGAIN=1 make test"
            )
            continue
        log = (LOGS / f"{part}.log").open("wb")
        words = [
            sys.executable,
            "-m",
            "pytest",
            "-m",
            "not slow",
            "-p",
            "no:cacheprovider",
            *folders,
            *arguments,
        ]
        running[part] = (subprocess.Popen(words, cwd=ROOT, stdout=log, stderr=subprocess.STDOUT), log)
    codes = {}
    try:
        while running:
            time.sleep(0.5)
            for part, (child, log) in tuple(running.items()):
                if child.poll() is not None:
                    log.close()
                    del running[part]
                    codes[part] = child.returncode
                    said_last = show(part, child.returncode, time.monotonic() - begun)
                    if (key := keys[part]) and child.returncode == 0:
                        remember(key, said_last)
            if running and time.monotonic() - said > _TELL_EVERY:
                said = time.monotonic()
                print(f"… {said - begun:.0f} s: {', '.join(running)}; logs in {LOGS.name}/", flush=True)
    finally:
        for child, _ in running.values():
            child.terminate()
    print("\nnot part of it:")
    for what, command in ELSEWHERE:
        print(f"  – {what}  → {command}")
    bad = [part for part, code in codes.items() if code not in (0, _NOTHING_CHOSEN)]
    print(f"\n{'failed: ' + ', '.join(bad) if bad else 'passed'}; {time.monotonic() - begun:.0f} s")
    return int(bool(bad))


def show(part: str, code: int, seconds: float) -> str:
    """The end of a part's log; the whole log when something failed. Returns its last line."""
    text = (LOGS / f"{part}.log").read_text(errors="replace")
    lines = text.splitlines()
    if code in (0, _NOTHING_CHOSEN):
        at = next((i for i, line in enumerate(lines) if _RESULT in line), len(lines) - 1)
        lines = lines[at:]
    print(f"\n=== {part}: {'passed' if code == 0 else f'exit code {code}'}, {seconds:.0f} s", flush=True)
    print("\n".join(lines), flush=True)
    return lines[-1].strip("= ") if lines else ""


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
