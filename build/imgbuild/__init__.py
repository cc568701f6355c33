"""Container images of ComfyUI made for one kind of NVIDIA hardware."""

__version__ = "0.1.0"
