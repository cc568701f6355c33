"""Ways to run blocks of which only some fit on the device: ours, and those that it is measured against.

Each is a context manager around a stack on the CPU, and leaves it there. `residents` stay on the device; the others
come and go. What is copied is never copied back: the weights are read-only, and so every row is at its best.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from engine import Indices, Session
from torch import Tensor, nn

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

Runs = Any
"""A context manager."""


@dataclass(frozen=True, kw_only=True)
class Method:
    name: str
    what: str
    use: Callable[[nn.ModuleList, frozenset[int], torch.device], Runs]
    package: str | None = None
    """That it needs."""
    gpu_only: bool = False

    def why_not(self, device: torch.device) -> str | None:
        if self.package and importlib.util.find_spec(self.package) is None:
            return f"not installed: pip install {self.package}"
        if self.gpu_only and device.type != "cuda":
            return "needs a GPU"
        return None


def _brought(tensor: Tensor, device: torch.device, *, asynchronous: bool = False) -> Tensor:
    """A copy on the device; on the CPU too, where `to` would do nothing."""
    return tensor.clone() if device.type == "cpu" else tensor.to(device, non_blocking=asynchronous)


@contextlib.contextmanager
def _on_device(blocks: nn.ModuleList, indices: frozenset[int], device: torch.device) -> Iterator[None]:
    hosts = {p: p.data for i in indices for p in blocks[i].parameters()}
    for parameter, host in hosts.items():
        parameter.data = _brought(host, device)
    try:
        yield
    finally:
        for parameter, host in hosts.items():
            parameter.data = host


@contextlib.contextmanager
def _forwards(blocks: nn.ModuleList, wrap: Callable[[int, Any], Any]) -> Iterator[None]:
    for i, block in enumerate(blocks):
        block.forward = wrap(i, block.forward)
    try:
        yield
    finally:
        for block in blocks:
            del block.forward


@contextlib.contextmanager
def resident(blocks: nn.ModuleList, _residents: frozenset[int], device: torch.device) -> Iterator[None]:
    with _on_device(blocks, frozenset(range(len(blocks))), device):
        yield


@contextlib.contextmanager
def _moved(
    blocks: nn.ModuleList, residents: frozenset[int], device: torch.device, *, pinned: bool
) -> Iterator[None]:
    going = [i for i in range(len(blocks)) if i not in residents]
    hosts = {i: [_pinned(p.data) if pinned else p.data for p in blocks[i].parameters()] for i in going}

    def wrap(index: int, forward: Any) -> Any:
        if index in residents:
            return forward

        def moved(*args: Any) -> Any:
            parameters = list(blocks[index].parameters())
            kept = [p.data for p in parameters]
            for parameter, host in zip(parameters, hosts[index], strict=True):
                parameter.data = _brought(host, device, asynchronous=pinned)
            try:
                return forward(*args)
            finally:
                for parameter, host in zip(parameters, kept, strict=True):
                    parameter.data = host

        return moved

    with _on_device(blocks, residents, device), _forwards(blocks, wrap):
        yield


def _pinned(tensor: Tensor) -> Tensor:
    return tensor.pin_memory() if torch.cuda.is_available() else tensor


def pageable(blocks: nn.ModuleList, residents: frozenset[int], device: torch.device) -> Runs:
    return _moved(blocks, residents, device, pinned=False)


def pinned(blocks: nn.ModuleList, residents: frozenset[int], device: torch.device) -> Runs:
    return _moved(blocks, residents, device, pinned=True)


@contextlib.contextmanager
def after_a_miss(
    blocks: nn.ModuleList, residents: frozenset[int], device: torch.device, depth: int = 1
) -> Iterator[None]:
    """As the original does it: a miss brings its layer and `depth` more, and is waited for; a hit brings nothing."""
    going = [i for i in range(len(blocks)) if i not in residents]
    hosts = {i: [_pinned(p.data) for p in blocks[i].parameters()] for i in going}
    there: dict[int, list[Tensor]] = {}

    def wrap(index: int, forward: Any) -> Any:
        if index in residents:
            return forward

        def missed(*args: Any) -> Any:
            if index not in there:
                begin = going.index(index)
                for i in going[begin : begin + depth + 1]:
                    there[i] = [_brought(host, device, asynchronous=True) for host in hosts[i]]
                if device.type == "cuda":
                    torch.cuda.current_stream(device).synchronize()
            parameters = list(blocks[index].parameters())
            kept = [p.data for p in parameters]
            for parameter, brought in zip(parameters, there.pop(index), strict=True):
                parameter.data = brought
            try:
                return forward(*args)
            finally:
                for parameter, host in zip(parameters, kept, strict=True):
                    parameter.data = host

        return missed

    with _on_device(blocks, residents, device), _forwards(blocks, wrap):
        yield


@contextlib.contextmanager
def per_linear(blocks: nn.ModuleList, residents: frozenset[int], device: torch.device) -> Iterator[None]:
    """As ComfyUI's low-VRAM mode: each linear layer asks for its weights when it runs, on two streams in turn."""
    streams: list[Any] = []
    if device.type == "cuda":
        streams = [torch.cuda.Stream(device) for _ in range(2)]  # type: ignore[no-untyped-call]
    turn = 0
    linears = [
        module
        for i, block in enumerate(blocks)
        if i not in residents
        for module in block.modules()
        if any(True for _ in module.parameters(recurse=False))
    ]
    hosts = {module: [_pinned(p.data) for p in module.parameters(recurse=False)] for module in linears}

    def wrap(module: nn.Module, forward: Any) -> Any:
        def fetched(*args: Any) -> Any:
            nonlocal turn
            parameters = list(module.parameters(recurse=False))
            kept = [p.data for p in parameters]
            if streams:
                stream, turn = streams[turn], 1 - turn
                stream.wait_stream(torch.cuda.current_stream(device))
                with torch.cuda.stream(stream):
                    brought = [_brought(host, device, asynchronous=True) for host in hosts[module]]
                torch.cuda.current_stream(device).wait_stream(stream)
                for tensor in brought:
                    tensor.record_stream(torch.cuda.current_stream(device))
            else:
                brought = [_brought(host, device) for host in hosts[module]]
            for parameter, tensor in zip(parameters, brought, strict=True):
                parameter.data = tensor
            try:
                return forward(*args)
            finally:
                for parameter, host in zip(parameters, kept, strict=True):
                    parameter.data = host

        return fetched

    with _on_device(blocks, residents, device):
        for module in linears:
            module.forward = wrap(module, module.forward)
        try:
            yield
        finally:
            for module in linears:
                del module.forward


