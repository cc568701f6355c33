"""The nodes as ComfyUI sees them: inputs, their help, and which part does the work."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

import comfy.model_management

from . import hardware, loader, picture, presets, report, settings
from .errors import IndicesError, NodeError
from .patcher import DGLSPatcher
from .prompts import COUNT

if TYPE_CHECKING:
    from comfy.model_patcher import ModelPatcher

    from .families import Layers

CATEGORY = "loaders/DGLS"


class _Anything(str):
    """A type that fits every link, in every ComfyUI: they compare with `!=`."""

    __slots__ = ()

    def __eq__(self, other: object) -> bool:
        return isinstance(other, str)

    def __ne__(self, other: object) -> bool:
        return not isinstance(other, str)

    __hash__ = str.__hash__


class ModelLoader:
    """In place of Load Diffusion Model."""

    CATEGORY = CATEGORY
    DESCRIPTION = (
        "Loads a diffusion model so that the DGLS Swapping Loader can keep only part of it on the GPU."
    )
    RETURN_TYPES = ("MODEL", "LAYERS")
    RETURN_NAMES = ("model", "layers")
    FUNCTION = "load"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:  # noqa: N802
        return {
            "required": {
                "model_name": (loader.names(), {"tooltip": "From models/diffusion_models or models/unet."}),
                "model_type": (
                    ["default", "hunyuan", "unet"],
                    {
                        "default": "default",
                        "tooltip": "Has no effect here: ComfyUI tells the model by its weights. "
                        "The original needed hints; old workflows keep theirs.",
                    },
                ),
                "cast_dtype": (
                    list(loader.DTYPES),
                    {
                        "default": "default",
                        "tooltip": "Type of the weights in memory. default: as in the file, where the GPU has it. "
                        "Half the bytes are half the copying.",
                    },
                ),
                "clear_model_cache": (
                    "BOOLEAN",
                    {
                        "default": False,
                        "tooltip": "Read the file again at each run, whatever ComfyUI still holds.",
                    },
                ),
                "verbose": ("BOOLEAN", {"default": False, "tooltip": "Name every layer in the log."}),
            }
        }

    @classmethod
    def IS_CHANGED(cls, clear_model_cache: bool = False, **_: Any) -> float | str:  # noqa: N802
        return float("nan") if clear_model_cache else ""

    def load(
        self, model_name: str, model_type: str, cast_dtype: str, clear_model_cache: bool, verbose: bool
    ) -> tuple[DGLSPatcher, Layers]:
        del clear_model_cache  # IS_CHANGED has done it
        patcher, layers = loader.load(model_name, cast_dtype)
        if model_type != "default":
            patcher.dgls.voice.say(
                f"model_type {model_type} has no effect here: ComfyUI tells the model by its weights"
            )
        patcher.dgls.voice.say(f"{layers.model}: {len(layers)} layers ({layers.family})")
        if verbose:
            patcher.dgls.voice.say(f"layers: {', '.join(layers.names)}")
        return patcher, layers


def _whole(tip: str, most: int) -> tuple[str, dict[str, Any]]:
    return ("INT", {"default": settings.PLANNER, "min": settings.PLANNER, "max": most, "tooltip": tip})


def _unneeded(name: str) -> dict[str, Any]:
    return {"default": False, "tooltip": f"Has no effect here: {settings.UNNEEDED[name]}."}


def _swapping_inputs(planner: bool) -> dict[str, Any]:
    """The document's inputs, in the original's order: saved graphs hold values by position.

    `planner`: -1 leaves an input to the planner, the default; the aliases have the original's defaults.
    """
    first = _whole("Layers from the front that stay on the GPU. -1: the planner chooses which stay.", 100)
    last = _whole("Layers from the back that stay on the GPU. -1: the planner chooses which stay.", 100)
    ahead = _whole(
        "Layers copied ahead of the one that runs: buffers of the ring, less one. -1: the planner tries 1 to 3. "
        "0 copies only when a layer is needed, which nothing hides.",
        100,
    )
    if not planner:
        for spec, default in ((first, 2), (last, 2), (ahead, 1)):
            spec[1].update(default=default, min=0)
    return {
        "required": {
            "model": ("MODEL", {"tooltip": "From the DGLS Model Loader; LoRA may come between."}),
            "layers": ("LAYERS", {"tooltip": "From the DGLS Model Loader."}),
            "initial_gpu_layers": first,
            "final_gpu_layers": last,
            "prefetch": ahead,
            "threading": ("BOOLEAN", _unneeded("threading")),
            "event_sync": ("BOOLEAN", _unneeded("event_sync")),
            "cuda_streams": ("BOOLEAN", _unneeded("cuda_streams")),
            "batch_move": ("BOOLEAN", _unneeded("batch_move")),
            "selective_packing": (
                "INT",
                {"default": 0, "min": 0, "max": 128, "tooltip": _unneeded("selective_packing")["tooltip"]},
            ),
            "verbose": (
                "BOOLEAN",
                {"default": False, "tooltip": "Trace every run and log what was measured."},
            ),
            "compile": (
                "BOOLEAN",
                {
                    "default": False,
                    "tooltip": "torch.compile for the layers that stay; the first run takes minutes.",
                },
            ),
        },
        "optional": {
            "gpu_layer_indices": (
                "STRING",
                {
                    "default": "",
                    "tooltip": 'Exactly these layers stay, "0,1,18-20"; wins over initial and final. '
                    "Empty: the others decide.",
                },
            ),
        },
    }


class SwappingLoader:
    CATEGORY = CATEGORY
    DESCRIPTION = (
        "Keeps part of the model's layers on the GPU and copies the others in while earlier ones compute. "
        "As it stands the planner decides, from what it measures in the first steps."
    )
    RETURN_TYPES = ("MODEL",)
    RETURN_NAMES = ("model",)
    FUNCTION = "swap"
    ORIGINAL_DEFAULTS: ClassVar[bool] = False

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:  # noqa: N802
        inputs = _swapping_inputs(planner=not cls.ORIGINAL_DEFAULTS)
        if not cls.ORIGINAL_DEFAULTS:
            inputs["optional"]["layers"] = inputs["required"].pop("layers")
        inputs["optional"] |= {
            "residency": (
                ["auto", "evenly"],
                {
                    "default": "auto",
                    "tooltip": "Which layers stay when nothing above says so. auto: measured and planned; "
                    "evenly: as many as fit, spread out.",
                },
            ),
            "preset": (
                list(presets.NAMES),
                {
                    "default": presets.AUTO,
                    "tooltip": "The document's settings by VRAM, for what is still -1. auto: none, the planner.",
                },
            ),
            "vram_budget": (
                "FLOAT",
                {
                    "default": 0.0,
                    "min": 0.0,
                    "max": 1024.0,
                    "step": 0.1,
                    "tooltip": "GiB of the GPU for layers. 0: what ComfyUI leaves after the images in work.",
                },
            ),
            "mode": (
                list(settings.MODES),
                {
                    "default": "auto",
                    "tooltip": "auto: engine on a card with memory of its own, unified where it shares the host's "
                    "(GB10: one copy of the weights, nothing is copied). off: as without DGLS.",
                },
            ),
        }
        inputs["hidden"] = {COUNT: ("INT", {})}
        return inputs

    @classmethod
    def VALIDATE_INPUTS(cls, gpu_layer_indices: str = "", layer_count: int | None = None) -> bool | str:  # noqa: N802
        try:
            settings.parse_indices(gpu_layer_indices or "", layer_count)
        except IndicesError as error:
            return str(error)
        return True

    def swap(
        self,
        model: ModelPatcher,
        initial_gpu_layers: int,
        final_gpu_layers: int,
        prefetch: int,
        threading: bool,
        event_sync: bool,
        cuda_streams: bool,
        batch_move: bool,
        selective_packing: int,
        verbose: bool,
        compile: bool,  # noqa: A002  # the document's name
        layers: Layers | None = None,
        gpu_layer_indices: str = "",
        residency: str = "auto",
        preset: str = presets.AUTO,
        vram_budget: float = 0.0,
        mode: settings.Mode = "auto",
        layer_count: int | None = None,
    ) -> tuple[DGLSPatcher]:
        device = comfy.model_management.get_torch_device()
        asked = settings.understand(
            initial=initial_gpu_layers,
            final=final_gpu_layers,
            prefetch=prefetch,
            indices=gpu_layer_indices,
            residency=residency,
            mode=mode,
            vram_budget=vram_budget,
            preset=presets.preset(preset, hardware.memory_gib(device)),
            compile_residents=compile,
            verbose=verbose,
            unneeded={
                "threading": threading,
                "cuda_streams": cuda_streams,
                "event_sync": event_sync,
                "batch_move": batch_move,
                "selective_packing": selective_packing,
            },
        )
        del layer_count, layers  # from here on the model itself is asked
        new = DGLSPatcher.adopt(model, asked)
        settings.parse_indices(gpu_layer_indices, len(new.dgls.layers))
        return (new,)


class Report:
    CATEGORY = CATEGORY
    DESCRIPTION = (
        "What the engine did in the last run: a text, and a picture of copies, computes and residency."
    )
    RETURN_TYPES = ("STRING", "IMAGE")
    RETURN_NAMES = ("text", "picture")
    FUNCTION = "report"
    OUTPUT_NODE = True

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:  # noqa: N802
        return {
            "required": {
                "model": ("MODEL", {"tooltip": "From the DGLS Swapping Loader."}),
                "after": (
                    _Anything("*"),
                    {"tooltip": "The sampler's output, so that the report comes after it."},
                ),
            }
        }

    @classmethod
    def IS_CHANGED(cls, **_: Any) -> float:  # noqa: N802
        return float("nan")

    def report(self, model: ModelPatcher, after: object) -> dict[str, Any]:
        del after
        if not isinstance(model, DGLSPatcher):
            raise NodeError("DGLS Report needs the model that the DGLS Swapping Loader gave to the sampler")
        found = report.of(model)
        text = report.text(found)
        image = picture.render(found)
        return {
            "ui": {"text": [text], "images": [picture.preview(image)]},
            "result": (text, picture.tensor(image)),
        }


class OriginalModelLoader(ModelLoader):
    """The original's id, for its saved workflows."""

    DGLS_ALIAS = True
    DEPRECATED = True

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:  # noqa: N802
        inputs = super().INPUT_TYPES()
        inputs["optional"] = {
            "nuke_all_caches": ("BOOLEAN", {"default": False, "tooltip": "As clear_model_cache."}),
            "custom_ckpt_path": (
                "STRING",
                {"default": "", "tooltip": "Not supported: put the file into a models folder."},
            ),
        }
        return inputs

    @classmethod
    def VALIDATE_INPUTS(cls, custom_ckpt_path: str = "") -> bool | str:  # noqa: N802
        if custom_ckpt_path.strip():
            return "custom_ckpt_path: a workflow cannot name files outside the models folders here; choose model_name"
        return True

    @classmethod
    def IS_CHANGED(  # noqa: N802
        cls, clear_model_cache: bool = False, nuke_all_caches: bool = False, **_: Any
    ) -> float | str:
        return float("nan") if clear_model_cache or nuke_all_caches else ""

    def load(
        self,
        model_name: str,
        model_type: str,
        cast_dtype: str,
        clear_model_cache: bool = False,
        verbose: bool = False,
        nuke_all_caches: bool = False,
        custom_ckpt_path: str = "",
    ) -> tuple[DGLSPatcher, Layers]:
        del nuke_all_caches, custom_ckpt_path
        return super().load(model_name, model_type, cast_dtype, clear_model_cache, verbose)


