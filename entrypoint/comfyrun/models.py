"""COMFY_MODELS: folders of models from elsewhere, told to ComfyUI in an extra-model-paths file.

Three layouts are understood: a models folder (checkpoints, loras, …), a whole ComfyUI folder (with `models` in it),
and AUTOMATIC1111's (models/Stable-diffusion, …).
"""

from __future__ import annotations

import hashlib
import json
import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

_MOST = 1000
"""Entries of a folder that are looked at: a models folder has thirty."""

# Where nothing could be looked at: what every ComfyUI knows.
_USUAL = (
    "audio_encoders",
    "checkpoints",
    "clip",
    "clip_vision",
    "configs",
    "controlnet",
    "diffusers",
    "diffusion_models",
    "embeddings",
    "gligen",
    "hypernetworks",
    "latent_upscale_models",
    "loras",
    "model_patches",
    "photomaker",
    "style_models",
    "t2i_adapter",
    "text_encoders",
    "unet",
    "upscale_models",
    "vae",
    "vae_approx",
)

# ComfyUI's own words for it: the folder's name stands under another key, or is a word of the file's own.
_RENAMED = {"t2i_adapter": "controlnet"}
_NEVER = frozenset(("base_path", "is_default", "custom_nodes"))

_AUTOMATIC = "models/Stable-diffusion"
_AUTOMATIC_PLACES = (
    ("checkpoints", _AUTOMATIC),
    ("configs", _AUTOMATIC),
    ("vae", "models/VAE"),
    ("loras", "models/Lora"),
    ("loras", "models/LyCORIS"),
    ("upscale_models", "models/ESRGAN"),
    ("upscale_models", "models/RealESRGAN"),
    ("upscale_models", "models/SwinIR"),
    ("embeddings", "embeddings"),
    ("hypernetworks", "models/hypernetworks"),
    ("controlnet", "models/ControlNet"),
)


def is_file(path: str) -> bool:
    """Whether an entry of COMFY_MODELS is an extra-model-paths file itself."""
    return path.endswith((".yaml", ".yml"))


def look(folders: Iterable[str]) -> dict[str, tuple[str, ...]]:
    """The subfolders of each folder, and those of its `models`; what cannot be looked at is left out."""
    found = {}
    for folder in folders:
        if is_file(folder):
            continue
        try:
            names = _subfolders(folder)
            if "models" in names:
                names += [f"models/{name}" for name in _subfolders(f"{folder}/models")]
        except (OSError, ValueError):
            continue
        found[folder] = tuple(names)
    return found


def _subfolders(folder: str) -> list[str]:
    names = []
    with os.scandir(folder) as entries:
        for count, entry in enumerate(entries):
            if count >= _MOST:
                break
            if entry.name.isprintable() and not entry.name.startswith(".") and entry.is_dir():
                names.append(entry.name)
    return sorted(names)


def places(folder: str, subfolders: Sequence[str] | None) -> dict[str, list[str]]:
    """Kind of model → where such lie in `folder`, given its subfolders as `look` finds them."""
    if subfolders is None:
        pairs = [(name, name) for name in _USUAL]
    elif _AUTOMATIC in subfolders:
        pairs = [(kind, place) for kind, place in _AUTOMATIC_PLACES if place in subfolders]
    elif any(name.startswith("models/") for name in subfolders):
        pairs = [(n.removeprefix("models/"), n) for n in subfolders if n.startswith("models/")]
    else:
        pairs = [(name, name) for name in subfolders if name != "models"]
    found: dict[str, list[str]] = {}
    for kind, place in pairs:
        if kind not in _NEVER:
            found.setdefault(_RENAMED.get(kind, kind), []).append(f"{folder}/{place}")
    return found


def extra_model_paths(found: Mapping[str, Mapping[str, Sequence[str]]]) -> str:
    """The file's text. A text in JSON is a text in YAML; paths are whole, since ComfyUI expands a base_path."""
    lines = ["# Made by comfyrun from COMFY_MODELS."]
    for folder, kinds in found.items():
        lines.append(f"{_text(f'COMFY_MODELS {folder}')}:")
        lines += [f"  {_text(kind)}: {_text(chr(10).join(paths))}" for kind, paths in kinds.items()]
    return "\n".join(lines) + "\n"


def file_name(text: str) -> str:
    """By content, so that several servers may share a cache."""
    return f"model-paths-{hashlib.sha256(text.encode()).hexdigest()[:12]}.yaml"


def _text(value: str) -> str:
    return json.dumps(value, ensure_ascii=False)
