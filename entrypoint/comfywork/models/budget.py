"""What fits on which target at once. Sums of what others declare; nothing is measured here."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from comfywork.models.modellist import Model
    from comfywork.models.targets import Target

# ComfyUI loads these before sampling and may drop them again; the others stay with the sampler.
_WEIGHTS = ("checkpoints", "diffusion_models")


@dataclass(frozen=True, kw_only=True)
class Need:
    """A model's claim, beside the only thing that is known of it without a GPU: how large its weights are."""

    name: str
    declared: float | None
    """GB."""
    by: str | None
    largest: float | None
    """GB of the largest single file of weights; None when nobody states its size."""
    files: float
    """GB of all files whose size is stated."""
    unknown: int
    """Files whose size nobody states."""

    @property
    def doubtful(self) -> bool:
        """Whether one file alone is larger than what the model is said to need."""
        return self.declared is not None and self.largest is not None and self.largest > self.declared


@dataclass(frozen=True, kw_only=True)
class Fit:
    """A target and what of a list it holds at once, in the list's order."""

    target: Target
    held: tuple[Need, ...]
    left: tuple[Need, ...]
    """What fits beside the others no more, but alone."""
    never: tuple[Need, ...]
    """What does not even fit alone."""

    @property
    def used(self) -> float:
        return sum(need.declared or 0 for need in self.held)

    @property
    def free(self) -> float:
        return self.target.usable - self.used


def needs(models: Sequence[Model]) -> list[Need]:
    found = []
    for model in models:
        sizes = [file.estimate for file in model.files]
        weights = [file.estimate for file in model.files if file.folder.split("/")[0] in _WEIGHTS]
        known = [size for size in weights if size is not None]
        found.append(
            Need(
                name=model.name,
                declared=model.vram.gb if model.vram else None,
                by=model.vram.by if model.vram else None,
                largest=max(known) / 1e9 if known else None,
                files=sum(size for size in sizes if size is not None) / 1e9,
                unknown=sum(size is None for size in sizes),
            )
        )
    return found


def fit(wanted: Sequence[Need], target: Target) -> Fit:
    """First come, first kept: the order of a list is its priority. A need that nobody declared is left out."""
    held: list[Need] = []
    left: list[Need] = []
    never: list[Need] = []
    free = target.usable
    for need in wanted:
        if need.declared is None:
            continue
        if need.declared > target.usable:
            never.append(need)
        elif need.declared > free:
            left.append(need)
        else:
            held.append(need)
            free -= need.declared
    return Fit(target=target, held=tuple(held), left=tuple(left), never=tuple(never))


def bar(found: Fit, width: int = 40) -> str:
    """The target's memory as a line: a letter for each model held, a dot for free, # for what is kept back.

    Every model that is held shows; a rounding error goes to the free part.
    """
    scale = width / found.target.memory
    kept = round(found.target.kept * scale)
    cells = ""
    for i, need in enumerate(found.held):
        cells += chr(ord("A") + i % 26) * max(1, round((need.declared or 0) * scale))
    cells = cells[: width - kept]
    return cells + "." * (width - kept - len(cells)) + "#" * kept