class OriginalSwappingLoader(SwappingLoader):
    """The original's id: its inputs, order and defaults."""

    DGLS_ALIAS = True
    DEPRECATED = True
    ORIGINAL_DEFAULTS = True


class OriginalCleanup:
    """The original's cleanup. Nothing is left to clean; asked to, it frees the GPU as ComfyUI's /free does."""

    DGLS_ALIAS = True
    DEPRECATED = True
    CATEGORY = CATEGORY
    FUNCTION = "clean"
    RETURN_TYPES = (_Anything("*"),)
    RETURN_NAMES = ("output",)
    OUTPUT_NODE = True

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:  # noqa: N802
        return {
            "required": {"trigger": (_Anything("*"), {})},
            "optional": {
                "use_comfy_clear": ("BOOLEAN", {"default": True, "tooltip": "Take every model off the GPU."}),
                "verbose": ("BOOLEAN", {"default": True, "tooltip": "Has no effect here."}),
            },
        }

    def clean(self, trigger: object, use_comfy_clear: bool = True, verbose: bool = True) -> tuple[object]:
        del verbose
        if use_comfy_clear:
            comfy.model_management.unload_all_models()
            comfy.model_management.soft_empty_cache()
        return (trigger,)


NODES: dict[str, type[Any]] = {
    "DGLS_ModelLoader": ModelLoader,
    "DGLS_SwappingLoader": SwappingLoader,
    "DGLS_Report": Report,
}
DISPLAY_NAMES = {
    "DGLS_ModelLoader": "DGLS Model Loader",
    "DGLS_SwappingLoader": "DGLS Swapping Loader",
    "DGLS_Report": "DGLS Report",
}
ALIASES: dict[str, type[Any]] = {
    "DGLSModelLoader": OriginalModelLoader,
    "DynamicSwappingLoader": OriginalSwappingLoader,
    "DGLSCleanup": OriginalCleanup,
}
LOADERS = frozenset({"DGLS_ModelLoader", "DGLSModelLoader", "UNETLoader"})
SWAPPERS = frozenset({"DGLS_SwappingLoader", "DynamicSwappingLoader"})
