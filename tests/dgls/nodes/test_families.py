"""Extraction on ComfyUI's own classes: the real sizes on the meta device, the order by running tiny ones."""

from __future__ import annotations

from typing import Any

import pytest
from classes import KNOWN, Known


@pytest.fixture(params=KNOWN, ids=lambda known: known.name)
def known(request: pytest.FixtureRequest) -> Known:
    found: Known = request.param
    return found


def test_extraction_of_the_real_model(dgls: Any, known: Known) -> None:
    from dgls.families import count_in_file, extract

    model = known.make(known.real, "meta")
    found = extract(model)
    assert (found.family, len(found), found.names[0]) == (known.family, known.expected, known.first)
    assert len({id(module) for module in found.modules}) == known.expected
    # The file's header alone tells as many: it is what validates gpu_layer_indices.
    assert count_in_file(model.state_dict()) == known.expected
    inside = sum(p.numel() for module in found.modules for p in module.parameters())
    assert inside > 0.9 * sum(p.numel() for p in model.parameters())


def test_order_by_a_traced_forward(dgls: Any, known: Known) -> None:
    import torch
    from dgls.families import extract

    model = known.make(known.tiny, "cpu")
    found = extract(model)
    ran: list[str] = []
    for layer in found.layers:
        layer.module.register_forward_pre_hook(lambda _m, _a, name=layer.name: ran.append(name))
    with torch.inference_mode():
        known.call(model)
    assert list(dict.fromkeys(ran)) == list(found.names)
    if known.order:
        assert found.names == known.order


def test_fault_09_cosmos1_keeps_its_blocks_in_a_module_dict(dgls: Any) -> None:
    import torch
    from dgls.families import extract

    known = next(k for k in KNOWN if k.name == "cosmos1")
    model = known.make(known.tiny, "cpu")
    assert isinstance(model.blocks, torch.nn.ModuleDict)
    found = extract(model)
    assert found.names == ("blocks.block0", "blocks.block1", "blocks.block2")
    assert all(isinstance(module, torch.nn.Module) for module in found.modules)


def test_an_unknown_model_gives_its_longest_list(dgls: Any) -> None:
    import torch
    from dgls.families import extract

    class Unknown(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.heads = torch.nn.ModuleList(torch.nn.Linear(2, 2) for _ in range(3))
            self.deep = torch.nn.Module()
            self.deep.stack = torch.nn.ModuleList(torch.nn.Linear(2, 2) for _ in range(5))
            self.empty = torch.nn.ModuleList(torch.nn.Identity() for _ in range(9))

    found = extract(Unknown())
    assert (found.family, found.names) == ("generic", tuple(f"deep.stack.{i}" for i in range(5)))


def test_a_model_without_repeated_blocks_is_refused(dgls: Any) -> None:
    import torch
    from dgls.errors import NoBlocksError
    from dgls.families import extract

    with pytest.raises(NoBlocksError, match=r"Linear has no list of repeated blocks.*Load Diffusion Model"):
        extract(torch.nn.Linear(2, 2))


def test_a_unet_is_refused_and_why(dgls: Any) -> None:
    from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel
    from dgls.errors import NoBlocksError
    from dgls.families import extract

    model = UNetModel.__new__(UNetModel)
    with pytest.raises(NoBlocksError, match="parts of its blocks one by one"):
        extract(model)
