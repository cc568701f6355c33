"""A custom node package for the tests' server: conditioning without a text encoder, latents, a slow block."""

from __future__ import annotations

import time

import comfy.model_detection
import torch


class Conditioning:
    CATEGORY = "tests"
    FUNCTION = "make"
    RETURN_TYPES = ("CONDITIONING",)

    @classmethod
    def INPUT_TYPES(cls):  # noqa: N802
        return {
            "required": {
                "tokens": ("INT", {"default": 8, "min": 1}),
                "width": ("INT", {"default": 4096}),
                "pooled": ("INT", {"default": 768, "min": 0}),
                "seed": ("INT", {"default": 0}),
            }
        }

    def make(self, tokens, width, pooled, seed):
        generator = torch.Generator().manual_seed(seed)
        extra = {"pooled_output": torch.randn(1, pooled, generator=generator)} if pooled else {}
        return ([[torch.randn(1, tokens, width, generator=generator), extra]],)


class Latent:
    CATEGORY = "tests"
    FUNCTION = "make"
    RETURN_TYPES = ("LATENT",)

    @classmethod
    def INPUT_TYPES(cls):  # noqa: N802
        return {
            "required": {
                "channels": ("INT", {"default": 16}),
                "frames": ("INT", {"default": 0, "min": 0}),
                "height": ("INT", {"default": 8}),
                "width": ("INT", {"default": 8}),
            }
        }

    def make(self, channels, frames, height, width):
        shape = (1, channels, frames, height, width) if frames else (1, channels, height, width)
        return ({"samples": torch.zeros(shape)},)


class Slow:
    """Each call of the diffusion model takes so long: something to interrupt. Or it fails at call number `fail`."""

    CATEGORY = "tests"
    FUNCTION = "slow"
    RETURN_TYPES = ("MODEL",)

    @classmethod
    def INPUT_TYPES(cls):  # noqa: N802
        return {
            "required": {
                "model": ("MODEL",),
                "seconds": ("FLOAT", {"default": 0.5}),
                "fail": ("INT", {"default": 0}),
                "layer": ("STRING", {"default": ""}),
            }
        }

    def slow(self, model, seconds, fail, layer):
        new = model.clone()
        if fail:
            calls = []

            def block(args, extra):
                calls.append(1)
                if len(calls) == fail:
                    raise RuntimeError("injected failure in the middle of a step")
                return extra["original_block"](args)

            new.set_model_patch_replace(block, "dit", "double_block", 1)
        else:

            def wrapper(apply, args):
                time.sleep(seconds)
                return apply(args["input"], args["timestep"], **args["c"])

            new.set_model_unet_function_wrapper(wrapper)
        return (new,)


NODE_CLASS_MAPPINGS = {"TestConditioning": Conditioning, "TestLatent": Latent, "TestSlow": Slow}

# 0.3.75 gives every Flux.1 24 heads of 128, so that none is tiny; newer ones divide, as here.
_detect = comfy.model_detection.detect_unet_config


def _detect_heads(*args, **kwargs):
    found = _detect(*args, **kwargs)
    if found and found.get("image_model") in ("flux", "flux2"):
        found["num_heads"] = found["hidden_size"] // sum(found["axes_dim"])
    return found


comfy.model_detection.detect_unet_config = _detect_heads
