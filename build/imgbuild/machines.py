"""One build on several machines: each target on the engine of a Docker context, all of them at once.

The tool stays here: sources, bases and kernels at hand are this machine's and are sent to the engines. What one
engine has finished stays there, whatever happens to the others.
"""

from __future__ import annotations

import copy
import functools
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from imgbuild import proc
from imgbuild.bases import host_arch
from imgbuild.build import Outcome, Report
from imgbuild.engines.docker import Docker, contexts
from imgbuild.errors import BuildError, ConfigError, EngineError, ImgbuildError, nearest

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from imgbuild.build import Builder, Options
    from imgbuild.matrix import Matrix, Target
    from imgbuild.plan import Plan

_HERE = "here"
"""For people: the engine that no context was named for."""


@dataclass(frozen=True, kw_only=True)
class Assignment:
    """Which target is built on which Docker context's engine; None: on the one that the docker command uses."""

    context: Mapping[str, str | None]

    @property
    def machines(self) -> tuple[str | None, ...]:
        return tuple(dict.fromkeys(self.context.values()))

    def options(self, targets: Iterable[str]) -> str:
        """As words of a command line."""
        return " ".join(
            f"--target {name}" + (f" --on {name}={where}" if (where := self.context[name]) else "")
            for name in targets
        )


def assign(
    texts: Sequence[str],
    matrix: Matrix,
    targets: Sequence[str],
    *,
    everything: bool,
    env: Mapping[str, str],
) -> tuple[tuple[Target, ...], Assignment]:
    """`--on TARGET=CONTEXT` and `--on PLATFORM=CONTEXT`: the targets to build, and where.

    A target's own word wins over its platform's. Where no target is named, those are built that `--on` names.
    ConfigError for what is no target, no platform, or no context, for a word given twice, and for one that
    concerns none of the selected targets.
    """
    given: dict[str, str] = {}
    platforms = {t.platform for t in matrix.targets.values()}
    known = contexts(env)
    for text in texts:
        what, equals, where = text.partition("=")
        if not (equals and what and where):
            raise ConfigError(
                f"--on {text}: write it as TARGET=CONTEXT or PLATFORM=CONTEXT", hint="docker context ls"
            )
        if what not in matrix.targets and what not in platforms:
            near = nearest(what, [*matrix.targets, *platforms])
            raise ConfigError(
                f"--on {text}: {what!r} is no target and no platform of one"
                + (f"; did you mean {near!r}?" if near else "")
            )
        if where not in known:
            near = nearest(where, known)
            raise ConfigError(
                f"--on {text}: there is no Docker context {where!r}"
                + (f"; did you mean {near!r}?" if near else ""),
                hint=f"there are: {', '.join(known)}; "
                f'docker context create {where} --docker "host=ssh://USER@MACHINE" makes one',
            )
        if given.get(what, where) != where:
            raise ConfigError(f"--on: {what} is given to {given[what]} and to {where}")
        given[what] = where
    if targets or everything:
        selected = matrix.select(targets, everything=everything)
    else:
        named = [t.name for t in matrix.targets.values() if t.name in given or t.platform in given]
        selected = matrix.select(named)
    for what, machine in given.items():
        if not any(what in (t.name, t.platform) for t in selected):
            raise ConfigError(f"--on {what}={machine}: nothing that is built is {what}")
    found = {t.name: given.get(t.name, given.get(t.platform)) for t in selected}
    return selected, Assignment(context=found)


@dataclass(frozen=True, kw_only=True)
class _Machine:
    context: str | None
    builder: Builder
    plans: tuple[Plan, ...]


def build(builder: Builder, targets: Sequence[Target], where: Assignment, options: Options) -> Report:
    """Build each target on its machine, the machines at once; `builder` prepares, with the engine that it has.

    EngineError before anything is built when one of the engines cannot be reached. What fails later fails alone.
    """
    begun = time.monotonic()
    engines = {context: Docker(builder.env, context=context, beside=True) for context in where.machines}
    for context, engine in engines.items():
        if warning := engine.check():
            builder.say(f"{context or _HERE}: {warning}")
    known = {context: engine.machine() for context, engine in engines.items()}
    if not builder.engine.alive():  # this machine need not have an engine of its own
        builder = replace(builder, engine=next(iter(engines.values())))
    builder = replace(
        builder,
        env={**builder.env, **_of_context(builder)},
        builds_on=frozenset({host_arch(), *(arch for arch, _, _ in known.values())}),
    )
    source, tree = builder.source(options)
    plans = builder.plans(targets, source, options)
    machines = [
        _Machine(
            context=context,
            builder=replace(builder, engine=engine, env=engine.env, capacity=known[context][1:]),
            plans=tuple(p for p in plans if where.context[p.name] == context),
        )
        for context, engine in engines.items()
    ]
    for machine in machines:
        architecture, cores, memory = known[machine.context]
        names = ", ".join(p.name for p in machine.plans)
        builder.say(
            f"{names}: on {machine.context or _HERE} (linux/{architecture}, {cores} cores, {memory / 1e9:.0f} GB)"
        )
        machine.builder.check_room(machine.plans, options)
    with tempfile.TemporaryDirectory(prefix="imgbuild-") as folder:
        work = Path(folder)
        if options.dry_run:
            return builder.dry_run(plans, work, options)
        bake = builder.prepare(plans, work, tree=tree, options=options)
        reports = _all(machines, bake, work, options)
    return Report(
        outcomes=tuple(o for p in plans for r in reports for o in r.outcomes if o.target == p.name),
        log=next((r.log for r in reports if r.failed and r.log), reports[0].log),
        seconds=time.monotonic() - begun,
        metadata={name: data for r in reports for name, data in r.metadata.items()},
    )


