"""Models for ComfyUI by a list: fetched whole and proven, checked again, and counted against a GPU's memory."""
