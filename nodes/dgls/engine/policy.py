"""Which layers stay on the device: the planner's choice, or one made by hand."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from .errors import PlanError

if TYPE_CHECKING:
    from collections.abc import Sequence


@dataclass(frozen=True, kw_only=True)
class Auto:
    """The planner: measured in the first passes, and again when the shapes change."""


@dataclass(frozen=True, kw_only=True)
class FirstLast:
    """So many from the front and so many from the back; more than there are means all of them."""

    first: int
    last: int

    def __post_init__(self) -> None:
        if self.first < 0 or self.last < 0:
            raise PlanError(
                f"first ({self.first}) and last ({self.last}) count layers: neither may be negative"
            )


@dataclass(frozen=True, kw_only=True)
class Indices:
    """Exactly these, counted from 0."""

    layers: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class Evenly:
    """As many as fit, spread evenly over the model."""


AUTO = Auto()

Policy = Auto | FirstLast | Indices | Evenly


def chosen(policy: FirstLast | Indices, count: int) -> Sequence[int]:
    """The layers that a policy made by hand names, the most wanted first."""
    match policy:
        case FirstLast(first=first, last=last):
            front = range(min(first, count))
            back = range(count - 1, max(count - last, len(front)) - 1, -1)
            return [*front, *back]
        case Indices(layers=layers):
            strange = sorted({i for i in layers if not 0 <= i < count})
            if strange:
                raise PlanError(
                    f"no layer {', '.join(map(str, strange))}: the model has {count}, counted 0 to {count - 1}"
                )
            return list(dict.fromkeys(layers))
