"""What was built on this machine: one line of JSON a build, in `<cache>/history/<target>.jsonl`.

Only ever appended to, by one write a line; cut to its last lines now and then. A line that is damaged, or
not ours, is as if it were not there. Nothing but `imgbuild why` reads it.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import re
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path  # noqa: TC003  (pydantic reads the annotations)
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError

from imgbuild.errors import ImgbuildError
from imgbuild.locking import write_atomically
from imgbuild.parts import KERNEL, LAYER, of_stage, parts

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    from imgbuild.build import Outcome
    from imgbuild.parts import Parts
    from imgbuild.plan import Plan
    from imgbuild.project import Project
    from imgbuild.wheelhouse import Entry

KEEP = 50
"""Builds of a target; the file is cut when it holds twice as many."""

_Text = Annotated[str, StringConstraints(max_length=10_000, pattern=r"^[^\x00-\x1f\x7f-\x9f]*$")]
_Seconds = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class Record(BaseModel):
    """One finished build of one target."""

    model_config = ConfigDict(frozen=True, strict=True)

    format: Literal[1] = 1
    when: _Text
    """It was finished: ISO 8601, UTC."""
    target: _Text
    plan: _Text
    """The plan's key."""
    tag: _Text
    digest: _Text | None
    state: Literal["built", "cached"]
    engine: _Text
    base: Literal["registry", "bootstrap"]
    seconds: _Seconds
    """Of the engine's call, which may have built other targets too."""
    components: dict[_Text, dict[_Text, _Text]]
    """Of each part, from the bottom of the image to its top."""
    stages: dict[_Text, _Seconds]
    """By part: what its stages took when they last ran."""
    compiled: dict[_Text, _Seconds]
    """By kernel's part: what compiling it took."""
    bytes: dict[_Text, Annotated[int, Field(ge=0)]]
    """By part: its wheels, which is about what a push moves."""


def last(cache: Path, target: str) -> Record | None:
    """The last build of a target that this machine remembers."""
    found = records(cache, target)
    return found[-1] if found else None


def records(cache: Path, target: str) -> tuple[Record, ...]:
    """The builds of a target, oldest first."""
    try:
        lines = _file(cache, target).read_bytes().splitlines()
    except FileNotFoundError:
        return ()
    found = []
    for line in lines[-2 * KEEP :]:
        try:
            record = Record.model_validate_json(line)
        except ValidationError:
            continue
        if record.target == target:
            found.append(record)
    return tuple(found[-KEEP:])


def append(cache: Path, record: Record) -> None:
    """Add one line; OSError when that cannot be done."""
    path = _file(cache, record.target)
    path.parent.mkdir(parents=True, exist_ok=True)
    with _locked(path.parent):
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
        try:
            size = os.fstat(handle).st_size
            # After a write that a full disk or a power cut broke off, ours begins a line of its own.
            broken = size > 0 and os.pread(handle, 1, size - 1) != b"\n"
            line = b"\n" * broken + record.model_dump_json().encode() + b"\n"
            if os.write(handle, line) != len(line):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        finally:
            os.close(handle)
        lines = path.read_bytes().splitlines(keepends=True)
        if len(lines) > 2 * KEEP:
            write_atomically(path, b"".join(lines[-KEEP:]).decode(errors="replace"))


class Recorder:
    """Sees a build begin and end, and writes down what came of it; whatever goes wrong here is said, and no more."""

    def __init__(
        self,
        project: Project,
        cache: Path,
        plans: Sequence[Plan],
        *,
        comfyui: Path,
        say: Callable[[str], None],
    ) -> None:
        self._cache, self._say = cache, say
        self._plans = {plan.name: plan for plan in plans}
        self._parts: dict[str, Parts] = {}
        # Now, because what somebody edits while it builds is not in these images.
        with self._harmless():
            self._parts = {plan.name: parts(project, plan, comfyui=comfyui) for plan in plans}

    def finished(
        self,
        outcomes: Iterable[Outcome],
        *,
        engine: str,
        bake: Path,
        log: Path,
        wheels: Callable[[], Iterable[Entry]],
    ) -> None:
        """Write a line for each target that was built; `wheels` gives the wheelhouse's entries."""
        with self._harmless():
            done = [o for o in outcomes if o.state in ("built", "cached") and o.target in self._parts]
            if not done:
                return
            baked: Any = json.loads(bake.read_text())
            shown = seconds_by_stage(log.read_bytes().decode(errors="replace"))
            entries = {(e.kernel, e.key): e for e in wheels()}
            for outcome in done:
                plan, labels = self._plans[outcome.target], baked["target"][outcome.target].get("labels", {})
                fresh = make_record(
                    plan,
                    outcome,
                    self._parts[plan.name],
                    engine=engine,
                    base="bootstrap" if labels.get("imgbuild.base.source") == "bootstrap" else "registry",
                    shown={t: s for t, s in shown.items() if not self._strange(t, plan)},
                    entries=entries,
                    before=last(self._cache, plan.name),
                )
                append(self._cache, fresh)

    def _strange(self, bake_target: str, plan: Plan) -> bool:
        """Whether it belongs to a plan that shares no stage with this one."""
        theirs = (p for p in self._plans.values() if f"{bake_target}-".startswith(f"{p.name}-"))
        return any((p.platform, p.base) != (plan.platform, plan.base) for p in theirs)

    @contextmanager
    def _harmless(self) -> Iterator[None]:
        try:
            yield
        except (ImgbuildError, OSError, LookupError, ValueError) as e:
            self._say(f"this build is not in the history that imgbuild why reads: {e}")


