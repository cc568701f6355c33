"""Custom nodes of the tests of a front: on the front and on its workers, as an operator would have them."""

import time
from pathlib import Path

import comfy.model_management
import comfy.utils
import folder_paths
import torch


class Slow:
    """A picture after so many steps, each of which says that it is done and can be interrupted."""

    @classmethod
    def INPUT_TYPES(cls):
        return {
            "required": {
                "steps": ("INT", {"default": 4, "min": 1, "max": 10000}),
                "seconds": ("FLOAT", {"default": 0.3, "min": 0.0, "max": 60.0}),
                "seed": ("INT", {"default": 0, "min": 0, "max": 2**32}),
            }
        }

    RETURN_TYPES = ("IMAGE",)
    FUNCTION = "make"
    CATEGORY = "tests"

    def make(self, steps, seconds, seed):
        bar = comfy.utils.ProgressBar(steps)
        for _ in range(steps):
            comfy.model_management.throw_exception_if_processing_interrupted()
            time.sleep(seconds)
            bar.update(1)
        return (torch.rand(1, 64, 64, 3, generator=torch.Generator().manual_seed(seed)),)


class Fail:
    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"image": ("IMAGE",), "message": ("STRING", {"default": "it broke"})}}

    RETURN_TYPES = ("IMAGE",)
    FUNCTION = "make"
    CATEGORY = "tests"

    def make(self, image, message):
        raise ValueError(message)


class Say:
    """A text for the browser, and no file."""

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"image": ("IMAGE",)}}

    RETURN_TYPES = ()
    OUTPUT_NODE = True
    FUNCTION = "make"
    CATEGORY = "tests"

    def make(self, image):
        return {"ui": {"text": [f"{tuple(image.shape)}"]}}


class NeedsModel:
    """A model that only workers have."""

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"image": ("IMAGE",), "name": (folder_paths.get_filename_list("checkpoints"),)}}

    RETURN_TYPES = ("IMAGE",)
    FUNCTION = "make"
    CATEGORY = "tests"

    def make(self, image, name):
        Path(folder_paths.get_full_path_or_raise("checkpoints", name)).read_bytes()
        return (image,)


NODE_CLASS_MAPPINGS = {"TestSlow": Slow, "TestFail": Fail, "TestSay": Say, "TestNeedsModel": NeedsModel}