@contextlib.contextmanager
def with_accelerate(blocks: nn.ModuleList, residents: frozenset[int], device: torch.device) -> Iterator[None]:
    # Optional, so without types here.
    accelerate = importlib.import_module("accelerate")
    hooks = importlib.import_module("accelerate.hooks")

    going = [blocks[i] for i in range(len(blocks)) if i not in residents]
    with _on_device(blocks, residents, device):
        for block in going:
            accelerate.cpu_offload(block, execution_device=device)
        try:
            yield
        finally:
            for block in going:
                hooks.remove_hook_from_module(block, recurse=True)


@contextlib.contextmanager
def with_diffusers(blocks: nn.ModuleList, residents: frozenset[int], device: torch.device) -> Iterator[None]:
    hooks = importlib.import_module("diffusers.hooks")

    # It works on a module that has a list of blocks; those that go are given to it as one.
    holder = nn.Module()
    holder.blocks = nn.ModuleList([blocks[i] for i in range(len(blocks)) if i not in residents])
    with _on_device(blocks, residents, device):
        hooks.apply_group_offloading(
            holder,
            onload_device=device,
            offload_device=torch.device("cpu"),
            offload_type="block_level",
            num_blocks_per_group=1,
            use_stream=True,
            non_blocking=True,
        )
        try:
            yield
        finally:
            hooks.HookRegistry.check_if_exists_or_initialize(holder).remove_hook(
                "group_offloading", recurse=True
            )
            holder.to("cpu")


@contextlib.contextmanager
def ours(
    blocks: nn.ModuleList, residents: frozenset[int], device: torch.device, slots: int = 2
) -> Iterator[None]:
    """With the same residents as the others, not the planner's."""
    policy = Indices(layers=tuple(residents))
    with Session(blocks, device=device, budget=1 << 50, policy=policy, slots=slots) as session:
        session.attach()
        yield


BASELINES = (
    Method(name="resident", what="everything on the device", use=resident),
    Method(name=".to() pageable", what="each block when it runs, waited for", use=pageable),
    Method(name=".to() pinned", what="the same from pinned memory", use=pinned),
    Method(name="prefetch after a miss", what="as the original DGLS", use=after_a_miss),
    Method(name="per linear, two streams", what="as ComfyUI's low-VRAM mode", use=per_linear),
    Method(name="accelerate cpu_offload", what="", use=with_accelerate, package="accelerate", gpu_only=True),
    Method(
        name="diffusers group offload",
        what="block level, stream",
        use=with_diffusers,
        package="diffusers",
        gpu_only=True,
    ),
    Method(name="DGLS, same residents", what="ours, 2 slots", use=ours),
)
