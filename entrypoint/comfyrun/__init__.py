"""Starts ComfyUI inside the image. Standard library only; nothing here imports torch or ComfyUI."""

__version__ = "0.1.0"
