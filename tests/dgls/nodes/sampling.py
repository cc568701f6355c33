"""Sampling in this process, as ComfyUI's KSampler does it, and the models to do it with."""

from __future__ import annotations

from typing import Any

import torch

VIDEO = (1, 16, 2, 8, 8)
IMAGE = (1, 16, 8, 8)


def conditioning(seed: int, pooled: int = 0) -> Any:
    generator = torch.Generator().manual_seed(seed)
    extra = {"pooled_output": torch.randn(1, pooled, generator=generator)} if pooled else {}
    return [[torch.randn(1, 8, 4096, generator=generator), extra]]


def sample(
    model: Any, *, shape: tuple[int, ...] = VIDEO, steps: int = 2, cfg: float = 1.0, seed: int = 3
) -> torch.Tensor:
    import comfy.sample

    pooled = 768 if len(shape) == len(IMAGE) else 0
    latent = torch.zeros(shape)
    with torch.inference_mode():
        return comfy.sample.sample(
            model,
            comfy.sample.prepare_noise(latent, seed),
            steps,
            cfg,
            "euler",
            "simple",
            conditioning(1, pooled),
            conditioning(2, pooled),
            latent,
            disable_pbar=True,
            seed=seed,
        )


def stock(name: str) -> Any:
    import comfy.sd
    import folder_paths

    with torch.inference_mode():
        return comfy.sd.load_diffusion_model(folder_paths.get_full_path("diffusion_models", name))


def swapping(name: str, **asked: Any) -> Any:
    """Through both nodes, as a workflow would."""
    from dgls import nodes

    with torch.inference_mode():
        model, layers = nodes.ModelLoader().load(name, "default", "default", False, False)
        return swapped(model, layers, **asked)


def swapped(model: Any, layers: Any = None, **asked: Any) -> Any:
    from dgls import nodes

    inputs: dict[str, Any] = {
        "initial_gpu_layers": -1,
        "final_gpu_layers": -1,
        "prefetch": -1,
        "threading": False,
        "event_sync": False,
        "cuda_streams": False,
        "batch_move": False,
        "selective_packing": 0,
        "verbose": False,
        "compile": False,
    }
    (found,) = nodes.SwappingLoader().swap(model=model, layers=layers, **inputs | asked)
    return found


def with_lora(model: Any, name: str, strength: float = 1.0) -> Any:
    import comfy.sd
    import comfy.utils
    import folder_paths

    with torch.inference_mode():
        lora = comfy.utils.load_torch_file(folder_paths.get_full_path("loras", name))
        return comfy.sd.load_lora_for_models(model, None, lora, strength, 0)[0]
