"""A swapped model gives what the model gives, whatever stays; and ComfyUI's memory manager is told the truth."""

from __future__ import annotations

from typing import Any

import pytest

SOME = {"initial_gpu_layers": 1, "final_gpu_layers": 1, "prefetch": 1}


@pytest.fixture
def expected(models: Any) -> dict[str, Any]:
    from sampling import sample, stock

    return {"wan": sample(stock("wan.safetensors"))}


@pytest.mark.parametrize(
    "asked",
    [
        {},
        SOME,
        {"gpu_layer_indices": "0,2,4", "prefetch": 0},
        {"gpu_layer_indices": "0-5"},
        {"initial_gpu_layers": 0, "final_gpu_layers": 0, "prefetch": 100},
        {"residency": "evenly", "vram_budget": 0.01},
        {"vram_budget": 0.01},
        {"preset": "6 GB"},
        {"mode": "off"},
        {**SOME, "threading": True, "cuda_streams": True, "batch_move": True, "selective_packing": 64},
    ],
    ids=str,
)
def test_the_same_latent_whatever_stays(dgls: Any, models: Any, expected: Any, asked: Any) -> None:
    import torch
    from sampling import sample, swapping

    model = swapping("wan.safetensors", **asked)
    assert torch.equal(sample(model), expected["wan"])
    assert torch.equal(sample(model), expected["wan"])
    if asked.get("mode") != "off":
        assert model.dgls.session.report().passes >= 4
