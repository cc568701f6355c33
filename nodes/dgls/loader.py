"""A diffusion model from a file, as a patcher whose layers can swap. Non-dynamic from the start."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any

import comfy.model_management
import comfy.sd
import folder_paths
import torch

from . import hardware
from .errors import LoadError
from .patcher import DGLSPatcher
from .settings import Settings

if TYPE_CHECKING:
    from .families import Layers

FOLDER = "diffusion_models"
DTYPES: dict[str, torch.dtype | None] = {
    "default": None,
    "fp32": torch.float32,
    "fp16": torch.float16,
    "bf16": torch.bfloat16,
    "fp8_e4m3fn": torch.float8_e4m3fn,
    "fp8_e4m3fn_fast": torch.float8_e4m3fn,
    "fp8_e5m2": torch.float8_e5m2,
}


def names() -> list[str]:
    return list(folder_paths.get_filename_list(FOLDER))


def path_of(name: str) -> str:
    found = folder_paths.get_full_path(FOLDER, name)
    if found is None:
        raise LoadError(f"no diffusion model {name!r} in the models/{FOLDER} or models/unet folders")
    return str(found)


def options(cast_dtype: str) -> dict[str, Any]:
    """ComfyUI's model_options for a name of DTYPES."""
    dtype = DTYPES[cast_dtype]
    if dtype is None:
        return {}
    return {"dtype": dtype, "fp8_optimizations": True} if cast_dtype.endswith("_fast") else {"dtype": dtype}


def load(name: str, cast_dtype: str = "default") -> tuple[DGLSPatcher, Layers]:
    """The model, and its layers. Raises LoadError, NoBlocksError."""
    path = path_of(name)
    extra: dict[str, Any] = {}
    if "disable_dynamic" in inspect.signature(comfy.sd.load_diffusion_model).parameters:
        extra["disable_dynamic"] = True  # 0.3.75 has no other kind
    model_options = options(cast_dtype)
    settings = Settings()
    mode, _ = hardware.resolve(settings.mode, comfy.model_management.get_torch_device())
    if mode == "unified":
        # Where host and GPU share their memory: straight to where it stays (0.3.75 ignores this, and moves it).
        model_options["offload_device"] = comfy.model_management.get_torch_device()
    # ComfyUI runs nodes under inference mode; weights made there could not be rewritten by a later run.
    with torch.inference_mode(mode=False), torch.no_grad():
        patcher = comfy.sd.load_diffusion_model(path, model_options=model_options, **extra)
    if patcher is None:
        raise LoadError(f"{name}: ComfyUI cannot tell what model this is")
    new = DGLSPatcher.adopt(patcher, settings, foreign=False)
    new.parent = None  # nobody else holds this model
    return new, new.dgls.layers
