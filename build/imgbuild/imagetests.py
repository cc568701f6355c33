"""Runs the tests that prove an image, and gathers what they found.

The tests are pytest's, in tests/image, and come with the tool. They run in a process of their own: their modules lie
beside each other without a package, and what they load does not meet what the tool has loaded.
"""

from __future__ import annotations

import importlib.util
import json
import os
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from imgbuild import proc
from imgbuild.errors import ConfigError, EngineError, SelectionError, TestsFailedError
from imgbuild.textfile import read_text

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from imgbuild.project import Project
    from imgbuild.subject import Subject

Gpu = Literal["auto", "on", "off"]
RINGS = ("ring1", "ring2", "ring3", "faults")
OUTCOMES = ("passed", "failed", "skipped")
REPORTS = ("junit", "html", "json")
# pytest's own exit codes.
_PASSED, _FAILED, _INTERRUPTED, _NONE = 0, 1, 2, 5


@dataclass(frozen=True, kw_only=True)
class Options:
    engine: str = "docker"
    gpu: Gpu = "auto"
    select: str | None = None
    """pytest's -k."""
    rings: tuple[str, ...] = ()
    """None is every one."""
    stop: bool = False
    """At the first failure."""
    show: bool = True
    reports: tuple[str, ...] = ()
    output: Path = Path("test-results")


@dataclass(frozen=True, kw_only=True)
class Count:
    """Of one ring."""

    passed: int = 0
    failed: int = 0
    skipped: int = 0
    seconds: float = 0.0

    @property
    def ran(self) -> int:
        return self.passed + self.failed


@dataclass(frozen=True, kw_only=True)
class Tested:
    """What came of one image."""

    subject: Subject
    code: int
    """pytest's."""
    results: Mapping[str, Any] = field(default_factory=dict)
    """As tests/image/imageresults.py writes them; empty when pytest never came that far."""
    log: Path | None = None

    @property
    def name(self) -> str:
        return self.subject.target if self.subject.target != "unknown" else self.subject.reference

    @property
    def tests(self) -> Sequence[Mapping[str, Any]]:
        found: Sequence[Mapping[str, Any]] = self.results.get("tests", ())
        return found

    @property
    def counts(self) -> dict[str, Count]:
        """By ring, those without a test left out."""
        return count(self.tests)

    @property
    def failed(self) -> tuple[str, ...]:
        return tuple(str(t["id"]) for t in self.tests if t["outcome"] == "failed")


def count(tests: Iterable[Mapping[str, Any]]) -> dict[str, Count]:
    rows = list(tests)
    names = (*RINGS, *sorted({str(t["ring"]) for t in rows} - set(RINGS)))
    found = {}
    for ring in names:
        own = [t for t in rows if t["ring"] == ring]
        if own:
            numbers = {o: sum(t["outcome"] == o for t in own) for o in OUTCOMES}
            found[ring] = Count(
                passed=numbers["passed"],
                failed=numbers["failed"],
                skipped=numbers["skipped"],
                seconds=round(sum(float(t["seconds"]) for t in own), 1),
            )
    return found


def skips(tests: Iterable[Mapping[str, Any]]) -> dict[str, int]:
    """What was not proven: reason → how many tests."""
    found: dict[str, int] = {}
    for test in tests:
        if test["outcome"] == "skipped":
            reason = str(test["reason"]).splitlines()[0] if test["reason"] else "no reason given"
            found[reason] = found.get(reason, 0) + 1
    return dict(sorted(found.items(), key=lambda item: (-item[1], item[0])))


def check_pytest() -> None:
    """ConfigError where pytest is not installed: it is no dependency of the tool, only of this verb."""
    if importlib.util.find_spec("pytest") is None:
        raise ConfigError("imgbuild test needs pytest", hint="python -m pip install 'imgbuild[test]'")


