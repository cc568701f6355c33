from __future__ import annotations

import dgls_engine
import pytest
import torch
from dgls_engine import LayerError
from dgls_engine.layout import ALIGN
from dgls_engine.store import HostStore
from enginekit import RecordingDevice, equal, session, stack, x
from torch import nn


class Bag(nn.Module):
    def __init__(self, **tensors: torch.Tensor) -> None:
        super().__init__()
        for name, tensor in tensors.items():
            self.register_buffer(name, tensor)

    def forward(self, value):
        return value


class Pair(torch.Tensor):
    """Like a quantised weight: a tensor that is two, and can be taken apart."""

    @staticmethod
    def __new__(cls, data, scale):
        return torch.Tensor._make_wrapper_subclass(cls, data.shape, dtype=torch.float32)

    def __init__(self, data, scale):
        self.data_part, self.scale_part = data, scale

    def __tensor_flatten__(self):
        return ["data_part", "scale_part"], None

    @staticmethod
    def __tensor_unflatten__(parts, context, shape, stride):
        return Pair(parts["data_part"], parts["scale_part"])

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        if func in (torch.ops.aten.detach.default, torch.ops.aten.alias.default):
            return Pair(args[0].data_part, args[0].scale_part)
        if func is torch.ops.aten.mm.default:
            return args[0] @ args[1].plain()
        raise NotImplementedError(str(func))

    def plain(self):
        return self.data_part.float() * self.scale_part


class Closed(torch.Tensor):
    """A subclass that cannot be taken apart, as GGUF's: moved only by its own `to`."""

    @staticmethod
    def __new__(cls, data):
        return torch.Tensor._make_subclass(cls, data)


def bits(dtype, *shape):
    """All kinds of bit patterns, NaNs and denormals too."""
    torch.manual_seed(0)
    size = torch.empty((), dtype=dtype).element_size()
    flat = torch.randint(0, 256, (max(1, torch.Size(shape).numel()) * size,), dtype=torch.uint8)
    if dtype == torch.bool:
        flat %= 2
    return flat.view(dtype)[: torch.Size(shape).numel()].reshape(shape)


DTYPES = [
    torch.bfloat16,
    torch.float16,
    torch.float32,
    torch.float64,
    torch.float8_e4m3fn,
    torch.float8_e5m2,
    torch.uint8,
    torch.int8,
    torch.int64,
    torch.bool,
    torch.complex64,
]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_packed_bit_for_bit(dtype):
    tensors = {
        "plain": bits(dtype, 7, 5),
        "scalar": bits(dtype),
        "empty": bits(dtype, 0, 3),
        "transposed": bits(dtype, 6, 4).t(),
        "gaps": bits(dtype, 9, 8)[::2, 1::3],
        "expanded": bits(dtype, 1, 5).expand(4, 5),
    }
    before = {name: tensor.clone() for name, tensor in tensors.items()}
    bag = Bag(**tensors)
    store = HostStore([bag], ["bag"])
    layer = store.layers[0]
    assert layer.buffer is not None
    for name, tensor in before.items():
        assert equal(getattr(bag, name), tensor), name
    # And in another buffer, as a slot is one.
    device = RecordingDevice()
    slot = device.allocate(layer.nbytes + 300, "slot")
    device.copy(slot, layer.buffer, 0, 0, layer.nbytes)
    views = dict(zip([e.name for e in layer.entries], layer.views(slot), strict=True))
    for name, tensor in before.items():
        assert equal(views[name], tensor), name
        assert views[name].untyped_storage().data_ptr() == slot.flat.untyped_storage().data_ptr()


def test_strides_without_gaps_are_kept():
    bag = Bag(
        transposed=torch.randn(6, 4).t(), last=torch.randn(1, 3, 4, 4).to(memory_format=torch.channels_last)
    )
    strides = bag.transposed.stride(), bag.last.stride()
    HostStore([bag], ["bag"])
    assert (bag.transposed.stride(), bag.last.stride()) == strides


def test_every_tensor_is_aligned_and_layers_begin_on_pages():
    layers = stack((1, 2, 3))
    store = HostStore(layers, list("abc"))
    for layer in store.layers:
        assert layer.buffer.flat.data_ptr() % 4096 == 0
        for entry in layer.entries:
            assert entry.host.data_ptr() % ALIGN == 0
    ends = [layer.buffer.flat.data_ptr() + layer.nbytes for layer in store.layers]
    assert all(store.layers[i + 1].buffer.flat.data_ptr() >= end for i, end in enumerate(ends[:-1]))


