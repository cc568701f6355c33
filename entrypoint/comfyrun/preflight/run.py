"""All checks in their order, for `comfyrun check` and before every `comfyrun serve`."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Protocol

from comfyrun import directories, tls
from comfyrun.errors import MachineError
from comfyrun.launch import Variable
from comfyrun.preflight import folders, kernels, limits, network, probe, verdicts
from comfyrun.preflight import memory as memory_check
from comfyrun.preflight.device import CHECK as DEVICE
from comfyrun.preflight.finding import Finding, Severity, info
from comfyrun.preflight.hardware import Hardware, look
from comfyrun.preflight.report import Report

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from comfyrun.launch import Launch, Machine
    from comfyrun.layout import Layout
    from comfyrun.preflight.gpus import Gpu
    from comfyrun.preflight.kernels import Backend, Bench
    from comfyrun.preflight.system import System
    from comfyrun.preflight.verdicts import Verdict

VISIBLE = "CUDA_VISIBLE_DEVICES"

# ComfyUI puts their value into CUDA_VISIBLE_DEVICES itself.
_FIXING = ("--cuda-device", "--default-device")


class Plan(Protocol):
    def __call__(self, *, memory: float | None, display: bool, dropped: Mapping[str, str]) -> Launch:
        """The pure function, with everything but what is found out here given; `memory` in GiB."""


@dataclass(frozen=True, kw_only=True)
class Depth:
    """How much is done."""

    running: bool
    """Kernels are run, folders are made; else only what can be looked at is."""
    every: bool = False
    """Every kernel of the image is tried, also one that is not asked for or failed before; all checks are made."""


PREVIEW = Depth(running=False)
SERVE = Depth(running=True)
CHECK = Depth(running=True, every=True)


def preflight(
    plan: Plan, system: System, layout: Layout, machine: Machine, depth: Depth
) -> tuple[Launch, Report]:
    """The Launch for this machine, and what was found. Raises what `plan` raises, and nothing else."""
    begin = time.monotonic()
    flight = _Flight(plan, system, layout, machine, depth)
    flight.run()
    report = Report(
        target=flight.launch.image.target,
        findings=tuple(dict.fromkeys(flight.findings)),
        device=flight.hardware.device,
        visible=flight.hardware.visible,
        dropped=flight.dropped,
        memory=flight.memory,
        seconds=time.monotonic() - begin,
    )
    return flight.launch, report


class _Flight:
    def __init__(self, plan: Plan, system: System, layout: Layout, machine: Machine, depth: Depth) -> None:
        self._plan, self._system, self._layout = plan, system, layout
        self._machine, self._depth = machine, depth
        self.hardware = Hardware()
        self.findings: list[Finding] = []
        self.dropped: dict[str, str] = {}
        self.memory = memory_check.look(system)
        self.launch = plan(memory=None, display=False, dropped={})

    def run(self) -> None:
        self._look()
        if not _failed(self.findings) or self._depth.every:
            self.findings += self._surroundings()
        gpu = self.hardware.device
        if gpu is not None and not _failed(self.findings) and self._prove():
            self._try_kernels(gpu)

    def _look(self) -> None:
        """Which GPU it is, and the Launch for it."""
        image, launch = self.launch.image, self.launch
        if image.compute_capability is None:
            self.findings.append(info(DEVICE, f"the CPU: this image ({image.target}) has no GPU code"))
            return
        if "--cpu" in _names(launch):
            self.findings.append(info(DEVICE, "the CPU (--cpu)"))
            return
        self.hardware = look(image, self._system, self._environ(), self.memory)
        self.findings += self.hardware.findings
        self._plan_again()

    def _environ(self) -> Mapping[str, str]:
        """What ComfyUI's CUDA will see."""
        options, environ = self.launch.options, self.launch.environment
        fixed = next((o.values[0] for o in reversed(options) if o.name in _FIXING and o.values), None)
        return environ if fixed is None else {**environ, VISIBLE: fixed}

    def _plan_again(self) -> None:
        gpu, visible = self.hardware.device, self.hardware.visible
        if gpu is None:
            return
        memory = None if gpu.total is None else gpu.total / (1 << 30)
        self.launch = self._plan(memory=memory, display=bool(gpu.display), dropped=self.dropped)
        if visible is not None:  # only where nobody has set it
            origin = "preflight: of several GPUs the one that fits"
            self.launch = replace(
                self.launch,
                environment={**self.launch.environment, VISIBLE: visible},
                variables=(*self.launch.variables, Variable(name=VISIBLE, value=visible, origin=origin)),
            )

    def _surroundings(self) -> Iterator[Finding]:
        """Everything but the GPU."""
        gpu = self.hardware.device is not None
        yield from self._folders(gpu=gpu)
        yield memory_check.check(
            self.memory, pins=gpu and "--disable-pinned-memory" not in _names(self.launch)
        )
        yield network.check(self._system, self.launch.listen)
        yield from limits.check(self._system)

    def _folders(self, *, gpu: bool) -> Iterator[Finding]:
        launch = self.launch
        origin = launch.settings.origin("models")
        shared = list(folders.shared(self._system, launch.models, origin, strict=launch.strict))
        yield from shared
        if not self._depth.running or _failed(shared):
            return
        troubles: list[str] = []
        try:
            directories.prepare(launch.directories, self._machine)
            directories.ready(launch.files, self._machine)
            tls.check(launch.files)
        except MachineError as error:
            troubles += error.messages
        yield from folders.check(
            self._system,
            data=launch.workdir,
            cache=launch.cache,
            compiled=(launch.environment.get("TRITON_CACHE_DIR") or launch.cache) if gpu else None,
            temp=folders.temporary(launch.environment),
            troubles=troubles,
        )

    def _prove(self) -> bool:
        """Runs the probe kernel; whether others may be tried."""
        if not self._depth.running:
            return True
        if self.launch.image.kernel(probe.KERNEL) is None:
            self.findings.append(info(probe.CHECK, "this image has no probe kernel"))
            return True
        asked = probe.ask(self._system, str(self._layout.python), self._environ())
        found = probe.judge(asked)
        self.findings.append(found)
        return not _failed([found])

    def _try_kernels(self, gpu: Gpu) -> None:
        """What is dropped may bring another kernel in, which then is tried too."""
        tried: set[str] = set()
        while todo := [b for b in self._wanted() if b.kernel not in tried]:
            for backend in todo:
                tried.add(backend.kernel)
                self._try(backend, gpu)
            self._plan_again()

    def _wanted(self) -> list[Backend]:
        return kernels.wanted(_names(self.launch), self.launch.image, every=self._depth.every)

    def _try(self, backend: Backend, gpu: Gpu) -> None:
        bench = self._bench(gpu)
        found: Verdict | None
        if self._depth.running:
            found, kept = kernels.verdict(bench, backend, again=self._depth.every)
        else:
            found, kept = verdicts.load(verdicts.place(bench.cache, *bench.identity(backend))), True
        if found is None:
            return
        line, reason = kernels.finding(backend, found, kept=kept, strict=self.launch.strict)
        self.findings.append(line)
        if reason is not None:
            self.dropped[backend.kernel] = reason

    def _bench(self, gpu: Gpu) -> Bench:
        return kernels.Bench(
            image=self.launch.image,
            layout=self._layout,
            system=self._system,
            environ=self._environ(),
            cache=self.launch.cache,
            device=gpu,
            driver=self.hardware.driver,
        )


def _names(launch: Launch) -> frozenset[str]:
    return frozenset(name for option in launch.options for name in option.flag.names)


def _failed(findings: Iterable[Finding]) -> bool:
    return any(f.severity is Severity.ERROR for f in findings)
