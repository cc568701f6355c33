"""What has to be right before speed matters: the bus, and the same bits whatever the plan and whoever is late."""

from __future__ import annotations

import contextlib
import random
import time
from typing import TYPE_CHECKING, Any

import torch
from engine import Indices, Session
from engine.cpu import CpuDevice
from engine.cuda import CudaDevice
from engine.hazards import races
from engine.recording import RecordingDevice

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from dgls_models import Stack
    from engine.device import Buffer, Device

PLANS = 20
_cuda: Any = torch.cuda  # parts of it have no types
_CYCLES = 2_000_000
"""About a millisecond: longer than any block of the small stack takes, or its copy."""


def bandwidth(device: torch.device, nbytes: int) -> dict[str, Any]:
    """The best of five copies from pinned memory, and of five from pageable memory, in bytes a second."""
    target = torch.empty(nbytes, dtype=torch.uint8, device=device)
    speeds = {}
    for name in ("pinned", "pageable"):
        source = torch.ones(nbytes, dtype=torch.uint8)
        if name == "pinned" and device.type == "cuda":
            source = source.pin_memory()
        best = 0.0
        for _ in range(5):
            settle(device)
            begun = time.perf_counter()
            target.copy_(source, non_blocking=True)
            settle(device)
            best = max(best, nbytes / (time.perf_counter() - begun))
        speeds[name] = best
    return {"bytes": nbytes, **{f"{name}_bytes_per_second": speed for name, speed in speeds.items()}}


def settle(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


class LateCopies(CudaDevice):
    """Every copy starts late: a compute that does not wait for it reads what was there before."""

    def copy(self, to: Buffer, source: Buffer, to_offset: int, source_offset: int, nbytes: int) -> None:
        with torch.cuda.stream(self.copy_stream):
            _cuda._sleep(_CYCLES)  # noqa: SLF001  (torch's own tests use it; there is no public one)
        super().copy(to, source, to_offset, source_offset, nbytes)


class LateComputes(CudaDevice):
    """Every compute starts late: a copy that does not wait for it overwrites its weights."""

    @contextlib.contextmanager
    def computing(self, layer: int, reads: Sequence[Buffer]) -> Iterator[None]:
        _cuda._sleep(_CYCLES)  # noqa: SLF001
        with super().computing(layer, reads):
            yield


def exactness(stack: Stack, device: torch.device, tokens: int) -> list[dict[str, Any]]:
    """Twenty random plans, three passes each, against everything resident."""
    inputs = stack.inputs(tokens, device)
    with torch.inference_mode():
        expected = _expected(stack, inputs, device)
        return [_exact(stack, inputs, expected, name, device) for name in _devices(device)]


def _devices(device: torch.device) -> dict[str, Any]:
    if device.type == "cuda":
        return {
            "as it is": lambda: CudaDevice(device),
            "every copy late": lambda: LateCopies(device),
            "every compute late": lambda: LateComputes(device),
        }
    return {"as it is": CpuDevice, "every copy late, order checked": lambda: RecordingDevice(late=True)}


def _exact(
    stack: Stack, inputs: Any, expected: torch.Tensor, name: str, where: torch.device
) -> dict[str, Any]:
    dice = random.Random(0)
    count = len(stack.blocks)
    wrong = racing = 0
    for _ in range(PLANS):
        residents = tuple(dice.sample(range(count), dice.randrange(count)))
        device: Device = _devices(where)[name]()
        policy = Indices(layers=residents)
        with Session(
            stack.blocks, device=device, budget=1 << 50, policy=policy, slots=dice.choice((2, 3, 4))
        ) as session:
            session.attach()
            for _ in range(3):
                wrong += not torch.equal(through(stack, inputs), expected)
        if isinstance(device, RecordingDevice):
            racing += len(races(device.log))
    return {"device": name, "plans": PLANS, "passes": 3 * PLANS, "wrong": wrong, "races": racing}


def _expected(stack: Stack, inputs: Any, device: torch.device) -> torch.Tensor:
    hosts = [(p, p.data) for p in stack.blocks.parameters()]
    for parameter, host in hosts:
        parameter.data = host.to(device)
    expected = through(stack, inputs)
    for parameter, host in hosts:
        parameter.data = host
    return expected


def through(stack: Stack, inputs: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    x, vec = inputs
    for block in stack.blocks:
        x = block(x, vec)
    return x
