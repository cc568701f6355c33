"""What fits on which target at once: sums of what others declare and of the sizes of files; nothing is measured here."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

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

    counted: float | None
    """GB that a budget takes for it; None when neither is known."""

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
        return round(sum(need.counted or 0 for need in self.held), 1)


def needs(models: Sequence[Model], *, declared_only: bool = False) -> list[Need]:
    """What each counts for: the larger of what is declared and its largest file of weights, which has to be somewhere.

    `declared_only` takes the sources at their word.
    """
    found = []
    for model in models:
        sizes = [file.estimate for file in model.files]
        weights = [file.estimate for file in model.files if file.folder.split("/")[0] in _WEIGHTS]
        known = [size for size in weights if size is not None]
        declared = model.vram.gb if model.vram else None
        largest = max(known) / 1e9 if known else None
        figures = [declared] if declared_only else [declared, largest]
        found.append(
            Need(
                name=model.name,
                declared=declared,
                by=model.vram.by if model.vram else None,
                largest=largest,
                files=sum(size for size in sizes if size is not None) / 1e9,
                unknown=sum(size is None for size in sizes),
                counted=max((figure for figure in figures if figure is not None), default=None),
            )
        )
    return found


def fit(wanted: Sequence[Need], target: Target) -> Fit:
    """First come, first kept: the order of a list is its priority. What counts for nothing known is left out."""
    held: list[Need] = []
    left: list[Need] = []
    never: list[Need] = []
    free = target.usable
    for need in wanted:
        if need.counted is None:
            continue
        if need.counted > target.usable:
            never.append(need)
        elif need.counted > free:
            left.append(need)
        else:
            held.append(need)
            free -= need.counted
    return Fit(target=target, held=tuple(held), left=tuple(left), never=tuple(never))


def bar(found: Fit, letters: Mapping[str, str], width: int = 40) -> str:
    """The target's memory as a line: a letter for each model held, a dot for free, # for what is kept back.

    Every model that is held shows; a rounding error goes to the free part.
    """
    scale = width / found.target.memory
    kept = round(found.target.kept * scale)
    cells = "".join(letters[need.name] * max(1, round((need.counted or 0) * scale)) for need in found.held)
    cells = cells[: width - kept]
    return cells + "." * (width - kept - len(cells)) + "#" * kept
