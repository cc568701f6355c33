"""Custom nodes of the tests. Copied to /data/custom_nodes/imgbuild-testnodes/__init__.py; run by ComfyUI.

Wan and Flux need the output of a text encoder of gigabytes. What its numbers are
does not matter to a model with random weights, so this node makes them up.
"""

import torch


class TinyConditioning:
    """CONDITIONING of the shape that a model wants, from a seed."""

    @classmethod
    def INPUT_TYPES(cls):
        return {
            "required": {
                "tokens": ("INT", {"default": 16, "min": 1, "max": 512}),
                "width": ("INT", {"default": 4096, "min": 1, "max": 8192}),
                "pooled": ("INT", {"default": 768, "min": 0, "max": 8192}),
                "seed": ("INT", {"default": 0, "min": 0, "max": 2**32}),
            }
        }

    RETURN_TYPES = ("CONDITIONING",)
    FUNCTION = "make"
    CATEGORY = "imgbuild/tests"

    def make(self, tokens, width, pooled, seed):
        generator = torch.Generator().manual_seed(seed)
        extra = {"pooled_output": torch.randn(1, pooled, generator=generator)} if pooled else {}
        return ([[torch.randn(1, tokens, width, generator=generator), extra]],)


class Noise:
    """A picture that no compression makes small."""

    @classmethod
    def INPUT_TYPES(cls):
        return {
            "required": {
                "size": ("INT", {"default": 512, "min": 1, "max": 8192}),
                "seed": ("INT", {"default": 0, "min": 0, "max": 2**32}),
            }
        }

    RETURN_TYPES = ("IMAGE",)
    FUNCTION = "make"
    CATEGORY = "imgbuild/tests"

    def make(self, size, seed):
        return (torch.rand(1, size, size, 3, generator=torch.Generator().manual_seed(seed)),)


NODE_CLASS_MAPPINGS = {"ImgbuildNoise": Noise, "ImgbuildTinyConditioning": TinyConditioning}


def _small_flux():
    """ComfyUI before 0.33 takes any Flux for one with 24 heads. Real ones have, so only tiny ones are put right."""
    from comfy import model_detection

    detect = model_detection.detect_unet_config

    def detect_small(*args, **kwargs):
        found = detect(*args, **kwargs)
        if found and found.get("image_model") == "flux" and found["hidden_size"] < 3072:
            found["num_heads"] = found["hidden_size"] // sum(found["axes_dim"])
        return found

    model_detection.detect_unet_config = detect_small


_small_flux()
