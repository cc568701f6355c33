"""What a user asked of the swapping loader, understood once and then handed around frozen."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from .engine import Auto, Evenly, FirstLast, Indices
from .errors import IndicesError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from .engine import Policy
    from .presets import Preset

Mode = Literal["auto", "engine", "unified", "off"]
MODES: tuple[Mode, ...] = ("auto", "engine", "unified", "off")
PLANNER = -1
"""The value of an input that leaves it to the planner."""
MOST_INDEX = 9999
NAMED = 8
"""Wrong ones that a message lists."""

# Inputs of the original that this engine makes unnecessary, and why. They are accepted, and said once.
UNNEEDED: Mapping[str, str] = {
    "threading": "copies are queued on a stream of their own, ahead of time: no thread has to watch them",
    "cuda_streams": "there is always exactly one copy stream, and more would share the same bus",
    "event_sync": "ordering is always by events, since nothing else is both correct and overlapped",
    "batch_move": "a layer is one packed buffer, so it is always one copy",
    "selective_packing": "every layer is packed whatever its size; what cannot be is named in the report",
}


@dataclass(frozen=True, kw_only=True)
class Settings:
    mode: Mode = "auto"
    policy: Policy = Auto()  # noqa: RUF009  # frozen itself
    slots: int | None = None
    """Of the ring; None: the planner tries 2 to 4."""
    budget: int | None = None
    """Bytes on the device for layers; None: what ComfyUI has left for this model."""
    compile: bool = False
    verbose: bool = False
    notes: tuple[str, ...] = ()
    """What was accepted and has no effect here, for the log and the report."""


def understand(
    *,
    initial: int = PLANNER,
    final: int = PLANNER,
    prefetch: int = PLANNER,
    indices: str = "",
    residency: str = "auto",
    mode: Mode = "auto",
    vram_budget: float = 0.0,
    preset: Preset | None = None,
    compile_residents: bool = False,
    verbose: bool = False,
    unneeded: Mapping[str, bool | int] | None = None,
) -> Settings:
    """Indices win over initial and final, these over the preset, and without any of them the planner decides.

    `vram_budget` in GiB, 0 for what ComfyUI leaves. Raises IndicesError.
    """
    if preset is not None:
        initial = preset.initial if initial == PLANNER else initial
        final = preset.final if final == PLANNER else final
        prefetch = preset.prefetch if prefetch == PLANNER else prefetch
        compile_residents = compile_residents or preset.compile
    chosen = parse_indices(indices)
    policy: Policy
    if chosen is not None:
        policy = Indices(layers=chosen)
    elif initial != PLANNER or final != PLANNER:
        policy = FirstLast(first=max(initial, 0), last=max(final, 0))
    else:
        policy = Evenly() if residency == "evenly" else Auto()
    notes = [
        f"{name} has no effect here: {why}"
        for name, why in UNNEEDED.items()
        if unneeded is not None and unneeded.get(name)
    ]
    if chosen is not None and (initial != PLANNER or final != PLANNER):
        notes.append("gpu_layer_indices is set, so initial_gpu_layers and final_gpu_layers are not used")
    return Settings(
        mode=mode,
        policy=policy,
        slots=None if prefetch == PLANNER else prefetch + 1,
        budget=int(vram_budget * 2**30) if vram_budget > 0 else None,
        compile=compile_residents,
        verbose=verbose,
        notes=tuple(notes),
    )


def parse_indices(text: str, count: int | None = None) -> tuple[int, ...] | None:
    """The text 0,1,18-20 as numbers; None when nothing is named. Raises IndicesError naming what is wrong.

    `count`: how many layers the model has, where that is known.
    """
    found: list[int] = []
    strange: list[str] = []
    for part in text.replace(";", ",").split(","):
        word = part.strip()
        if not word:
            continue
        first, dash, last = word.partition("-")
        if first.strip().isdecimal() and (not dash or last.strip().isdecimal()):
            begin = int(first)
            end = int(last) if dash else begin
            if end < begin:
                strange.append(repr(word))
            # Whatever lies beyond is refused below, by its first number: nobody needs the list of all of them.
            found += range(begin, min(end, max(begin, MOST_INDEX + 1)) + 1)
        else:
            strange.append(repr(word))
    if strange:
        raise IndicesError(
            f"gpu_layer_indices: {', '.join(strange)} {'is no layer number' if len(strange) == 1 else 'are no layer numbers'}. "
            'Give numbers from 0, like "0,1,18-20"'
        )
    most = MOST_INDEX if count is None else count - 1
    beyond = sorted({i for i in found if i > most})
    if beyond:
        named = ", ".join(map(str, beyond[:NAMED])) + (", …" if len(beyond) > NAMED else "")
        has = (
            "no model has so many layers" if count is None else f"the model has {count}, numbered 0 to {most}"
        )
        raise IndicesError(f"gpu_layer_indices: there is no layer {named}: {has}")
    return tuple(dict.fromkeys(found)) or None