def make_record(
    plan: Plan,
    outcome: Outcome,
    components: Parts,
    *,
    engine: str,
    base: Literal["registry", "bootstrap"],
    shown: Mapping[str, Mapping[str, float]],
    entries: Mapping[tuple[str, str], Entry],
    before: Record | None,
) -> Record:
    """What is to be remembered of a build; what was not measured this time is taken over from the build before."""
    sizes = {f"{LAYER}{layer.name}": layer.size for layer in plan.layers}
    found = {f"{KERNEL}{k.name}": entries[k.name, k.key] for k in plan.kernels if (k.name, k.key) in entries}
    sizes |= {part: entry.size for part, entry in found.items()}
    compiled = {part: entry.seconds for part, entry in found.items()}
    stages = _by_part(plan, shown, sizes)
    if before is not None:
        stages = before.stages | stages
        compiled = before.compiled | compiled
        sizes = before.bytes | sizes
    return Record(
        when=datetime.now(UTC).isoformat(timespec="seconds"),
        target=plan.name,
        plan=plan.key,
        tag=plan.tags[0],
        digest=outcome.digest,
        state="cached" if outcome.state == "cached" else "built",
        engine=engine,
        base=base,
        seconds=round(outcome.seconds, 1),
        components=components,
        stages={part: round(stages[part], 1) for part in components if part in stages},
        compiled={part: compiled[part] for part in components if part in compiled},
        bytes={part: sizes[part] for part in components if part in sizes},
    )


_STEP = re.compile(r"#(\d+) \[(?:(?P<target>[a-z0-9-]+) +)?(?P<stage>[a-z0-9-]+) +\d+/\d+\] (?P<command>.*)")
_EXPORT = re.compile(r"#(\d+) (?:\[(?P<target>[a-z0-9-]+)\] )?exporting to image")
_OTHER = re.compile(r"#(\d+) \[")
_DONE = re.compile(r"#(\d+) DONE (\d+\.\d+)s")
_COPIED = re.compile(r"--from=([a-z0-9-]+) /o/ /")


def seconds_by_stage(log: str) -> dict[str, dict[str, float]]:
    """Seconds of each stage that ran, by the bake target that BuildKit shows it under ("" where it names none).

    `export` is what came after all stages. Out of the plain progress; any other gives nothing.
    """
    found: dict[str, dict[str, float]] = {}
    shown: dict[str, tuple[str, str] | None] = {}
    for line in log.splitlines():
        if step := _STEP.match(line) or _EXPORT.match(line):
            stage = step.groupdict().get("stage", "export")
            if stage == "runtime" and (copied := _COPIED.search(step["command"])):
                stage = copied[1]
            shown[step[1]] = (step["target"] or "", stage)
        elif other := _OTHER.match(line):
            shown[other[1]] = None  # a second bake in one log counts from 1 again
        elif (done := _DONE.match(line)) and (place := shown.get(done[1])) and float(done[2]):
            target, stage = place
            ran = found.setdefault(target, {})
            ran[stage] = ran.get(stage, 0) + float(done[2])
    return found


def _by_part(
    plan: Plan, shown: Mapping[str, Mapping[str, float]], sizes: Mapping[str, int]
) -> dict[str, float]:
    """Seconds of the parts that ran; the export is shared out by their bytes.

    A stage that several targets share is shown under one of them, and with next to no time under the others.
    """
    ran: dict[str, float] = {}
    for stages in shown.values():
        for stage, seconds in stages.items():
            part = of_stage(stage)
            if part is not None:
                ran[part] = max(ran.get(part, 0), seconds)
    export = shown.get(plan.name, shown.get("", {})).get("export", 0)
    whole = sum(sizes.get(part, 0) for part in ran)
    return {p: seconds + (export * sizes.get(p, 0) / whole if whole else 0) for p, seconds in ran.items()}


def _file(cache: Path, target: str) -> Path:
    return cache / "history" / f"{target}.jsonl"


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Alone among all processes: cutting must not lose another's line."""
    with (folder / ".lock").open("ab") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
