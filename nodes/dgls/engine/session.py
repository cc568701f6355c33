"""A model's layers under one budget: what the outside world holds."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any, Literal, Self

import torch
from torch import nn

from .cpu import CpuDevice
from .cuda import CudaDevice
from .device import Device, Stream, Wait
from .errors import DglsError, GradientError, LayerError, OutOfDeviceMemoryError, StateError
from .measured import Measured, signature
from .order import Order
from .pins import PinBudget
from .plan import Plan, make_plan, minimum
from .policy import AUTO, Auto, FirstLast, Indices, Policy, chosen
from .pool import SlotPool
from .report import LayerReport, Report
from .residents import Residents
from .scheduler import Scheduler
from .simulate import simulate
from .store import HostStore
from .trace import Trace, Traced
from .transfer import Transfer

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence

    from torch import Tensor

    from .pool import Slot

Mode = Literal["engine", "unified", "cpu"]
_GAIN = 0.98
"""A new plan is taken when it promises at most this part of the present one's seconds: moving costs too."""
_LESS = 0.9
"""After a refusal of memory: at most this part of what was asked for."""


class Session:
    """Runs a model's layers with only some of them on the device; one per model, no state outside it.

    Nothing touches the device before `prepare()` or the first forward. The layers' weights move into one
    packed host store in the constructor: from then on a layer's parameters are views of the store. They stay
    valid CPU parameters between two passes (residents: device parameters) and after `close()`.

    Not for two threads at once: a session belongs to the thread that runs the model.
    """

    def __init__(
        self,
        layers: Iterable[nn.Module],
        *,
        device: torch.device | str | Device,
        budget: int,
        names: Sequence[str] | None = None,
        mode: Mode | None = None,
        policy: Policy = AUTO,
        slots: int | None = None,
        pins: PinBudget | None = None,
        compile_residents: bool = False,
        log: Callable[[str], None] | None = None,
    ) -> None:
        """`layers` in the order in which they run (learned if they run in another one).

        `budget`: bytes on the device for these layers, residents and slots together (activations not counted).
        `mode`: None picks by device, see `choose_mode`. `slots`: buffers of the ring, None lets the planner
        try 2 to 4; the original's `prefetch` is slots - 1. `pins`: shared between sessions; None takes what the
        container's memory limit allows. `log`: called with one sentence at a time.
        Raises LayerError (no layers, one twice, meta tensors), PlanError (policy names no such layer).
        A budget that is too small raises BudgetError in `prepare()`, not here.
        """
        self._modules = tuple(layers)
        self._names = (
            tuple(names) if names is not None else tuple(f"layer {i}" for i in range(len(self._modules)))
        )
        _check_layers(self._modules, self._names)
        self._device = _device(device)
        picked, why = _mode(self._device)
        self.mode: Mode = mode or picked
        self.why = why if self.mode == picked else f"asked for ({why})"
        self._set_policy(policy, slots)
        self._budget = budget
        self._ceiling: int | None = None
        self._compile = compile_residents
        self._compiled: dict[int, Callable[..., Any]] = {}
        self._log = log or (lambda _text: None)
        self._notes: list[str] = []

        self._pins = pins if pins is not None else PinBudget.of_this_machine()
        self._store = HostStore(self._modules, self._names, pack=self.mode != "unified")
        self._order = Order(len(self._modules))
        self._transfer = Transfer(self._device, self._pins)
        self._residents = Residents(self._device, self._store, self._transfer)
        self._pool: SlotPool | None = None
        self._scheduler: Scheduler | None = None
        self._plan: Plan | None = None
        self._measured = Measured([layer.nbytes for layer in self._store.layers], self._streamed())
        self._trace: Trace | None = None
        self._traced: Traced | None = None
        self._traces_wanted = 0
        self._stale_plan = False
        self._active = 0
        self._hits = self._misses = 0
        self._replaced: dict[int, Any] = {}
        self._attached = False
        self._prepared = False
        self._closed = False
        for layer in self._store.layers:
            if layer.why_loose:
                self._note(f"{layer.name} is not packed but moved tensor by tensor: {layer.why_loose}")

    # -- hooks ------------------------------------------------------------------------------------
    def wrap(self, index: int, forward: Callable[..., Any] | None = None) -> Callable[..., Any]:
        """A forward for layer `index` that has its weights on the device while it runs.

        For add_object_patch('diffusion_model.blocks.i.forward', session.wrap(i)). `forward`: what to run
        inside, the layer's present forward if None. After `close()` it runs `forward` as it is.
        """
        inner = self._modules[index].forward if forward is None else forward

        def swapped_forward(*args: Any, **kwargs: Any) -> Any:
            return self._run(index, inner, args, kwargs)

        return swapped_forward

    def attach(self) -> None:
        """Set `layer.forward` of every layer itself, for use without ComfyUI."""
        if self._attached or self._closed:
            raise StateError("attach: the session is attached already, or closed")
        for i, module in enumerate(self._modules):
            self._replaced[i] = module.__dict__.get("forward")
            module.forward = self.wrap(i)
        self._attached = True

    def detach(self) -> None:
        """Put back every forward that `attach` replaced. Device memory stays: see `release`."""
        for i, forward in self._replaced.items():
            if forward is None:
                self._modules[i].__dict__.pop("forward", None)
            else:
                self._modules[i].forward = forward
        self._replaced = {}
        self._attached = False

    # -- memory -----------------------------------------------------------------------------------
    def prepare(self) -> None:
        """Allocate slots, load residents, start the ring; done by the first forward otherwise.

        Under memory pressure residents are given up (a note in the report); raises BudgetError or
        OutOfDeviceMemoryError, each with `.needed`, when not even the slots fit.
        """
        if self._closed:
            raise StateError("the session is closed")
        if self._prepared:
            return
        if self.mode == "unified":
            self._store.move(self._device.torch_device)
        else:
            self._load()
        self._prepared = True

    def shrink(self, nbytes: int) -> int:
        """Give back at least `nbytes` of residents (partially_unload), as far as there are; the bytes freed.

        The budget shrinks by as much. Slots stay: see `release`.
        """
        before = self.device_bytes
        if self.mode == "unified" or not self._prepared or nbytes <= 0:
            return 0
        self.set_budget(before - nbytes)
        return before - self.device_bytes

    def set_budget(self, budget: int) -> None:
        """Shrink or grow to `budget` bytes; takes effect at once if prepared, else when it is.

        While a layer runs it takes effect at the next pass. Less than one layer needs is as little as there is.
        """
        self._budget = max(budget, self.minimum_budget) if self._prepared else budget
        self._ceiling = None
        self._change()

    def release(self) -> int:
        """Give back all device memory (ComfyUI's detach, /free); the next forward prepares again. Bytes freed."""
        before = self.device_bytes
        if self.mode == "unified":
            if self._prepared:
                self._store.move(torch.device("cpu"))
        else:
            self._unload()
            self._transfer.close()
        self._prepared = False
        self._ceiling = None
        return before

    def close(self) -> None:
        """`detach`, `release`, unpin; the layers are plain CPU modules again, and wrapped forwards pass through."""
        if self._closed:
            return
        self.detach()
        self.release()
        self._transfer.settle(Wait.UNPIN)
        self._store.unpin(self._device, self._pins)
        self._compiled = {}
        self._closed = True

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def resident_bytes(self) -> int:
        """On the device now, without slots."""
        if self.mode == "unified":
            return self._store.nbytes if self._prepared else 0
        return self._residents.nbytes

    @property
    def device_bytes(self) -> int:
        """On the device now, slots too."""
        return self.resident_bytes + (self._pool.nbytes if self._pool else 0)

    @property
    def host_bytes(self) -> int:
        """Of the packed store and of what could not be packed."""
        return 0 if self.mode == "unified" and self._prepared else self._store.nbytes

    @property
    def pinned_bytes(self) -> int:
        return self._store.pinned_bytes + self._transfer.staging_bytes

    @property
    def layer_bytes(self) -> tuple[int, ...]:
        """What each layer takes on the device, packed."""
        return tuple(layer.nbytes for layer in self._store.layers)

    @property
    def minimum_budget(self) -> int:
        """The smallest budget that `prepare` accepts: every layer streamed through one slot."""
        return 0 if self.mode == "unified" else minimum(self.layer_bytes, self._streamed())

    # -- plan -------------------------------------------------------------------------------------
    @property
    def plan(self) -> Plan | None:
        """The present one: `.residents` (a frozenset of indices), `.slots` (bytes of each), `.seconds`."""
        return self._plan

    def set_policy(self, policy: Policy, *, slots: int | None = None) -> None:
        """Plan anew, at the latest at the next pass; raises PlanError at once if it names no such layer."""
        self._set_policy(policy, slots)
        self._change()

    # -- LoRA -------------------------------------------------------------------------------------
    @property
    def rewrite_key(self) -> Hashable | None:
        """What the host copy holds now: None for the weights as they came."""
        return self._store.key

    def rewrite(self, key: Hashable, change: Callable[[int, str, Tensor], Tensor | None]) -> int:
        """Bake changed weights into the host copy, once per `key`; the number of tensors changed.

        `change(layer, name, original)` gets each tensor as it came, on the CPU and read-only (`name` as in
        `layer.named_parameters()` and `named_buffers()`), and returns the new one (cast to its dtype, same
        shape) or None. Always starts from the originals, never from an earlier rewrite; the same key again
        does nothing. If `change` raises, all originals are back. Tensors that are rewritten are kept twice on
        the host until `restore`. Resident copies are refreshed.
        """
        if key == self._store.key:
            return 0
        if self._active:
            raise StateError("weights cannot be rewritten while a layer runs")
        try:
            count = self._rewrite(change)
        except BaseException:
            self._rewrite(_nothing)
            self._store.key = None
            raise
        self._store.key = key
        return count

    def restore(self) -> int:
        """Undo `rewrite`, bit for bit; the number of tensors put back."""
        return self.rewrite(None, _nothing)

    def original(self, layer: int, name: str) -> Tensor | None:
        """A tensor as it came, where `rewrite` has put another into its place; else None."""
        return self._store.layers[layer].originals.get(name)

    def _rewrite(self, change: Callable[[int, str, Tensor], Tensor | None]) -> int:
        count = 0
        self._transfer.settle(Wait.REWRITE)
        for layer in self._store.layers:
            rewritten = len(layer.originals)
            new = self._store.changes(layer, change)
            if not new and not rewritten:
                continue
            if layer.buffer is not None:
                self._device.host_write(layer.buffer)
            self._store.write(layer, new)
            count += max(len(new), rewritten)
            if self._scheduler:
                self._scheduler.forget(layer.index)
        # Only now: a copy that was asked for in between would read what the host still writes.
        for index in self._residents.indices() if count else ():
            self._residents.refresh(index)
        if count and self._scheduler:
            with _lasting():
                self._scheduler.prefetch(len(self._modules) - 1)
        return count

    # -- report -----------------------------------------------------------------------------------
    def trace(self, passes: int = 1) -> None:
        """Time every copy and compute of the next passes too (the first passes always are)."""
        self._traces_wanted = max(self._traces_wanted, passes)

    def report(self) -> Report:
        """Waits for the device when a trace is still running."""
        if self._trace is not None and self._order.complete:
            self._read_trace()
        traced, plan = self._traced, self._plan
        residents = self._residents.indices()
        everything = self.mode == "unified" and self._prepared
        layers = tuple(
            LayerReport(
                index=layer.index,
                name=layer.name,
                bytes=layer.nbytes,
                resident=everything or layer.index in residents,
                packed=layer.buffer is not None,
                pinned=layer.pinned,
                note=layer.why_loose,
                compute_seconds=traced.computes.get(layer.index) if traced else None,
                copy_seconds=traced.copies.get(layer.index) if traced else None,
            )
            for layer in self._store.layers
        )
        scheduler = self._scheduler
        return Report(
            mode=self.mode,
            why=self.why,
            device=self._device.name,
            policy=plan.policy if plan else type(self._policy).__name__.lower(),
            slots=self._pool.sizes if self._pool else (),
            budget=self._budget,
            resident_bytes=self.resident_bytes,
            slot_bytes=self._pool.nbytes if self._pool else 0,
            host_bytes=self.host_bytes,
            pinned_bytes=self.pinned_bytes,
            layers=layers,
            order=self._order.last_pass,
            passes=self._order.passes + self._order.complete,
            copies=self._transfer.copies,
            bytes_copied=self._transfer.nbytes,
            hits=self._hits + (scheduler.hits if scheduler else 0),
            misses=self._misses + (scheduler.misses if scheduler else 0),
            bus_bytes_per_second=self._measured.bytes_per_second,
            predicted_seconds=plan.seconds if plan and self._measured.known else None,
            metrics=traced.metrics if traced else None,
            timeline=traced.timeline if traced else (),
            notes=tuple(self._notes),
        )

    # -- a layer runs -----------------------------------------------------------------------------
    def _run(
        self, index: int, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        if self._closed:
            return forward(*args, **kwargs)
        _refuse_gradients(args, kwargs)
        self._arrive(index, args, kwargs)
        self._active += 1
        try:
            with self._weights(index) as resident:
                return self._call(index, forward, resident, args, kwargs)
        except BaseException as e:
            self._order.interrupted()
            self._trace_off()
            if isinstance(e, torch.OutOfMemoryError):
                self._make_room()
            raise
        finally:
            self._active -= 1

    def _arrive(self, index: int, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """The pass has come to this layer: begin one if it has, and look whether it goes as expected."""
        if not self._active and self._order.starts_pass(index):
            with _lasting():
                self._begin_pass(signature(args, kwargs))
        elif not self._prepared:
            self.prepare()  # given back in the middle of a pass
        expected = self._order.expected
        self._order.visit(index)
        if index != expected and self._scheduler and index in self._residents:
            self._scheduler.prefetch(index)

    @contextlib.contextmanager
    def _weights(self, index: int) -> Iterator[bool]:
        """The layer's tensors are on the device, for what is enqueued inside; whether it is a resident."""
        if self.mode == "unified":
            with self._device.computing(index, ()):
                yield True
        elif index in self._residents:
            yield from self._resident(index)
        elif self._store.layers[index].buffer is None:
            yield from self._loose(index)
        else:
            yield from self._streaming(index)

    def _resident(self, index: int) -> Iterator[bool]:
        asked = self._mark()
        buffer = self._residents.arrived(index)
        begun = self._mark()
        with self._device.computing(index, (buffer,) if buffer else ()):
            yield True
        self._computed(index, None, asked, begun)

    def _loose(self, index: int) -> Iterator[bool]:
        layer = self._store.layers[index]
        asked = self._mark()
        try:
            layer.bind(layer.moved(self._device.torch_device))
            begun = self._mark()
            with self._device.computing(index, ()):
                yield False
            self._computed(index, None, asked, begun)
        finally:
            layer.unbind()

    def _streaming(self, index: int) -> Iterator[bool]:
        layer, scheduler = self._store.layers[index], self._scheduler
        assert scheduler is not None
        asked = self._mark()
        with _lasting():
            slot = scheduler.enter(index)
            views = slot.views(layer)
        begun = self._mark()
        try:
            layer.bind(views)
            with self._device.computing(index, (slot.buffer,)):
                yield False
            self._computed(index, slot, asked, begun)
        finally:
            layer.unbind()
            with _lasting():
                scheduler.leave(index, slot)

    def _call(
        self,
        index: int,
        forward: Callable[..., Any],
        resident: bool,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> Any:
        if not (self._compile and resident):
            return forward(*args, **kwargs)
        compiled = self._compiled.get(index)
        if compiled is None:
            compiled = self._compiled[index] = torch.compile(forward)
        try:
            return compiled(*args, **kwargs)
        except torch._dynamo.exc.TorchDynamoException as e:  # noqa: SLF001  (it has no public name)
            # The compiler gave up before anything ran.
            self._note(f"{self._names[index]} is not compiled: {_first_line(e)}")
            self._compiled[index] = forward
            return forward(*args, **kwargs)

    # -- passes -----------------------------------------------------------------------------------
    def _begin_pass(self, shapes: Hashable) -> None:
        if self._trace is not None:
            self._read_trace()
        self.prepare()
        if self.mode == "unified":
            return
        if self._stale_plan:
            self._load()
        elif isinstance(self._policy, Auto) and self._measured.due(shapes):
            self._reconsider()
        if self._measured.wanted(shapes) or self._traces_wanted:
            self._traces_wanted = max(self._traces_wanted - 1, 0)
            assert self._pool is not None
            self._trace = Trace(self._device, self._pool, shapes)
            if self._scheduler:
                self._scheduler.trace = self._trace

    def _read_trace(self) -> None:
        trace = self._trace
        self._trace_off()
        traced = trace.read(self._store) if trace else None
        if traced:
            self._traced = traced
            self._measured.add(traced)

    def _trace_off(self) -> None:
        self._trace = None
        if self._scheduler:
            self._scheduler.trace = None

    def _mark(self) -> Any:
        return self._trace.mark(Stream.COMPUTE) if self._trace else None

    def _computed(self, index: int, slot: Slot | None, asked: Any, begun: Any) -> None:
        if self._trace and asked is not None:
            self._trace.computed(index, slot, asked, begun)

    # -- planning ---------------------------------------------------------------------------------
    def _set_policy(self, policy: Policy, slots: int | None) -> None:
        if isinstance(policy, FirstLast | Indices):
            chosen(policy, len(self._modules))  # raises PlanError
        if slots is not None and slots < 1:
            raise DglsError(f"slots: {slots}; at least one is needed, and two to copy while another computes")
        self._policy, self._slots = policy, slots

    def _change(self) -> None:
        """Budget or policy have changed."""
        if self._active or not self._prepared or self.mode == "unified":
            self._stale_plan = True
        else:
            with _lasting():
                self._load()

    def _reconsider(self) -> None:
        """Something was measured: is there a better plan now?"""
        assert self._plan is not None
        plan = self._make_plan(self._allowed)
        present = simulate(
            self._measured.costs(),
            self._plan.residents,
            self._plan.slots,
            self._measured.bus,
            order=range(len(self._modules)),
        )
        if plan.seconds < present.seconds * _GAIN:
            self._load()

    @property
    def _allowed(self) -> int:
        return self._budget if self._ceiling is None else min(self._budget, self._ceiling)

    def _make_plan(self, budget: int) -> Plan:
        return make_plan(
            self._measured.costs(),
            self._measured.bus,
            budget,
            policy=self._policy,
            slots=self._slots,
            names=self._names,
        )

    def _load(self) -> None:
        """Plan and carry it out; with less and less when the device refuses."""
        self._stale_plan = False
        least = max(self.minimum_budget, 1)
        while True:
            plan = self._make_plan(self._allowed)
            try:
                self._adopt(plan)
            except OutOfDeviceMemoryError as e:
                had = self.device_bytes
                self._unload()
                if plan.nbytes <= least:
                    raise OutOfDeviceMemoryError(
                        f"{e}. One slot for the largest layer needs {least / 1e6:,.1f} MB: free some memory, "
                        f"or use smaller weights",
                        needed=least,
                    ) from e
                self._ceiling = max(min(int(plan.nbytes * _LESS), had), least)
                self._note(
                    f"{e}: going on with {self._ceiling / 1e6:,.1f} MB instead of {plan.nbytes / 1e6:,.1f}"
                )
            except BaseException:
                self._unload()
                self._prepared = False
                raise
            else:
                return

    def _adopt(self, plan: Plan) -> None:
        """Give up first, then take: never more than the larger of the two plans at once."""
        with _lasting():
            self._trace_off()
            for index in self._residents.indices() - plan.residents:
                self._residents.drop(index)
            if self._pool is None or sorted(self._pool.sizes) != sorted(plan.slots):
                self._close_pool()
                self._pool = SlotPool(self._device, plan.slots)
            ring = [
                layer.index
                for layer in self._store.layers
                if layer.buffer is not None and layer.index not in plan.residents
            ]
            self._transfer.reserve()
            self._pin(ring)
            self._count()
            self._scheduler = Scheduler(
                self._device, self._store, self._pool, self._transfer, self._order, ring
            )
            self._scheduler.prefetch(len(self._modules) - 1)
            for index in sorted(plan.residents - self._residents.indices()):
                self._residents.hold(index)
            self._plan = plan

    def _pin(self, ring: Sequence[int]) -> None:
        refused = self._store.pin(self._device, self._pins, ring)
        if refused:
            self._note(
                f"{len(refused)} layers are not pinned ({_few(refused)}): "
                f"of {self._pins.total / 1e9:,.1f} GB that may be, or refused by the system; they go through a "
                f"staging buffer, which the host fills"
            )

    def _unload(self) -> None:
        with _lasting():
            self._trace_off()
            self._residents.close()
            self._close_pool()
            self._count()
            self._scheduler = None
            self._plan = None

    def _close_pool(self) -> None:
        if self._pool is not None:
            self._pool.close()
        self._pool = None

    def _count(self) -> None:
        if self._scheduler:
            self._hits += self._scheduler.hits
            self._misses += self._scheduler.misses
            self._scheduler.hits = self._scheduler.misses = 0

    def _make_room(self) -> None:
        """A layer's own compute ran out of memory. It is not tried again, since it may have changed its input.

        But the next attempt shall find more room.
        """
        held = self.resident_bytes
        if self.mode == "unified" or not held or self._active > 1:
            return
        self._ceiling = max(self.device_bytes - max(held // 4, 1), self.minimum_budget)
        self._note(
            f"out of memory in a layer: residents shrink to {self._ceiling / 1e6:,.1f} MB with the slots"
        )
        with contextlib.suppress(DglsError), _lasting():  # the failure of the layer is what is reported
            self._load()

    def _streamed(self) -> list[bool]:
        return [layer.buffer is not None for layer in self._store.layers]

    def _note(self, text: str) -> None:
        if text not in self._notes:
            self._notes.append(text)
            self._log(text)


def choose_mode(device: torch.device) -> tuple[Mode, str]:
    """The mode for a device, and the reason in a sentence."""
    if device.type == "cpu":
        return "cpu", "there is no GPU: the engine runs on the CPU, which tests it and saves nothing"
    if device.type != "cuda":
        raise DglsError(f"{device.type}: the engine knows cuda and cpu devices")
    properties = torch.cuda.get_device_properties(device)
    if properties.is_integrated:
        return "unified", (
            f"{properties.name} shares its memory with the CPU: a second place for the weights would only take "
            f"more of the same memory, so all of them stay where they are and nothing is copied"
        )
    return "engine", f"{properties.name} has memory of its own: weights come to it over the bus"


def _mode(device: Device) -> tuple[Mode, str]:
    if isinstance(device, CudaDevice | CpuDevice):
        return choose_mode(device.torch_device)
    return "engine", f"{device.name} was given"


def _device(device: torch.device | str | Device) -> Device:
    if isinstance(device, Device):
        return device
    wanted = torch.device(device)
    if wanted.type == "cpu":
        return CpuDevice()
    if wanted.type == "cuda":
        return CudaDevice(wanted)
    raise DglsError(f"{wanted.type}: the engine knows cuda and cpu devices")


@contextlib.contextmanager
def _lasting() -> Iterator[None]:
    """For tensors that outlive a run: ComfyUI runs nodes in inference mode, whose tensors cannot be changed later."""
    with torch.inference_mode(False), torch.no_grad():
        yield


def _check_layers(layers: Sequence[nn.Module], names: Sequence[str]) -> None:
    if not layers:
        raise LayerError("there are no layers to swap: the model has no repeated blocks that are known here")
    if len(names) != len(layers):
        raise LayerError(f"{len(names)} names for {len(layers)} layers")
    strange = [
        f"{name} ({type(layer).__name__})"
        for name, layer in zip(names, layers, strict=True)
        if not isinstance(layer, nn.Module)
    ]
    if strange:
        raise LayerError(f"not modules: {', '.join(strange[:3])}")
    if len({id(layer) for layer in layers}) < len(layers):
        raise LayerError("a layer is in the list twice")


def _refuse_gradients(args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    if torch.is_grad_enabled() and any(
        isinstance(value, torch.Tensor) and value.requires_grad for value in (*args, *kwargs.values())
    ):
        raise GradientError(
            "a swapped layer was asked for gradients: by the time of the backward pass its weights are overwritten. "
            "Run it under torch.no_grad(), or train without DGLS"
        )


def _nothing(_layer: int, _name: str, _original: Tensor) -> None:
    return None


def _few(names: Sequence[str], most: int = 3) -> str:
    return ", ".join([*names[:most], *(["…"] if len(names) > most else [])])


def _first_line(error: BaseException) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)