def _of_context(builder: Builder) -> dict[str, str]:
    """What makes the docker command use the same engine as the builder, where a base is put into its layout."""
    engine = builder.engine
    return {"DOCKER_CONTEXT": engine.context} if isinstance(engine, Docker) and engine.context else {}


def _all(machines: Sequence[_Machine], bake: Mapping[str, Any], work: Path, options: Options) -> list[Report]:
    over = threading.Event()
    with ThreadPoolExecutor(len(machines)) as pool:
        running = [pool.submit(_one, m, bake, work, options, over) for m in machines]
        try:
            return [report for done in running for report in done.result()]
        except BaseException:
            # An interrupt reaches this thread alone.
            over.set()
            while wait(running, timeout=0.5).not_done:
                proc.stop_streams()
            raise


def _one(
    machine: _Machine, bake: Mapping[str, Any], work: Path, options: Options, over: threading.Event
) -> list[Report]:
    """A machine's targets, one after the other, so that each is finished by itself; none after `over`."""
    reports: list[Report] = []
    gone: EngineError | None = None
    for plan in machine.plans:
        if over.is_set():
            break
        if gone is not None:
            reports.append(_failed(machine, plan, options, gone, 0))
            continue
        begun = time.monotonic()
        scratch = work / f"for-{plan.name}"
        scratch.mkdir()
        builder = replace(machine.builder, say=functools.partial(_say, machine.builder, plan.name))
        mine = {"target": {plan.name: copy.deepcopy(bake["target"][plan.name])}}
        try:
            report = builder.finish((plan,), mine, scratch, options, begun=begun, staged=work)
            outcomes = tuple(replace(o, machine=machine.context) for o in report.outcomes)
            reports.append(replace(report, outcomes=outcomes))
        except ImgbuildError as e:
            gone = e if isinstance(e, EngineError) else None
            reports.append(_failed(machine, plan, options, e, time.monotonic() - begun))
    return reports


def _say(builder: Builder, name: str, text: str) -> None:
    builder.say(f"{name}: {text}")


def _failed(machine: _Machine, plan: Plan, options: Options, error: ImgbuildError, seconds: float) -> Report:
    engine = isinstance(error, EngineError)
    outcome = Outcome(
        target=plan.name,
        state="stopped" if engine else "failed",
        tags=options.tags(plan),
        seconds=seconds,
        stage="engine" if engine else None,
        lines=tuple(error.message.splitlines()),
        machine=machine.context,
    )
    return Report(outcomes=(outcome,), log=None, seconds=seconds, metadata={})


def raise_for(report: Report, where: Assignment, *, command: str, index: str | None = None) -> None:
    """BuildError, or EngineError where an engine was lost: what is missing, what is there, and the next command.

    `command` is the call without its targets and machines; `index` the reference that was to be made of all.
    """
    missing = [o for o in report.outcomes if o.state not in ("built", "cached")]
    if not missing:
        return
    whole = len(report.outcomes)
    parts = [f"{len(missing)} of {whole} targets {'is' if len(missing) == 1 else 'are'} missing"]
    for outcome in missing:
        what = "its engine was lost" if outcome.stage == "engine" else f"stage {outcome.stage or '?'} failed"
        parts.append(f"{outcome.target}{_on(outcome)}: {what}")
        parts += [f"    {line}" for line in outcome.lines[-15:]]
    if report.log and any(o.stage != "engine" for o in missing):
        parts.append(f"the whole log: {report.log}")
    parts += [
        f"{o.target}{_on(o)}: {o.state} and kept, {o.tags[-1]}" for o in report.outcomes if o not in missing
    ]
    if index:
        parts.append(f"{index} was not made or moved: an index takes every target")
    # For an index all have to be named; those that are there come out of the cache.
    again = [o.target for o in (report.outcomes if index else missing)]
    lost = [o.machine for o in missing if o.stage == "engine"]
    asks = f"docker --context {lost[0]} info" if lost and lost[0] else "docker info"
    first = f"{asks} says when the engine is back; then: " if lost else ""
    error = EngineError if lost else BuildError
    raise error("\n".join(parts), hint=f"{first}{command} {where.options(again)}")


def _on(outcome: Outcome) -> str:
    return f", on {outcome.machine}" if outcome.machine else ""
