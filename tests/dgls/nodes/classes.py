"""ComfyUI's own model classes: the real sizes for the meta device, and tiny ones that run a forward."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

    import torch

FLUX1 = {
    "image_model": "flux",
    "in_channels": 16,
    "out_channels": 16,
    "vec_in_dim": 768,
    "context_in_dim": 4096,
    "hidden_size": 3072,
    "mlp_ratio": 4.0,
    "num_heads": 24,
    "depth": 19,
    "depth_single_blocks": 38,
    "axes_dim": [16, 56, 56],
    "theta": 10000,
    "patch_size": 2,
    "qkv_bias": True,
    "guidance_embed": True,
}
FLUX2 = FLUX1 | {
    "image_model": "flux2",
    "in_channels": 128,
    "out_channels": 128,
    "vec_in_dim": None,
    "context_in_dim": 15360,
    "hidden_size": 6144,
    "mlp_ratio": 3.0,
    "num_heads": 48,
    "depth": 8,
    "depth_single_blocks": 48,
    "axes_dim": [32, 32, 32, 32],
    "theta": 2000,
    "patch_size": 1,
    "qkv_bias": False,
    "global_modulation": True,
    "mlp_silu_act": True,
    "ops_bias": False,
}
WAN = {"model_type": "t2v", "dim": 5120, "ffn_dim": 13824, "num_heads": 40, "num_layers": 40, "in_dim": 16}
HUNYUAN = {
    "image_model": "hunyuan_video",
    "in_channels": 16,
    "out_channels": 16,
    "vec_in_dim": 768,
    "context_in_dim": 4096,
    "hidden_size": 3072,
    "mlp_ratio": 4.0,
    "num_heads": 24,
    "depth": 20,
    "depth_single_blocks": 40,
    "axes_dim": [16, 56, 56],
    "theta": 256,
    "patch_size": [1, 2, 2],
    "qkv_bias": True,
    "guidance_embed": True,
    "byt5": False,
    "meanflow": False,
    "use_cond_type_embedding": False,
    "vision_in_dim": None,
    "meanflow_sum": False,
}
COSMOS1 = {
    "max_img_h": 240,
    "max_img_w": 240,
    "max_frames": 128,
    "in_channels": 16,
    "out_channels": 16,
    "patch_spatial": 2,
    "patch_temporal": 1,
    "model_channels": 4096,
    "block_config": "FA-CA-MLP",
    "concat_padding_mask": True,
    "pos_emb_cls": "rope3d",
    "block_x_format": "THWBD",
    "affline_emb_norm": True,
    "use_adaln_lora": True,
    "num_blocks": 28,
    "num_heads": 32,
    "extra_per_block_abs_pos_emb": True,
    "extra_per_block_abs_pos_emb_type": "learnable",
}
PREDICT2 = {
    "max_img_h": 240,
    "max_img_w": 240,
    "max_frames": 128,
    "in_channels": 16,
    "out_channels": 16,
    "patch_spatial": 2,
    "patch_temporal": 1,
    "model_channels": 2048,
    "concat_padding_mask": True,
    "pos_emb_cls": "rope3d",
    "pos_emb_learnable": True,
    "use_adaln_lora": True,
    "num_blocks": 28,
    "num_heads": 16,
}
QWEN = {"image_model": "qwen_image", "in_channels": 64, "num_layers": 60}


@dataclass(frozen=True, kw_only=True)
class Known:
    name: str
    family: str
    module: str
    kind: str
    real: dict[str, Any]
    tiny: dict[str, Any]
    expected: int
    """Layers of the real one."""
    first: str
    call: Callable[..., Any]
    """Runs the tiny one."""
    fields: tuple[str, str] | None = None
    """Module and dataclass that says which parameters this version has."""
    order: tuple[str, ...] = field(default=())
    """Of the tiny one's layers, where it is more than one list after the other."""

    def make(self, config: dict[str, Any], device: str) -> Any:
        import importlib

        import torch
        from comfy.ops import disable_weight_init

        if self.fields is not None:
            params = getattr(importlib.import_module(self.fields[0]), self.fields[1])
            names = set(params.__dataclass_fields__) | {"image_model"}
            config = {k: v for k, v in config.items() if k in names}
            if "txt_ids_dims" in names:
                config = config | {"txt_ids_dims": []}
        made = getattr(importlib.import_module(self.module), self.kind)(
            **config, dtype=torch.float32, device=device, operations=disable_weight_init
        )
        if device == "cpu":
            with torch.no_grad():
                for parameter in made.parameters():
                    parameter.normal_(0, 0.02)
        return made.eval()


def _t(*shape: int) -> torch.Tensor:
    import torch

    return torch.randn(shape, generator=torch.Generator().manual_seed(1))


def _one() -> torch.Tensor:
    import torch

    return torch.tensor([0.5])


