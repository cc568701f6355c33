"""Makes tiny models with random weights, in seconds and without a download. Runs in the image's own Python.

    python - FOLDER sd15 wan flux < tinymodels.py

ComfyUI's own classes are built small, filled with N(0, 0.02) from a fixed seed and
saved under the names that its loaders know. They make noise, and the same noise
every time; every operator of the real models runs.
"""

import sys
import time
from pathlib import Path

sys.path.insert(0, "/opt/comfyui")
FOLDER, WANTED = Path(sys.argv[1]), sys.argv[2:]
# Before anything else of ComfyUI, or --cpu is not seen.
sys.argv = ["main.py", "--cpu"]
import comfy.options  # noqa: E402

comfy.options.enable_args_parsing()

import comfy.ops  # noqa: E402
import torch  # noqa: E402
from safetensors.torch import save_file  # noqa: E402


def filled(module, seed):
    """Random weights; norms do nothing, so that a signal survives many layers.

    Out of one pool of numbers, at a place of its own for each weight: drawing every one takes ten times as long.
    """
    generator = torch.Generator().manual_seed(seed)
    size = 1 << 22
    pool = (torch.randn(size, generator=generator) * 0.02).repeat(2)
    with torch.no_grad():
        for name, weight in module.named_parameters():
            if "norm" in name and weight.ndim == 1:
                weight.fill_(0.0 if name.endswith("bias") else 1.0)
            else:
                start = int(torch.randint(size, (1,), generator=generator))
                for part in weight.view(-1).split(size):
                    part.copy_(pool[start : start + len(part)])
    return module


def save(path, tensors):
    path.parent.mkdir(parents=True, exist_ok=True)
    half = {
        n: t.detach().to(torch.float16 if t.is_floating_point() else t.dtype).contiguous()
        for n, t in tensors.items()
    }
    part = path.with_suffix(".part")  # a loader must not find a file that is not whole
    save_file(half, str(part))
    part.rename(path)


def prefixed(prefix, module):
    return {f"{prefix}{name}": tensor for name, tensor in module.state_dict().items()}


def sd15():
    """SD 1.5's UNet with one level of channels, its text encoder as it is, TAESD for a VAE: 330 MB."""
    from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel
    from comfy.sd1_clip import SDClipModel
    from comfy.taesd.taesd import TAESD

    unet = UNetModel(
        image_size=32, in_channels=4, out_channels=4, model_channels=320, num_res_blocks=1,
        channel_mult=[1, 1], num_heads=8, use_spatial_transformer=True, transformer_depth=[1, 1],
        transformer_depth_output=[1, 1, 1, 1], transformer_depth_middle=1, context_dim=768, legacy=False,
        device="cpu", dtype=torch.float32, operations=comfy.ops.disable_weight_init,
    )  # fmt: skip
    clip = SDClipModel(device="cpu", dtype=torch.float32)
    vae = filled(TAESD(), 3)
    with torch.no_grad():
        # 0.02 for every convolution makes one grey: these keep what goes in, and the last ones bring it to range.
        for module in vae.modules():
            if isinstance(module, torch.nn.Conv2d):
                torch.nn.init.kaiming_normal_(module.weight, generator=torch.Generator().manual_seed(4))
        # A sampler whose model knows nothing leaves large noise; pictures are from 0 to 1.
        ranged(
            vae.taesd_decoder,
            torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(5)) * 20,
            0.5,
            0.2,
        )
        ranged(
            vae.taesd_encoder, torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(6)), 0.0, 1.0
        )
        vae.vae_scale.fill_(1.0)
        vae.vae_shift.fill_(0.0)
    tensors = prefixed("model.diffusion_model.", filled(unet, 1))
    text = filled(clip, 2).transformer.state_dict()
    tensors |= {f"cond_stage_model.transformer.{name}": tensor for name, tensor in text.items()}
    tensors |= prefixed("first_stage_model.", vae)
    save(FOLDER / "checkpoints/tiny-sd15.safetensors", tensors)


def ranged(layers, example, mean, spread):
    """Set the last layer so that what comes of an example has this mean and spread in every channel."""
    last = layers[-1]
    made = layers(example)
    factor = spread / made.std(dim=(0, 2, 3))
    last.bias.sub_(made.mean(dim=(0, 2, 3))).mul_(factor).add_(mean)
    last.weight.mul_(factor.view(-1, 1, 1, 1))


def wan():
    """Wan 2.1's transformer: 13 MB. Every size is read off the weights."""
    from comfy.ldm.wan.model import WanModel

    model = WanModel(
        model_type="t2v", dim=256, ffn_dim=512, num_heads=2, num_layers=6, in_dim=16, out_dim=16,
        text_dim=4096, freq_dim=256, device="cpu", dtype=torch.float32, operations=comfy.ops.disable_weight_init,
    )  # fmt: skip
    save(FOLDER / "diffusion_models/tiny-wan.safetensors", filled(model, 5).state_dict())


def flux():
    """Flux's transformer. Before 0.33 its number of heads was not read off the weights: see testnodes.py."""
    from comfy.ldm.flux.model import Flux

    model = Flux(
        image_model="flux", in_channels=16, out_channels=16, patch_size=2, vec_in_dim=768, context_in_dim=4096,
        hidden_size=256, mlp_ratio=4.0, num_heads=2, depth=2, depth_single_blocks=4, axes_dim=[16, 56, 56],
        theta=10000, qkv_bias=True, guidance_embed=False, device="cpu", dtype=torch.float32,
        operations=comfy.ops.disable_weight_init,
    )  # fmt: skip
    save(FOLDER / "diffusion_models/tiny-flux.safetensors", filled(model, 6).state_dict())


for wanted in WANTED:
    begin = time.monotonic()
    {"sd15": sd15, "wan": wan, "flux": flux}[wanted]()
    print(f"{wanted}: {time.monotonic() - begin:.1f} s", flush=True)
