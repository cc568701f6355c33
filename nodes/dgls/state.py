"""One model's swapping, shared by all clones of its patcher; it ends with the last of them."""

from __future__ import annotations

import functools
import logging
import uuid
import weakref
from typing import TYPE_CHECKING, Any

from .engine import Indices, Session
from .engine.pins import PinBudget
from .settings import Settings, parse_indices

if TYPE_CHECKING:
    from collections.abc import Iterable

    import torch

    from .engine import Report
    from .families import Layers

LOG = logging.getLogger("dgls")
PREFIX = "diffusion_model."


@functools.cache
def pins() -> PinBudget:
    """What may be pinned is a property of the machine, so all models of the process share it."""
    return PinBudget.of_this_machine()


class Voice:
    """Says each thing once. Apart from the state, which the session must not keep alive."""

    def __init__(self) -> None:
        self._said: set[str] = set()

    def say(self, sentence: str) -> None:
        if sentence not in self._said:
            self._said.add(sentence)
            LOG.info("DGLS: %s", sentence)

    def say_all(self, sentences: Iterable[str]) -> None:
        for sentence in sentences:
            self.say(sentence)


class Calls:
    """Counts the calls of layers: a model that never calls them as modules is found by this."""

    def __init__(self) -> None:
        self.count = 0

    def __call__(self, _module: torch.nn.Module, _args: tuple[Any, ...]) -> None:
        self.count += 1


class State:
    """Holds the session. The model never points here, so dropping the last patcher frees everything at once."""

    def __init__(self, layers: Layers, model: torch.nn.Module) -> None:
        self.layers = layers
        self.names = tuple(PREFIX + name for name in layers.names)
        """As the whole model has them: "diffusion_model.blocks.3"."""
        self.layer_bytes = sum(
            t.nbytes for module in layers.modules for t in (*module.parameters(), *module.buffers())
        )
        self.rest_bytes = sum(t.nbytes for t in (*model.parameters(), *model.buffers())) - self.layer_bytes
        self.session: Session | None = None
        self.settings: Settings | None = None
        """Of the session, that is of the clone that was loaded last."""
        self.mode = ""
        self.why = ""
        self.loaded_by: weakref.ref[Any] | None = None
        """The clone that was loaded last: the others have no say in unloading."""
        self._model = weakref.ref(model)
        self.voice = Voice()
        self.calls = Calls()
        self._hooks: list[Any] = []
        self._finalizer: weakref.finalize[..., Any] | None = None

    def layer_of(self, key: str) -> int | None:
        """Which layer a weight of the whole model belongs to."""
        return next((i for i, name in enumerate(self.names) if key.startswith(f"{name}.")), None)

    def original(self, key: str) -> torch.Tensor | None:
        """A layer's weight as it came, where a LoRA is baked into the host copy; else None."""
        layer = self.layer_of(key)
        if self.session is None or layer is None:
            return None
        return self.session.original(layer, key.removeprefix(f"{self.names[layer]}."))

    def open(self, settings: Settings, device: torch.device, budget: int) -> Session:
        """The session for these settings, the one at hand where it fits. Nothing is on the device yet."""
        if self.session is not None and self.settings == settings:
            return self.session
        self.close()
        if isinstance(settings.policy, Indices):
            # A safetensors header told their number when the prompt was queued; here it is certain.
            parse_indices(",".join(map(str, settings.policy.layers)), len(self.layers))
        session = Session(
            self.layers.modules,
            device=device,
            budget=budget,
            names=self.layers.names,
            mode="cpu" if device.type == "cpu" else "engine",
            policy=settings.policy,
            slots=None if settings.slots is None else min(settings.slots, len(self.layers)),
            pins=pins(),
            compile_residents=settings.compile,
            log=self.voice.say,
        )
        self.session = session
        self.settings = settings
        self._finalizer = weakref.finalize(self, _end, session, self._model)
        self._finalizer.atexit = False
        return session

    def attach(self) -> None:
        """Into the layers' forwards, whatever stands there now: foreign patches run inside."""
        self.detach()
        if self.session is not None:
            self.session.attach()
            self._hooks = [module.register_forward_pre_hook(self.calls) for module in self.layers.modules]

    def detach(self) -> None:
        for hook in self._hooks:
            hook.remove()
        self._hooks = []
        if self.session is not None:
            self.session.detach()

    def close(self) -> None:
        """The layers are plain modules of the CPU with the weights of the file."""
        self.detach()
        if self._finalizer is not None:
            self._finalizer.detach()
        if self.session is not None:
            self.session.release()
            self.session.restore()
            self.session.close()
        self._finalizer = None
        self.session = None
        self.settings = None

    def report(self) -> Report | None:
        return None if self.session is None else self.session.report()


def _end(session: Session, reference: weakref.ref[torch.nn.Module]) -> None:
    """The layers are the CPU's, with the weights of the file; whoever holds the model next loads it anew."""
    session.detach()
    session.release()
    model: Any = reference()
    if model is not None:
        session.restore()
        if getattr(model, "current_weight_patches_uuid", None) is not None:
            # Loaded, by a patcher that is gone. ComfyUI undoes patches that it does not know before it loads.
            model.current_weight_patches_uuid = uuid.uuid4()
    session.close()
