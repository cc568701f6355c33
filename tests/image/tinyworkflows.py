"""Workflows for the tiny models that tinymodels.py makes."""

from __future__ import annotations

from typing import Any

WAN_LATENT = {
    "class_type": "EmptyHunyuanLatentVideo",
    "inputs": {"width": 64, "height": 64, "length": 5, "batch_size": 1},
}
FLUX_LATENT = {"class_type": "EmptySD3LatentImage", "inputs": {"width": 64, "height": 64, "batch_size": 1}}


def diffusion(
    model: str, latent: dict[str, Any], *, pooled: int, seed: int = 7, weights: str = "default"
) -> Any:
    """UNETLoader → KSampler → SaveLatent: what Wan and Flux need of a workflow without text encoder and VAE."""
    return {
        "1": {"class_type": "UNETLoader", "inputs": {"unet_name": model, "weight_dtype": weights}},
        "2": {
            "class_type": "ImgbuildTinyConditioning",
            "inputs": {"tokens": 16, "width": 4096, "pooled": pooled, "seed": 1},
        },
        "4": latent,
        "5": {
            "class_type": "KSampler",
            "inputs": {
                "model": ["1", 0],
                "positive": ["2", 0],
                "negative": ["2", 0],
                "latent_image": ["4", 0],
                "seed": seed,
                "steps": 2,
                "cfg": 1.0,
                "sampler_name": "euler",
                "scheduler": "simple",
                "denoise": 1.0,
            },
        },
        "7": {
            "class_type": "SaveLatent",
            "inputs": {"samples": ["5", 0], "filename_prefix": f"ring2/{model[:9]}"},
        },
    }
