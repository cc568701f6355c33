"""A build, end to end: sources, base, contexts, one bake, and what came of each target."""

from __future__ import annotations

import fnmatch
import os
import re
import shutil
import tempfile
import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from imgbuild import bases, estimate, kernelbuild, lint, proc, render, sources
from imgbuild.errors import BuildError, ConfigError, DiskError, EngineError, NetworkError, VerificationError
from imgbuild.history import Recorder
from imgbuild.kernels import KernelPlan, KernelSource
from imgbuild.locking import read_pins
from imgbuild.plan import Plan, Source, make_plan, pinned_source
from imgbuild.resolve import file_hash
from imgbuild.wheelhouse import Wheelhouse

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from imgbuild.artifacts import Artifacts
    from imgbuild.engines import Engine
    from imgbuild.matrix import Matrix, Target
    from imgbuild.project import Project
    from imgbuild.settings import Settings
    from imgbuild.wheelhouse import Entry

State = Literal["built", "cached", "failed", "stopped", "not started"]
"""`stopped`: was under way when another target failed; the engine keeps its finished stages."""
# Of a tree that git does not describe: what people keep beside the code, and what is theirs alone.
_NOT_CODE = {"custom_nodes", "input", "models", "output", "temp", "user"}
_PRIVATE = ("extra_model_paths.yaml", ".env*", "*.log", "*.pyc")


@dataclass(frozen=True, kw_only=True)
class Options:
    sources: Mapping[str, Path] = field(default_factory=dict)
    fallback: bool = True
    base: Literal["auto", "registry", "bootstrap"] = "auto"
    refresh_base: bool = False
    builder: str | None = None
    output: str | None = None
    push: str | None = None
    """The registry and path in front of the image's name, when it is pushed."""
    cache_from: str | None = None
    """A registry and path whose build cache is read."""
    cache_to: str | None = None
    """A registry and path that gets this build's cache."""
    export: Path | None = None
    """A folder for the image as an OCI layout, attested and compressed as it is published; of one target."""
    no_cache: bool = False
    progress: str = "auto"
    dry_run: bool = False
    keep_going: bool = False
    force: bool = False
    """Build although the disk looks too small."""
    jobs: int | None = None
    """Compilers at once; None: as many as cores and memory allow."""
    memory_share: float = kernelbuild.DEFAULT_SHARE
    kernels: tuple[str, ...] = ()
    """For `compile`: only these; none means all."""

    @property
    def local(self) -> bool:
        """Whether the images go into the local engine."""
        return self.output is None and self.push is None and self.export is None

    def tags(self, plan: Plan) -> tuple[str, ...]:
        return tuple(f"{self.push.rstrip('/')}/{tag}" if self.push else tag for tag in plan.tags)


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What came of one target."""

    target: str
    state: State
    tags: tuple[str, ...]
    digest: str | None = None
    size: int | None = None
    """Bytes in the engine's store."""
    seconds: float = 0
    stage: str | None = None
    """The stage that failed."""
    lines: tuple[str, ...] = ()
    """Its last lines."""
    machine: str | None = None
    """The Docker context whose engine it was built by, where one was named."""


@dataclass(frozen=True, kw_only=True)
class Report:
    outcomes: tuple[Outcome, ...]
    log: Path | None
    seconds: float
    metadata: Mapping[str, Any]
    plans: tuple[Plan, ...] = ()
    """What was built, with the sources that were at hand."""

    @property
    def failed(self) -> tuple[Outcome, ...]:
        return tuple(o for o in self.outcomes if o.state not in ("built", "cached"))


