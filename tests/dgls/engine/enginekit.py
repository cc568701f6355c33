"""Small models whose every byte matters to the result, and devices to run them on."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from dgls_engine import Indices, Session
from dgls_engine.hazards import races
from dgls_engine.recording import Faults, RecordingDevice
from torch import nn

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

WIDTH = 8
LARGE = 1 << 40


class Layer(nn.Module):
    """`extra` floats make it larger."""

    def __init__(self, extra: int = 0) -> None:
        super().__init__()
        self.inner = nn.Linear(WIDTH, WIDTH)
        self.weight = nn.Parameter(torch.randn(WIDTH + extra))
        self.register_buffer("scale", torch.randn(()))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.tanh(self.inner(x) + self.weight.sum() * self.scale)


def stack(sizes: Sequence[int] = (0,) * 6, seed: int = 0) -> nn.ModuleList:
    torch.manual_seed(seed)
    return nn.ModuleList([Layer(extra) for extra in sizes])


def x(batch: int = 2, seed: int = 1) -> torch.Tensor:
    return torch.randn(batch, WIDTH, generator=torch.Generator().manual_seed(seed))


def run(layers: Iterable[nn.Module], value: torch.Tensor | None = None) -> torch.Tensor:
    value = x() if value is None else value
    with torch.inference_mode():
        for layer in layers:
            value = layer(value)
    return value


def state(layers: nn.ModuleList) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in layers.state_dict().items()}


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(equal(one[name], other[name]) for name in one)


def equal(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Bit for bit, NaNs too."""
    if one.shape != other.shape or one.dtype != other.dtype:
        return False
    return torch.equal(
        one.detach().contiguous().reshape(-1).view(torch.uint8),
        other.detach().contiguous().reshape(-1).view(torch.uint8),
    )


def session(
    layers: nn.ModuleList,
    device: object = None,
    *,
    residents: Iterable[int] = (),
    slots: int = 2,
    attach: bool = True,
    **options: object,
) -> Session:
    """With residents made by hand unless `policy` says otherwise."""
    options.setdefault("policy", Indices(layers=tuple(residents)))
    options.setdefault("budget", LARGE)
    made = Session(layers, device=device or RecordingDevice(late=True), slots=slots, **options)
    if attach:
        made.attach()
    return made


def operations(device: RecordingDevice, kind: str) -> list[object]:
    return [operation for operation in device.log if operation.kind == kind]


def assert_no_races(device: RecordingDevice) -> None:
    found = races(device.log)
    assert not found, "\n".join(map(str, found[:5]))


def counting(inner: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    """A forward that counts its calls in `.calls`."""

    def forward(*args: object) -> torch.Tensor:
        forward.calls += 1
        return inner(*args)

    forward.calls = 0
    return forward


__all__ = ["Faults", "RecordingDevice"]