FLUX_FIELDS = ("comfy.ldm.flux.model", "FluxParams")
SMALL = {"hidden_size": 256, "num_heads": 2, "depth": 2, "depth_single_blocks": 3, "guidance_embed": False}
KNOWN = (
    Known(
        name="flux1",
        family="flux",
        module="comfy.ldm.flux.model",
        kind="Flux",
        real=FLUX1,
        tiny=FLUX1 | SMALL,
        expected=57,
        first="double_blocks.0",
        call=lambda m: m(_t(1, 16, 4, 4), _one(), _t(1, 3, 4096), _t(1, 768)),
        fields=FLUX_FIELDS,
    ),
    Known(
        name="flux2",
        family="flux",
        module="comfy.ldm.flux.model",
        kind="Flux",
        real=FLUX2,
        tiny=FLUX2 | SMALL | {"context_in_dim": 64},
        expected=56,
        first="double_blocks.0",
        call=lambda m: m(_t(1, 128, 4, 4), _one(), _t(1, 3, 64), None),
        fields=FLUX_FIELDS,
    ),
    Known(
        name="wan21",
        family="wan",
        module="comfy.ldm.wan.model",
        kind="WanModel",
        real=WAN,
        tiny=WAN | {"dim": 256, "ffn_dim": 256, "num_heads": 2, "num_layers": 3},
        expected=40,
        first="blocks.0",
        call=lambda m: m(_t(1, 16, 1, 4, 4), _one(), _t(1, 3, 4096)),
    ),
    Known(
        name="wan22-5b",
        family="wan",
        module="comfy.ldm.wan.model",
        kind="WanModel",
        real=WAN
        | {"dim": 3072, "ffn_dim": 14336, "num_heads": 24, "num_layers": 30, "in_dim": 48, "out_dim": 48},
        tiny=WAN | {"dim": 256, "ffn_dim": 256, "num_heads": 2, "num_layers": 2, "in_dim": 48, "out_dim": 48},
        expected=30,
        first="blocks.0",
        call=lambda m: m(_t(1, 48, 1, 4, 4), _one(), _t(1, 3, 4096)),
    ),
    Known(
        name="wan-vace",
        family="wan",
        module="comfy.ldm.wan.model",
        kind="VaceWanModel",
        real=WAN | {"model_type": "vace", "vace_layers": 8, "vace_in_dim": 96},
        tiny=WAN
        | {
            "model_type": "vace",
            "dim": 256,
            "ffn_dim": 256,
            "num_heads": 2,
            "num_layers": 4,
            "vace_layers": 2,
            "vace_in_dim": 16,
        },
        expected=48,
        first="blocks.0",
        # Two references: each of VACE's blocks runs twice.
        call=lambda m: m(
            _t(1, 16, 1, 4, 4),
            _one(),
            _t(1, 3, 4096),
            vace_context=_t(1, 2, 16, 1, 4, 4),
            vace_strength=[1.0, 1.0],
        ),
        order=("blocks.0", "vace_blocks.0", "blocks.1", "blocks.2", "vace_blocks.1", "blocks.3"),
    ),
    Known(
        name="hunyuan-video",
        family="hunyuan-video",
        module="comfy.ldm.hunyuan_video.model",
        kind="HunyuanVideo",
        real=HUNYUAN,
        tiny=HUNYUAN | SMALL,
        expected=60,
        first="double_blocks.0",
        call=lambda m: m(_t(1, 16, 1, 4, 4), _one(), _t(1, 3, 4096), y=_t(1, 768), guidance=None),
        fields=("comfy.ldm.hunyuan_video.model", "HunyuanVideoParams"),
    ),
    Known(
        name="cosmos1",
        family="cosmos1",
        module="comfy.ldm.cosmos.model",
        kind="GeneralDIT",
        real=COSMOS1,
        tiny=COSMOS1 | {"model_channels": 256, "num_blocks": 3, "num_heads": 2, "crossattn_emb_channels": 64},
        expected=28,
        first="blocks.block0",
        call=lambda m: m(_t(1, 16, 1, 4, 4), _one(), _t(1, 3, 64), fps=None, padding_mask=_t(1, 1, 4, 4)),
    ),
    Known(
        name="cosmos-predict2",
        family="cosmos-predict2",
        module="comfy.ldm.cosmos.predict2",
        kind="MiniTrainDIT",
        real=PREDICT2,
        tiny=PREDICT2
        | {"model_channels": 256, "num_blocks": 3, "num_heads": 2, "crossattn_emb_channels": 64},
        expected=28,
        first="blocks.0",
        call=lambda m: m(_t(1, 16, 1, 4, 4), _one(), _t(1, 3, 64), padding_mask=_t(1, 1, 4, 4)),
    ),
    Known(
        name="qwen-image",
        family="qwen-image",
        module="comfy.ldm.qwen_image.model",
        kind="QwenImageTransformer2DModel",
        real=QWEN,
        tiny=QWEN
        | {"num_layers": 3, "attention_head_dim": 128, "num_attention_heads": 2, "joint_attention_dim": 64},
        expected=60,
        first="transformer_blocks.0",
        call=lambda m: m(_t(1, 16, 1, 4, 4), _one(), _t(1, 3, 64)),
    ),
)