@dataclass(frozen=True, kw_only=True)
class Builder:
    """Everything a build needs that does not change while it runs."""

    project: Project
    matrix: Matrix
    settings: Settings
    env: Mapping[str, str]
    cache: Path
    engine: Engine
    say: Callable[[str], None]
    notice: Callable[[str, Sequence[str]], None]
    registry: Artifacts | None = None
    """A registry's wheelhouse, looked into where this machine's lacks a kernel."""
    builds_on: frozenset[str] = frozenset()
    """Architectures of machines that build, beside this one."""
    capacity: tuple[int, int] | None = None
    """Cores, and bytes of memory, of the engine's machine, where it is not this one."""

    @property
    def wheelhouse(self) -> Wheelhouse:
        return Wheelhouse(self.cache / "wheelhouse", say=self.say)

    def source(self, options: Options) -> tuple[Source, Path | None]:
        """Which ComfyUI goes in, and the local tree it lies in, if it does."""
        tree = options.sources.get("comfyui")
        if tree is not None:
            return sources.local_source(self.project, self.matrix, tree), tree
        git = self.matrix.comfyui.git
        if sources.upstream_reachable(git, self.settings.environment(self.env)):
            return sources.upstream_source(self.project, self.matrix), None
        wanted, fallback = self.matrix.comfyui.version, self.matrix.comfyui.fallback
        if not options.fallback:
            raise NetworkError(
                f"{git} cannot be reached, and --no-fallback forbids ComfyUI {fallback.version} in its place",
                hint="--source comfyui=PATH builds from a checkout",
            )
        self.notice(
            f"NOT ComfyUI {wanted}: {git} cannot be reached.",
            [
                f"ComfyUI {fallback.version} out of {fallback.wheel} goes in instead; the image's tag and its label",
                "imgbuild.comfyui.source=fallback say so. For the pinned version: --source comfyui=PATH.",
                "To make this an error: --no-fallback.",
            ],
        )
        tree = sources.fallback_tree(
            self.project, self.matrix, cache=self.cache, settings=self.settings, env=self.env
        )
        return sources.fallback_source(self.matrix), tree

    def plans(self, targets: Sequence[Target], source: Source, options: Options) -> tuple[Plan, ...]:
        asked: dict[str, bool] = {}
        found = []
        for target in targets:
            given = self._given(target, options)
            plan = self._plan(target, source, given)
            found.append(self._reachable(target, plan, given, source, options, asked))
        return tuple(found)

    def _plan(self, target: Target, source: Source, kernels: Mapping[str, KernelSource]) -> Plan:
        return make_plan(self.project, self.matrix, target, source=source, kernel_sources=kernels)

    def _given(self, target: Target, options: Options) -> dict[str, KernelSource]:
        """The kernels' sources that the command line names."""
        return {
            name: sources.kernel_checkout(self.matrix.common.kernels[name], tree, f"--source {name}={tree}")
            for name, tree in options.sources.items()
            if name in target.kernels
        }

    def _reachable(
        self,
        target: Target,
        plan: Plan,
        given: Mapping[str, KernelSource],
        source: Source,
        options: Options,
        asked: dict[str, bool],
    ) -> Plan:
        """The plan with a fallback for each kernel that is not at hand and whose upstream cannot be reached.

        `asked` holds what is known of upstream hosts: one that is out of reach takes its time to say so.
        """
        missing = kernelbuild.find(
            [plan],
            self.wheelhouse,
            self.registry,
            say=self.say,
            only=options.kernels,
            quiet=True,
            pull=not options.dry_run,
        ).missing
        replaced = dict(given)
        for kernel in (k for _, k in missing if k.kind == "git" and k.name not in given):
            git = str(kernel.git)
            if git not in asked:
                asked[git] = sources.upstream_reachable(git, self.settings.environment(self.env))
            if asked[git]:
                continue
            fallback = self.matrix.common.kernels[kernel.name].source.fallback
            if not options.fallback or fallback is None:
                why = ", and --no-fallback forbids another in its place" if fallback else ""
                raise NetworkError(
                    f"{kernel.git} cannot be reached{why}; the wheelhouse has no {kernel.name} for {plan.name} "
                    f"(key {kernel.key})",
                    hint=f"--source {kernel.name}=PATH compiles a checkout; imgbuild wheels pull fetches what others compiled",
                )
            self.notice(
                f"NOT {kernel.name} {kernel.version} for {plan.name}: {kernel.git} cannot be reached.",
                [
                    f"{fallback.wheel} of the package index goes in instead: nothing in it is compiled, and it is slower.",
                    "The image's label imgbuild.kernels says so. To make this an error: --no-fallback.",
                    f"For the real one: --source {kernel.name}=PATH, or --wheelhouse REGISTRY/PATH.",
                ],
            )
            replaced[kernel.name] = KernelSource(kind="fallback", identity=fallback.wheel)
        return self._plan(target, source, replaced) if replaced != given else plan

    def base_contexts(
        self, plans: Sequence[Plan], setups: Mapping[str, str], options: Options
    ) -> dict[str, str]:
        """By base name, the named context that stands in for the registry's image; empty for the registry itself."""
        hosts = {*self.builds_on, bases.host_arch()}
        found: dict[str, str] = {}
        for name in sorted({p.base.name for p in plans}):
            mine = [p for p in plans if p.base.name == name]
            base, setup = mine[0].base, setups[name]
            overrides = self.engine.abilities.overrides
            if overrides and options.base != "bootstrap" and bases.registry_has(base, self.env):
                continue
            if options.base == "registry" or (options.base == "auto" and not options.fallback):
                raise NetworkError(
                    f"no registry that has {base.image} can be reached",
                    hint="--base bootstrap makes the same suite from a package mirror",
                )
            if options.base == "auto":
                self.notice(
                    f"NOT the registry's {base.image}: no registry that has it can be reached.",
                    [
                        f"Debian {base.suite} is bootstrapped from a package mirror instead; the label",
                        "imgbuild.base.source=bootstrap says so. To make this an error: --no-fallback.",
                    ],
                )
            local = bases.bootstrap(
                base,
                setup,
                {*hosts, *(p.arch for p in mine)},
                epoch=mine[0].epoch,
                cache=self.cache,
                env=self.settings.environment(self.env),
                refresh=options.refresh_base,
                layout=overrides,
                say=self.say,
            )
            found[name] = self.engine.base_context(local, mine[0].arch)
        return found

    def build(self, targets: Sequence[Target], options: Options) -> Report:
        """Build images; every finished part is kept, whatever happens to the others."""
        begun = time.monotonic()
        if (options.output or options.export) and len(targets) > 1:
            raise ConfigError(
                "--output names one place, and there are several targets", hint="one call a target"
            )
        self.check_engine()
        source, tree = self.source(options)
        plans = self.plans(targets, source, options)
        self.check_room(plans, options)
        with tempfile.TemporaryDirectory(prefix="imgbuild-") as folder:
            work = Path(folder)
            if options.dry_run:
                return self.dry_run(plans, work, options)
            bake = self.prepare(plans, work, tree=tree, options=options)
            return self.finish(plans, bake, work, options, begun=begun, staged=work)

    def check_engine(self) -> None:
        """Say what the engine lacks; EngineError when it cannot build."""
        if warning := self.engine.check():
            self.say(warning)

    def check_room(self, plans: Sequence[Plan], options: Options) -> None:
        """Before anything starts: DiskError or EngineError when the engine has no room for these, or cannot."""
        self._check_platforms(plans)
        self._check_disk(estimate.disk(plans, host_platform=f"linux/{bases.host_arch()}"), options)
        if options.export:
            self._check_export(plans, options.export, options)

    def dry_run(self, plans: Sequence[Plan], work: Path, options: Options) -> Report:
        self._context(plans, work)
        self._say_kernels(plans)
        outcomes = tuple(Outcome(target=p.name, state="not started", tags=options.tags(p)) for p in plans)
        return Report(outcomes=outcomes, log=None, seconds=0, metadata={})

    def finish(
        self,
        plans: Sequence[Plan],
        bake: dict[str, Any],
        work: Path,
        options: Options,
        *,
        begun: float,
        staged: Path,
    ) -> Report:
        """Build what `prepare` made a bake file for; `staged` is the folder that got the sources.

        Kernels that no wheelhouse has are compiled first, by this builder's engine.
        """
        log = self._log("+".join(p.name for p in plans))
        entries, stuck = self._kernels_of_images(plans, bake, work, log, options)
        plans = tuple(p for p in plans if p.name not in {o.target for o in stuck})
        for plan in plans:
            for kernel in plan.kernels:
                if kernel.compiled:
                    wheel = kernelbuild.wheel_folder(
                        entries[kernel.key], work / f"kernel-{plan.name}-{kernel.name}"
                    )
                    bake["target"][plan.name]["contexts"][f"kernel-{kernel.name}"] = str(wheel)
        path = work / "docker-bake.json"
        path.write_text(render.pretty(bake))
        report = self._run(plans, path, work, log, options, begun, staged)
        return replace(report, outcomes=(*report.outcomes, *stuck), plans=plans)

    def _kernels_of_images(
        self, plans: Sequence[Plan], bake: Mapping[str, Any], work: Path, log: Path, options: Options
    ) -> tuple[Mapping[str, Entry], tuple[Outcome, ...]]:
        """The wheels by key, and the targets that cannot be built for want of one, when the others are to go on."""
        try:
            return self._kernels(plans, bake, work, log, options), ()
        except (BuildError, VerificationError) as e:
            if not options.keep_going:
                raise
            entries = kernelbuild.find(
                plans, self.wheelhouse, self.registry, say=self.say, quiet=True
            ).entries
            return entries, tuple(
                Outcome(
                    target=p.name,
                    state="failed",
                    tags=options.tags(p),
                    stage="kernels",
                    lines=tuple(e.message.splitlines()),
                )
                for p in plans
                if any(k.compiled and k.key not in entries for k in p.kernels)
            )

    def compile(self, targets: Sequence[Target], options: Options) -> tuple[Entry, ...]:
        """The wheels of kernels, compiled where the wheelhouse has none; no image is built."""
        plans = self.plans(
            [t for t in targets if t.kernels], pinned_source(self.matrix, read_pins(self.project)), options
        )
        with tempfile.TemporaryDirectory(prefix="imgbuild-") as folder:
            work = Path(folder)
            if options.dry_run:
                self._say_kernels(plans, options.kernels)
                return ()
            found = kernelbuild.find(
                plans, self.wheelhouse, self.registry, say=self.say, only=options.kernels, quiet=True
            )
            if not found.missing:  # then neither a base nor an engine is needed
                return tuple(self._kernels(plans, {}, work, work / "log", options).values())
            if warning := self.engine.check():
                self.say(warning)
            self._check_platforms(plans)
            bake = self.prepare(plans, work, tree=None, options=options)
            log = self._log("+".join(["kernels", *(p.name for p in plans)]))
            return tuple(self._kernels(plans, bake, work, log, options).values())

    def _context(self, plans: Sequence[Plan], work: Path) -> dict[str, str]:
        """Write each plan's build context; return the setup script of each base, by its name."""
        renderer = render.Renderer(self.project.templates)
        setups: dict[str, str] = {}
        for plan in plans:
            files = renderer.context(plan, self.engine.abilities)
            lint.refuse_findings(files)
            setups[plan.base.name] = files["base-setup.sh"]
            render.write(files, work / plan.name)
        return setups

    def prepare(
        self, plans: Sequence[Plan], work: Path, *, tree: Path | None, options: Options
    ) -> dict[str, Any]:
        """The bake file of these images, without their kernels' wheels; what it names lies in `work`."""
        base_contexts = self.base_contexts(plans, self._context(plans, work), options)
        return self._bake_file(plans, work, tree=tree, base_contexts=base_contexts, options=options)

    def _say_kernels(self, plans: Sequence[Plan], only: Sequence[str] = ()) -> None:
        found = kernelbuild.find(plans, self.wheelhouse, self.registry, say=self.say, only=only, pull=False)
        for plan, kernel in found.missing:
            self.say(f"{kernel.name} {kernel.version} for {plan.name}: would be compiled, key {kernel.key}")

    def _kernels(
        self, plans: Sequence[Plan], bake: Mapping[str, Any], work: Path, log: Path, options: Options
    ) -> dict[str, Entry]:
        """The wheels of all kernels of these plans, by key; what is in no wheelhouse is compiled now."""
        found = kernelbuild.find(plans, self.wheelhouse, self.registry, say=self.say, only=options.kernels)
        entries, missing = dict(found.entries), found.missing
        if not missing:
            return entries
        if not self.engine.abilities.overrides:
            names = ", ".join(f"{k.name} for {p.name}" for p, k in missing)
            raise ConfigError(
                f"{self.engine.name} compiles no kernels, and the wheelhouse lacks {names}",
                hint="imgbuild wheels build (with Docker), or imgbuild wheels pull",
            )
        kernels = [kernel for _, kernel in missing]
        limit = kernelbuild.budget(
            kernels,
            jobs=options.jobs,
            share=options.memory_share,
            available=self.capacity[1] if self.capacity else kernelbuild.available_memory(),
            cpus=self.capacity[0] if self.capacity else None,
        )
        for plan, kernel in missing:
            self.say(
                f"{kernel.name} {kernel.version} for {plan.name} ({', '.join(kernel.code)}): to be compiled, key {kernel.key}"
            )
        self.say(limit.sentence())
        out = work / "kernels"
        targets = kernelbuild.bake_targets(bake, missing, out)
        secrets = self._compile_secrets(plans, kernels, limit.jobs, work)
        for (plan, _), entry in zip(missing, targets["target"].values(), strict=True):
            entry["secret"] = [*entry.get("secret", ()), *secrets[plan.base.suite]]
        path = work / "kernels.json"
        path.write_text(render.pretty(targets))
        compiled = tuple(targets["target"])
        with log.open("ab") as stream:
            start = stream.tell()
            status = self.engine.bake(
                path,
                compiled,
                log=stream,
                metadata=work / "kernels-metadata.json",
                progress=options.progress,
                builder=options.builder,
                no_cache=options.no_cache,
            )
        text = log.read_bytes()[start:].decode(errors="replace")
        # Whatever the others came to: what is compiled is kept.
        collected = kernelbuild.collect(missing, out, self.wheelhouse, say=self.say)
        entries |= collected.entries
        if status:
            self._check_engine(text, log)
            raise _kernel_failure(text, compiled, limit.jobs, log)
        if collected.refused:
            raise VerificationError(
                "\n".join(e.message for e in collected.refused), hint=collected.refused[0].hint
            )
        if absent := [k.name for k in kernels if k.key not in entries]:
            raise BuildError(f"the engine gave no wheel of {', '.join(absent)}; the whole log: {log}")
        return entries

    @staticmethod
    def _compile_secrets(
        plans: Sequence[Plan], kernels: Sequence[KernelPlan], jobs: int, work: Path
    ) -> dict[str, list[str]]:
        """By Debian suite: the budget, and where this machine gets that suite's packages."""
        (work / "budget").write_text(kernelbuild.budget_secret(kernels, jobs))
        found = {}
        for suite in {p.base.suite for p in plans}:
            found[suite] = [f"id=budget,src={work / 'budget'}"]
            if mirrors := bases.machine_mirrors(suite):
                path = work / f"apt-{suite}"
                path.touch(mode=0o600)  # an address may hold a password
                path.write_text("".join(f"{line}\n" for line in mirrors))
                found[suite].append(f"id=apt,src={path}")
        return found

    def _check_disk(self, need: estimate.Need, options: Options) -> None:
        root = self.engine.data_root()
        free = shutil.disk_usage(root).free if root else None
        self.say(need.sentence(free))
        known = all(self.engine.find(tag) for tag in need.tags)  # then most of it is there already
        hard = not (options.force or options.dry_run or known)
        if free is not None and free < need.bytes and hard:
            raise DiskError(
                f"{estimate.gigabytes(free)} are free on {root}, and this build may take {estimate.gigabytes(need.bytes)}",
                hint="imgbuild df shows what takes it, imgbuild prune frees it; --force builds all the same",
            )

    def _check_export(self, plans: Sequence[Plan], folder: Path, options: Options) -> None:
        """The compressed image lies there while it is published, and the engine keeps its layers for the next time."""
        free = shutil.disk_usage(folder.parent).free
        root = self.engine.data_root()
        same = root is not None and root.stat().st_dev == folder.parent.stat().st_dev
        need = sum(estimate.compressed(p) for p in plans) * (2 if same else 1)
        if free < need and not options.force:
            raise DiskError(
                f"{estimate.gigabytes(free)} are free for {folder.parent}, and compressing "
                f"{', '.join(p.name for p in plans)} may take {estimate.gigabytes(need)}",
                hint="imgbuild df shows what takes it, imgbuild prune frees it; --force goes on all the same",
            )

    def _check_platforms(self, plans: Sequence[Plan]) -> None:
        foreign = [p for p in plans if p.arch != bases.host_arch()]
        if foreign and not self.engine.abilities.cross:
            raise EngineError(
                f"{self.engine.name} builds only for this machine's own platform here, and {foreign[0].name} is {foreign[0].platform}",
                hint="--engine docker builds for every platform",
            )

    def _bake_file(
        self,
        plans: Sequence[Plan],
        work: Path,
        *,
        tree: Path | None,
        base_contexts: Mapping[str, str],
        options: Options,
    ) -> dict[str, Any]:
        contexts = {"entrypoint": str(self.project.entrypoint), "nodes-src": str(self.project.nodes)}
        contexts |= self._kernel_contexts(plans, work, options)
        local = {}
        if tree is not None:
            staged = work / "comfyui-src"
            stage(tree, staged)
            local = {plan.name: str(staged) for plan in plans}
        bake = render.bake_file(
            plans,
            folder=str(work),
            contexts=contexts,
            base_contexts=base_contexts,
            sources=local,
            outputs=[_output(options)],
            secrets=self._secrets(work),
        )
        for plan in plans:
            entry = bake["target"][plan.name]
            folder = self._wheels(plan, work)
            if any(folder.iterdir()) or not self.engine.abilities.overrides:
                entry["contexts"]["wheels"] = str(folder)
            entry["tags"] = list(options.tags(plan))
            entry["labels"] = _base_labels(plan, bootstrapped=plan.base.name in base_contexts)
            entry.update(_registry_cache(plan, options))
            if options.local:
                # Provenance holds times: with it, an image of which nothing changed would get a new digest.
                entry["attest"] = ["type=provenance,disabled=true"]
            elif options.export:
                entry["attest"] = ["type=provenance,mode=min"]  # max would hold build arguments
        return bake

    def _kernel_contexts(self, plans: Sequence[Plan], work: Path, options: Options) -> dict[str, str]:
        """Kernels' sources that lie on this machine, by the name of their context."""
        found = {}
        for name in {k.name for p in plans for k in p.kernels if k.compiled}:
            kernel = self.matrix.common.kernels[name]
            tree = options.sources.get(name)
            if tree is not None:
                staged = work / f"{name}-src"
                for file in sources.kernel_files(tree, kernel, f"--source {name}={tree}"):
                    (staged / file).parent.mkdir(parents=True, exist_ok=True)
                    shutil.copy2(tree / file, staged / file)
                found[f"{name}-src"] = str(staged)
            elif kernel.source.path is not None:
                found[f"{name}-src"] = str(self.project.root / kernel.source.path)
        return found

    def _secrets(self, work: Path) -> list[str]:
        found = []
        if text := self.settings.secret():
            path = work / "machine"
            path.touch(mode=0o600)
            path.write_text(text)
            found.append(f"id=machine,src={path}")
        if self.settings.ca_bundle:
            found.append(f"id=ca,src={self.settings.ca_bundle}")
        return found

    def _wheels(self, plan: Plan, work: Path) -> Path:
        """A folder with just those wheels of the machine that the lock names."""
        folder = work / f"wheels-{plan.name}"
        folder.mkdir()
        wanted = [w for layer in plan.layers for w in layer.wheels]
        wanted += [w for kernel in plan.kernels if not kernel.compiled for w in kernel.wheels]
        for wheel in wanted:
            for source in self.settings.wheel_folders:
                path = source / wheel.filename
                if path.is_file() and file_hash(path) == wheel.sha256:
                    _link(path, folder / wheel.filename)
                    break
        return folder

    def _log(self, name: str) -> Path:
        logs = self.cache / "logs"
        logs.mkdir(parents=True, exist_ok=True)
        log = logs / f"{time.strftime('%Y%m%d-%H%M%S')}-{name[:80]}.log"
        log.touch(mode=0o600)
        return log

    def _check_engine(self, text: str, log: Path) -> None:
        """Raise for a failure that is no stage's own."""
        if not self.engine.alive():
            raise EngineError(
                f"the engine ({self.engine.name}) died during the build; the log is {log}",
                hint="imgbuild doctor --fix starts it again; then repeat the command: finished stages are kept",
            )
        if "no space left on device" in text.lower():  # BuildKit's words, and libc's
            raise DiskError(
                f"the disk is full; the log is {log}",
                hint="imgbuild df shows what takes it; imgbuild prune frees it",
            )

    def _run(
        self,
        plans: Sequence[Plan],
        bake: Path,
        work: Path,
        log: Path,
        options: Options,
        begun: float,
        staged: Path,
    ) -> Report:
        outcomes: list[Outcome] = []
        metadata: dict[str, Any] = {}
        calls = [(p,) for p in plans] if options.keep_going else [tuple(plans)]
        recorder = Recorder(self.project, self.cache, plans, comfyui=staged / "comfyui-src", say=self.say)
        for call in calls:
            came = tuple(self._bake(call, bake, work, log, options, metadata))
            # Tests and `why` look for the last digest in this machine's own engine: what went elsewhere has none there.
            here = options.local and self.engine.context is None
            recorder.finished(
                came if here else [replace(o, digest=None) for o in came],
                engine=self.engine.name,
                bake=bake,
                log=log,
                wheels=self.wheelhouse.entries,
            )
            outcomes += came
        return Report(outcomes=tuple(outcomes), log=log, seconds=time.monotonic() - begun, metadata=metadata)

    def _bake(
        self,
        plans: Sequence[Plan],
        bake: Path,
        work: Path,
        log: Path,
        options: Options,
        metadata: dict[str, Any],
    ) -> Iterator[Outcome]:
        before = {p.name: self._digest(p) for p in plans}
        begun = time.monotonic()
        file = work / "metadata.json"
        file.unlink(missing_ok=True)
        with log.open("ab") as out:
            start = out.tell()
            status = self.engine.bake(
                bake,
                tuple(p.name for p in plans),
                log=out,
                metadata=file,
                progress=options.progress,
                builder=options.builder,
                no_cache=options.no_cache,
            )
        seconds = time.monotonic() - begun
        text = log.read_bytes()[start:].decode(errors="replace")
        if status == 0:
            metadata.update(render.load_json(file))
        else:
            self._check_engine(text, log)
        ended = _Ended(
            status=status, text=text, seconds=seconds, culprit=_culprit(plans, text) if status else None
        )
        for plan in plans:
            yield self._outcome(plan, before[plan.name], ended, options, metadata)

    def _outcome(
        self, plan: Plan, before: str | None, ended: _Ended, options: Options, metadata: Mapping[str, Any]
    ) -> Outcome:
        image = self.engine.find(plan.tags[0]) if options.local else None
        stage, lines = failure(ended.text) if plan.name == ended.culprit else (None, ())
        state: State
        if ended.status == 0:
            state = "cached" if image is not None and image.digest == before else "built"
        elif plan.name == ended.culprit:
            state = "failed"
        elif image is not None and image.digest != before:
            state = "built"  # finished before another target failed
        else:
            state = "stopped" if f"[{plan.name} " in ended.text else "not started"
        return Outcome(
            target=plan.name,
            state=state,
            tags=options.tags(plan),
            digest=image.digest if image else metadata.get(plan.name, {}).get("containerimage.digest"),
            size=image.size if image else None,
            seconds=ended.seconds,
            stage=stage,
            lines=lines,
        )

    def _digest(self, plan: Plan) -> str | None:
        image = self.engine.find(plan.tags[0])
        return image.digest if image else None