def test_a_parameter_stays_the_same_object_and_keeps_its_attributes():
    layers = stack()
    weight = layers[0].inner.weight
    weight.mark = "mine"
    HostStore(layers, [str(i) for i in range(6)])
    assert layers[0].inner.weight is weight
    with session(layers, slots=1) as made:
        seen = []
        inner = layers[0].inner.forward
        layers[0].inner.forward = lambda value: (seen.append(layers[0].inner.weight), inner(value))[1]
        with torch.no_grad():
            layers[0](x())
        del layers[0].inner.forward
        assert made.plan is not None
    assert seen[0] is not weight
    assert seen[0].mark == "mine"
    assert layers[0].inner.weight is weight


def test_a_tensor_shared_inside_a_layer_is_packed_once_and_bound_everywhere():
    layer = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 8))
    layer[2].weight = layer[0].weight
    store = HostStore([layer], ["tied"])
    assert len(store.layers[0].entries) == 5
    assert layer[2].weight is layer[0].weight
    with torch.no_grad():
        expected = layer(x())
        with session(nn.ModuleList([layer])):
            assert torch.equal(layer(x()), expected)


def test_a_tensor_shared_between_layers():
    layers = stack()
    layers[3].inner.weight = layers[1].inner.weight
    with torch.no_grad():
        expected = nn.Sequential(*layers)(x())
        with session(layers):
            for _ in range(3):
                assert torch.equal(nn.Sequential(*layers)(x()), expected)


def test_parameters_born_in_inference_mode_as_comfyui_loads_them():
    with torch.inference_mode():
        layers = stack()
        expected = nn.Sequential(*layers)(x())
    with session(layers):
        for inference in (True, False, True):
            with torch.inference_mode(inference), torch.no_grad():
                assert torch.equal(nn.Sequential(*layers)(x()), expected)
    with torch.no_grad():
        layers[0].inner.weight.mul_(2)  # an ordinary parameter now


class Quantised(nn.Module):
    def __init__(self, weight):
        super().__init__()
        self.weight = nn.Parameter(weight, requires_grad=False)

    def forward(self, value):
        return torch.mm(value, self.weight)


def test_a_quantised_weight_is_packed_as_its_parts():
    pair = Pair(torch.randint(-8, 8, (8, 8), dtype=torch.int8), torch.rand(8))
    layers = nn.ModuleList([Quantised(pair), *stack((0, 0))])
    with torch.no_grad():
        expected = nn.Sequential(*layers)(x())
    device = RecordingDevice(late=True)
    with session(layers, device) as made:
        assert [layer.packed for layer in made.report().layers] == [True, True, True]
        with torch.no_grad():
            for _ in range(3):
                assert torch.equal(nn.Sequential(*layers)(x()), expected)
    assert isinstance(layers[0].weight, Pair)


@pytest.mark.parametrize("residents", [(), (1,), (0, 1, 2)])
def test_what_cannot_be_packed_falls_back_by_layer_and_is_named(residents):
    layers = stack((0, 0, 0))
    layers[1].inner.weight = nn.Parameter(Closed(torch.randn(8, 8)), requires_grad=False)
    with torch.no_grad():
        expected = nn.Sequential(*layers)(x())
    said = []
    with (
        session(
            layers, residents=residents, names=["a", "blocks.1", "c"], log=said.append, mode="engine"
        ) as made,
        torch.no_grad(),
    ):
        for _ in range(3):
            assert torch.equal(nn.Sequential(*layers)(x()), expected)
        layer = made.report().layers[1]
        assert not layer.packed
        assert "inner.weight" in layer.note
        assert "Closed" in layer.note
    assert any("blocks.1" in text for text in said)
    assert type(layers[1].inner.weight) is Closed


def test_meta_tensors_are_refused_by_name():
    layers = nn.ModuleList([nn.Linear(2, 2), nn.Linear(2, 2, device="meta")])
    with pytest.raises(LayerError, match=r"second\.weight is on the meta device"):
        HostStore(layers, ["first", "second"])


def test_a_layer_without_weights_is_no_trouble():
    layers = nn.ModuleList([*stack((0, 0)), nn.Identity(), *stack((0,))])
    with torch.no_grad():
        expected = nn.Sequential(*layers)(x())
        with session(layers, policy=dgls_engine.Auto(), budget=3000):
            for _ in range(3):
                assert torch.equal(nn.Sequential(*layers)(x()), expected)