def argv(
    project: Project, subject: Subject, options: Options, *, results: Path, junit: Path | None
) -> list[str]:
    """The whole call of pytest for one image."""
    words = [sys.executable, "-m", "pytest", str(project.image_tests), "-p", "no:cacheprovider", "-q", "-ra"]
    # Whatever project's pytest settings lie above the tests are not theirs.
    words += ["-o", "addopts=", "-o", "filterwarnings=error", "--strict-markers"]
    words += ["--image", subject.reference, "--engine", options.engine, "--gpu", options.gpu]
    words += ["--project-root", str(project.root), "--results", str(results)]
    if subject.plan is not None:
        words += ["--target", subject.plan.name]
    if options.select:
        words += ["-k", options.select]
    if options.rings:
        words += ["-m", " or ".join(options.rings)]
    if options.stop:
        words.append("-x")
    if junit is not None:
        # The older form, since the newer has no place for what a test measured.
        words += ["--junit-xml", str(junit), "-o", "junit_family=xunit1"]
        words += ["-o", f"junit_suite_name={subject.target}"]
    return words


def test_image(project: Project, subject: Subject, options: Options, *, env: Mapping[str, str]) -> Tested:
    """Run every selected test against one image. EngineError, ConfigError when pytest itself could not."""
    if not (project.image_tests / "conftest.py").is_file():
        raise ConfigError(
            f"{project.root} has no tests/image", hint="leave --project out to use the tool's own"
        )
    name = subject.target if subject.target != "unknown" else "image"
    options.output.mkdir(parents=True, exist_ok=True)
    log = options.output / f"{name}.log"
    junit = options.output / f"{name}.xml" if "junit" in options.reports else None
    with tempfile.TemporaryDirectory() as folder, log.open("wb") as out:
        path = Path(folder, "results.json")
        call = argv(project, subject, options, results=path, junit=junit)
        code = proc.stream(call, log=out, env=_env(env), show=options.show)
        results = json.loads(read_text(path)) if path.is_file() else {}
    _check_ending(code, results, subject, log)
    return Tested(subject=subject, code=code, results=results, log=log)


def _check_ending(code: int, results: Mapping[str, Any], subject: Subject, log: Path) -> None:
    """What is neither passed, failed nor nothing to do must not look like one of them."""
    if code == _INTERRUPTED:
        raise KeyboardInterrupt
    if code < 0:
        raise EngineError(
            f"the tests of {subject.reference} were killed by signal {-code}", hint=f"less {log}"
        )
    if code not in (_PASSED, _FAILED, _NONE) or (code != _NONE and not results):
        raise EngineError(
            f"pytest ended with {code} and without results for {subject.reference}", hint=f"less {log}"
        )


def _env(env: Mapping[str, str]) -> dict[str, str]:
    """The environment in which the tests import the package that runs them, and nothing selects another image."""
    own = str(Path(__file__).parents[1])
    found = {k: v for k, v in env.items() if not k.startswith(("PYTEST_", "IMGBUILD_IMAGE"))}
    found["PYTHONPATH"] = os.pathsep.join(filter(None, [own, env.get("PYTHONPATH")]))
    return found


def raise_for(tested: Sequence[Tested], *, gpu: Gpu) -> None:
    """TestsFailedError when a test failed, SelectionError when none ran."""
    failed = [f"{t.name}: {test}" for t in tested for test in t.failed]
    if failed or any(t.code == _FAILED for t in tested):
        logs = ", ".join(str(t.log) for t in tested if t.code == _FAILED)
        raise TestsFailedError("\n".join(["tests failed:", *failed]), hint=f"the whole log: {logs}")
    if all(t.code == _NONE or not t.tests for t in tested):
        raise SelectionError("no test was selected", hint="-k takes a part of a test's name, as pytest does")
    if gpu == "on" and not any(t.counts.get("ring3", Count()).ran for t in tested):
        raise TestsFailedError("--gpu on, and no test of ring 3 ran")