@dataclass(frozen=True, kw_only=True)
class _Ended:
    """How one call of the engine ended."""

    status: int
    text: str
    seconds: float
    culprit: str | None
    """The target that made it fail."""


def _culprit(plans: Sequence[Plan], text: str) -> str:
    """The target whose stage failed; BuildKit shows a shared stage under one of them."""
    stage, _ = failure(text)
    names = [p.name for p in plans]
    return next((n for n in names if stage and stage.startswith(f"{n} ")), names[0])


def _kernel_failure(text: str, names: Sequence[str], jobs: int, log: Path) -> BuildError:
    stage, lines = failure(text)
    shown = "\n".join([*(f"    {line}" for line in lines), f"the whole log: {log}"])
    if kernelbuild.KILLED in text or "exit code: 137" in text:
        less = f"--jobs {jobs // 2}, or a lower --memory-share" if jobs > 1 else "more memory or swap"
        return BuildError(
            f"a compiler was killed, most likely because memory ran out ({jobs} at once)\n{shown}",
            hint=f"the same command with {less}: it goes on from what is compiled",
        )
    return BuildError(
        f"{stage or ', '.join(names)}: a kernel was not compiled\n{shown}",
        hint="the same command again goes on from what is compiled",
    )


def raise_for(report: Report, command: str) -> None:
    """BuildError naming what failed, its last lines, the log and the command that re-runs only it."""
    if not report.failed:
        return
    parts = []
    for outcome in report.failed:
        if outcome.state == "failed":
            parts.append(f"{outcome.target}: stage {outcome.stage or '?'} failed")
            parts += [f"    {line}" for line in outcome.lines[-15:]]
        else:
            parts.append(f"{outcome.target}: {outcome.state}")
    again = " ".join(f"--target {o.target}" for o in report.failed)
    raise BuildError("\n".join([*parts, f"the whole log: {report.log}"]), hint=f"{command} {again}")


