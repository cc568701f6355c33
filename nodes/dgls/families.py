"""Which modules of a diffusion model are its layers, and in which order they run.

Found by the class of ComfyUI's own model (a subclass counts as its base), by name: importing every model class
to compare with would cost seconds and tie this to one version. `tests/dgls/nodes/test_families.py` proves each
row on the real classes, in every pinned version, and checks the order by running them.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import nn

from .errors import NoBlocksError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator


@dataclass(frozen=True, kw_only=True)
class Family:
    name: str
    classes: tuple[str, ...]
    """Qualified names; the first class of the model's ancestry that is named here decides."""
    containers: tuple[str, ...]
    """Attributes that hold blocks, in the order in which they run; those a model lacks are passed over."""


FAMILIES = (
    Family(
        name="flux",  # Flux.1 and Flux.2: one class, other parameters
        classes=("comfy.ldm.flux.model.Flux", "comfy.ldm.chroma.model.Chroma"),
        containers=("double_blocks", "single_blocks"),
    ),
    Family(
        name="hunyuan-video",
        classes=("comfy.ldm.hunyuan_video.model.HunyuanVideo",),
        containers=("double_blocks", "single_blocks"),
    ),
    Family(
        name="wan",  # 2.1 and 2.2; VACE runs its own blocks between those of the model, see `_interleaved`
        classes=("comfy.ldm.wan.model.WanModel",),
        containers=("blocks", "vace_blocks"),
    ),
    Family(
        name="cosmos1",  # a ModuleDict: to iterate over it gives names
        classes=("comfy.ldm.cosmos.model.GeneralDIT",),
        containers=("blocks",),
    ),
    Family(
        name="cosmos-predict2",
        classes=("comfy.ldm.cosmos.predict2.MiniTrainDIT",),
        containers=("blocks",),
    ),
    Family(
        name="qwen-image",
        classes=("comfy.ldm.qwen_image.model.QwenImageTransformer2DModel",),
        containers=("transformer_blocks",),
    ),
)

# These run the parts of their blocks one by one, so that there is no call of a block to hold on to.
NOT_SWAPPABLE = {
    "comfy.ldm.modules.diffusionmodules.openaimodel.UNetModel": "a U-Net (SD 1.5, SDXL)",
}


@dataclass(frozen=True, kw_only=True)
class Layer:
    name: str
    """Its path in the diffusion model, "double_blocks.3"."""
    module: nn.Module


@dataclass(frozen=True, kw_only=True)
class Layers:
    """What travels along the LAYERS link."""

    family: str
    model: str
    """The class of the diffusion model, for people."""
    layers: tuple[Layer, ...]

    def __len__(self) -> int:
        return len(self.layers)

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(layer.name for layer in self.layers)

    @property
    def modules(self) -> tuple[nn.Module, ...]:
        return tuple(layer.module for layer in self.layers)


def extract(model: nn.Module) -> Layers:
    """The layers of a diffusion model, in running order. Raises NoBlocksError."""
    ancestry = [f"{c.__module__}.{c.__qualname__}" for c in type(model).__mro__]
    for name in ancestry:
        if name in NOT_SWAPPABLE:
            raise NoBlocksError(
                f"{type(model).__name__} is {NOT_SWAPPABLE[name]}: it runs the parts of its blocks one by one, and "
                "no block can be swapped as a whole. Load it with Load Diffusion Model"
            )
    for name in ancestry:
        for family in FAMILIES:
            if name in family.classes:
                found = _interleaved(model, list(_of(model, family.containers)))
                if found:
                    return Layers(family=family.name, model=type(model).__name__, layers=tuple(found))
    return Layers(family="generic", model=type(model).__name__, layers=tuple(_longest(model)))


def _of(model: nn.Module, containers: Iterable[str]) -> Iterator[Layer]:
    for container in containers:
        blocks = getattr(model, container, None)
        if isinstance(blocks, nn.ModuleList | nn.ModuleDict):
            for key, block in blocks.named_children():
                yield Layer(name=f"{container}.{key}", module=block)


def _interleaved(model: nn.Module, layers: list[Layer]) -> list[Layer]:
    """VACE's blocks each after the block of the model that they follow; any other list as it is."""
    mapping = getattr(model, "vace_layers_mapping", None)
    if not isinstance(mapping, dict):
        return layers
    by_name = {layer.name: layer for layer in layers}
    ordered: list[Layer] = []
    for layer in layers:
        if layer.name.startswith("blocks."):
            ordered.append(layer)
            after = mapping.get(int(layer.name.removeprefix("blocks.")))
            if after is not None and f"vace_blocks.{after}" in by_name:
                ordered.append(by_name[f"vace_blocks.{after}"])
    placed = {layer.name for layer in ordered}
    return ordered + [layer for layer in layers if layer.name not in placed]


def _longest(model: nn.Module) -> list[Layer]:
    """Of an unknown model: its longest list of blocks, of several the one with the most weights."""
    best: tuple[int, int] = (1, 0)
    found: list[Layer] = []
    for name, module in model.named_modules():
        if isinstance(module, nn.ModuleList | nn.ModuleDict):
            children = list(module.named_children())
            rank = (len(children), sum(p.numel() for p in module.parameters()))
            if rank[0] > 1 and rank[1] > 0 and rank > best:
                best = rank
                found = [Layer(name=f"{name}.{key}", module=child) for key, child in children]
    if not found:
        raise NoBlocksError(
            f"{type(model).__name__} has no list of repeated blocks, so nothing can be swapped. "
            "Load it with Load Diffusion Model"
        )
    return found


_IN_FILE = re.compile(
    r"(?:^|\.)(double_blocks|single_blocks|transformer_blocks|blocks|vace_blocks)\.(?:block)?(\d+)\."
)


def count_in_file(keys: Iterable[str]) -> int | None:
    """How many layers `extract` will find in a model with these weights, or None if that cannot be told."""
    found: dict[str, set[int]] = {}
    for key in keys:
        bare = key.removeprefix("model.diffusion_model.").removeprefix("net.")
        match = _IN_FILE.match(bare)
        if match:
            found.setdefault(match[1], set()).add(int(match[2]))
    for family in FAMILIES:
        if family.containers[0] in found:
            return sum(len(found.get(container, ())) for container in family.containers)
    return None
