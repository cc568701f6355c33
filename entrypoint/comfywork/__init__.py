"""Jobs for ComfyUI from a queue: the worker, its clients, storage and models. It runs in a venv of its own, /opt/work."""

__version__ = "1.0.0"