def failure(text: str) -> tuple[str | None, tuple[str, ...]]:
    """The failing stage and its last lines, out of BuildKit's closing summary."""
    clean = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text).replace("\r", "")
    blocks = re.findall(r"^ > \[(.+?)\][^\n]*\n((?:.*\n)*?)-{6,}\n", clean, flags=re.MULTILINE)
    error = [line for line in clean.splitlines() if line.startswith(("ERROR:", "error:"))][-1:]
    if blocks:
        stage, body = blocks[-1]
        lines = [re.sub(r"^\d+\.\d+ ", "", line) for line in body.splitlines() if line.strip()]
        return stage, tuple(lines[-15:] or error)
    return None, tuple(error or clean.strip().splitlines()[-15:])


def _base_labels(plan: Plan, *, bootstrapped: bool) -> dict[str, str]:
    if not bootstrapped:
        return {"imgbuild.base.source": "registry"}
    name = f"{plan.base.image}, bootstrapped from suite {plan.base.suite}"
    return {"imgbuild.base.source": "bootstrap", "org.opencontainers.image.base.name": name}


def _registry_cache(plan: Plan, options: Options) -> dict[str, list[str]]:
    """The build cache in a registry, a tag a target; its loss costs time, not the build."""
    found = {}
    if options.cache_from:
        found["cache-from"] = [f"type=registry,ref={options.cache_from}/cache:{plan.name}"]
    if options.cache_to:
        # max: with less, nothing of a stage that is only copied from is kept, and here that is every stage.
        how = "mode=max,compression=zstd,image-manifest=true,oci-mediatypes=true,ignore-error=true"
        found["cache-to"] = [f"type=registry,ref={options.cache_to}/cache:{plan.name},{how}"]
    return found


