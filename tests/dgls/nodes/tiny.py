"""Tiny models of ComfyUI's own classes with random weights, made in a second: no download, no GPU.

As a program, in a process that has torch and a ComfyUI tree:  python tiny.py TREE FOLDER
It writes wan.safetensors, wan-other.safetensors, flux.safetensors and a LoRA for each into FOLDER.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

WAN: dict[str, Any] = {
    "dim": 256,
    "ffn_dim": 512,
    "num_heads": 2,
    "num_layers": 6,
    "text_dim": 4096,
    "in_dim": 16,
    "out_dim": 16,
}
FLUX: dict[str, Any] = {
    "in_channels": 16,
    "out_channels": 16,
    "vec_in_dim": 768,
    "context_in_dim": 4096,
    "hidden_size": 256,
    "mlp_ratio": 4.0,
    "num_heads": 2,
    "depth": 2,
    "depth_single_blocks": 4,
    "axes_dim": [16, 56, 56],
    "theta": 10000,
    "patch_size": 2,
    "qkv_bias": True,
    "guidance_embed": False,
}


def comfy(tree: Path) -> Any:
    """ComfyUI of this tree on the CPU, imported. Once a process: its modules have one name each."""
    if str(tree) not in sys.path:
        sys.path.insert(0, str(tree))
    from comfy.cli_args import args

    args.cpu = True
    import comfy.ops

    return comfy


def flux_config(tree: Path) -> dict[str, Any]:
    """The fields of this version's FluxParams."""
    comfy(tree)
    from comfy.ldm.flux.model import FluxParams

    config = dict(FLUX)
    if "txt_ids_dims" in FluxParams.__dataclass_fields__:
        config["txt_ids_dims"] = []
    return config


def randomised(model: Any, seed: int) -> dict[str, Any]:
    """The model's weights as a file would hold them: N(0, 0.02), norms 1, fp16."""
    import torch

    generator = torch.Generator().manual_seed(seed)
    weights = {}
    for name, value in model.state_dict().items():
        if not value.is_floating_point():
            weights[name] = value.contiguous()
        elif "norm" in name and name.endswith(("weight", "scale")):
            weights[name] = torch.ones(value.shape, dtype=torch.float16)
        else:
            weights[name] = (torch.randn(value.shape, generator=generator) * 0.02).to(torch.float16)
    return weights


def wan(tree: Path, seed: int = 1) -> dict[str, Any]:
    import torch

    comfy(tree)
    from comfy.ldm.wan.model import WanModel
    from comfy.ops import disable_weight_init

    return randomised(
        WanModel(model_type="t2v", dtype=torch.float32, device="cpu", operations=disable_weight_init, **WAN),
        seed,
    )


def flux(tree: Path, seed: int = 2) -> dict[str, Any]:
    import torch

    config = flux_config(tree)
    from comfy.ldm.flux.model import Flux
    from comfy.ops import disable_weight_init

    weights = randomised(
        Flux(image_model="flux", dtype=torch.float32, device="cpu", operations=disable_weight_init, **config),
        seed,
    )
    # The names of the files people have: newer versions of ComfyUI rename their norms when they load.
    return {
        k.removesuffix(".weight") + ".scale" if k.endswith("_norm.weight") else k: v
        for k, v in weights.items()
    }


def lora(weights: dict[str, Any], parts: tuple[str, ...], seed: int = 7) -> dict[str, Any]:
    """Rank 4, for every weight whose name has one of the parts: large enough to change the picture."""
    import torch

    generator = torch.Generator().manual_seed(seed)
    found = {}
    for name, value in weights.items():
        if name.endswith(".weight") and value.ndim == 2 and any(part in name for part in parts):
            bare = "diffusion_model." + name.removesuffix(".weight")
            rows, columns = value.shape
            found[f"{bare}.lora_A.weight"] = (torch.randn(4, columns, generator=generator) * 0.1).half()
            found[f"{bare}.lora_B.weight"] = (torch.randn(rows, 4, generator=generator) * 0.1).half()
    return found


def main(tree: Path, folder: Path) -> None:
    from safetensors.torch import save_file

    for kind in ("diffusion_models", "loras"):
        (folder / kind).mkdir(parents=True, exist_ok=True)
    one = wan(tree)
    save_file(one, folder / "diffusion_models" / "wan.safetensors")
    save_file(wan(tree, seed=11), folder / "diffusion_models" / "wan-other.safetensors")
    save_file(lora(one, ("blocks.", "head.")), folder / "loras" / "wan.safetensors")
    two = flux(tree)
    save_file(two, folder / "diffusion_models" / "flux.safetensors")
    save_file(lora(two, ("blocks.", "img_in")), folder / "loras" / "flux.safetensors")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