def _output(options: Options) -> str:
    if options.output:
        return options.output
    # Forced, because what a local build left in the cache is not compressed.
    zstd = "compression=zstd,compression-level=3,force-compression=true,oci-mediatypes=true"
    if options.export:
        return f"type=oci,tar=false,dest={options.export},{zstd}"
    if options.push:
        return f"type=registry,{zstd}"
    # Nobody downloads a local image: compressing it would only cost time. OCI's media types, because Docker's own
    # have none for a base's zstd layer, and the engine then refuses to start the image.
    return "type=docker,compression=uncompressed,oci-mediatypes=true"


def stage(tree: Path, to: Path) -> None:
    """Copy a ComfyUI tree without what is not its code: models, virtual environments, paths and passwords."""
    listed = (
        proc.run(
            ["git", "-C", tree, "ls-files", "-z", "--cached", "--others", "--exclude-standard", "."],
            check=False,
        )
        if (tree / ".git").exists() and proc.which("git")
        else None
    )
    if listed is not None and listed.returncode == 0:
        names = [Path(n) for n in listed.stdout.split("\0") if n]
    else:
        names = [p.relative_to(tree) for p in _walk(tree)]
    for name in names:
        source = tree / name
        if any(fnmatch.fnmatch(name.name, pattern) for pattern in _PRIVATE) or not source.is_file():
            continue
        (to / name).parent.mkdir(parents=True, exist_ok=True)
        try:
            shutil.copy2(source, to / name)
        except OSError as e:
            raise ConfigError(f"{source} cannot be copied: {e.strerror}") from None


def _walk(tree: Path) -> Iterator[Path]:
    for folder, folders, names in os.walk(tree):
        here = Path(folder)
        folders[:] = sorted(
            name
            for name in folders
            if not name.startswith(".")
            and name != "__pycache__"
            and not (here == tree and name in _NOT_CODE)
            and not (here / name / "pyvenv.cfg").exists()
        )
        for name in sorted(names):
            yield here / name


def _link(source: Path, to: Path) -> None:
    try:
        os.link(source, to)
    except OSError:  # another file system
        shutil.copy2(source, to)
