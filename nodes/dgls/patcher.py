"""ComfyUI's ModelPatcher, with a model's layers taken out of its hands.

No other seam keeps the weights off the GPU: `ModelPatcher.load()` moves every module. So the layers are hidden
from it, go to the engine's session, and everything else is loaded whole by ComfyUI's own code.
"""

from __future__ import annotations

import logging
import weakref
from typing import TYPE_CHECKING, Any

import comfy.utils
import torch
from comfy.model_patcher import ModelPatcher, wipe_lowvram_weight
from comfy.patcher_extension import WrappersMP

from . import hardware, report
from .engine import DglsError
from .errors import NodeError, NotCalledError
from .families import extract
from .state import State

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    from .settings import Settings

LOG = logging.getLogger("dgls")
WRAPPER = "dgls"
EVERYTHING = 1e32
"""ComfyUI's own word for a budget that nobody set: on a CPU, with --highvram."""
UNLIMITED = 1 << 60
TRACED = 2
"""Passes of a run that are timed under `verbose`; with CFG the second may be of other conditions."""


class DGLSPatcher(ModelPatcher):  # type: ignore[misc]  # ComfyUI has no types
    """A patcher whose layers swap. Clones share one state, and each has its own settings."""

    dgls: State
    dgls_settings: Settings
    dgls_foreign: bool = False
    """Its model is also in the hands of a patcher that knows nothing of swapping."""

    @classmethod
    def adopt(cls, patcher: ModelPatcher, settings: Settings, *, foreign: bool = True) -> DGLSPatcher:
        """A clone that swaps; `patcher` itself is left as it is.

        A dynamic patcher (ComfyUI's DynamicVRAM) has its file read again, since its weights live elsewhere.
        Raises NoBlocksError.
        """
        new: Any = patcher.clone(disable_dynamic=True) if _dynamic(patcher) else patcher.clone()
        if not isinstance(new, DGLSPatcher):
            model = new.model
            state = State(extract(model.diffusion_model), model)
            # A class decides nothing but methods; copying a patcher's 40 attributes here would break with each
            # version that adds one. GGUF loaders have patchers of their own: theirs stay beneath.
            kind = type(new)
            new.__class__ = cls if kind is ModelPatcher else type(f"DGLS{kind.__name__}", (cls, kind), {})
            new.dgls, new.dgls_foreign = state, foreign
        new.dgls_settings = settings
        new.remove_wrappers_with_key(WrappersMP.DIFFUSION_MODEL, WRAPPER)
        new.add_wrapper_with_key(WrappersMP.DIFFUSION_MODEL, WRAPPER, _Watch(new.dgls))
        found: DGLSPatcher = new
        return found

    def clone(self, *args: Any, **kwargs: Any) -> DGLSPatcher:
        new: DGLSPatcher = super().clone(*args, **kwargs)
        new.dgls_settings, new.dgls_foreign = self.dgls_settings, self.dgls_foreign
        new.size = int(super().model_size())  # not what this clone's budget makes of it
        if new.model is self.model:
            new.dgls = self.dgls
        else:  # another GPU's copy, a file read again: a state of its own
            new.dgls = State(extract(new.model.diffusion_model), new.model)
            new.remove_wrappers_with_key(WrappersMP.DIFFUSION_MODEL, WRAPPER)
            new.add_wrapper_with_key(WrappersMP.DIFFUSION_MODEL, WRAPPER, _Watch(new.dgls))
        return new

    @property
    def dgls_mode(self) -> str:
        mode, why = hardware.resolve(self.dgls_settings.mode, self.load_device)
        self.dgls.mode, self.dgls.why = mode, why
        return mode

    @property
    def dgls_swaps(self) -> bool:
        return self.dgls_mode in ("engine", "cpu")

    # -- what ComfyUI asks ------------------------------------------------------------------------
    def model_size(self) -> int:
        """What this model would like to have on the GPU: ComfyUI makes that much room.

        With a budget that is less than the whole: evicting others for the rest would help nobody.
        """
        whole = int(super().model_size())
        state: State | None = self.__dict__.get("dgls")  # ComfyUI asks while it still builds a clone
        if state is None or self.dgls_settings.budget is None or not self.dgls_swaps:
            return whole
        return min(whole, state.rest_bytes + self.dgls_settings.budget)

    def get_ram_usage(self) -> int:
        """For 0.3.75's cache by RAM: the whole model, wherever the budget puts it."""
        return int(super().model_size())

    def loaded_size(self) -> int:
        """What is on the GPU now; the planner changes its mind within the budget, so it is asked each time."""
        if self.dgls.session is None or not self._loaded:
            return int(super().loaded_size())
        return self.dgls.rest_bytes + self.dgls.session.device_bytes

    @property
    def _loaded(self) -> bool:
        return self.model.current_weight_patches_uuid is not None

    # -- load -------------------------------------------------------------------------------------
    def _load_list(self, *args: Any, **kwargs: Any) -> Any:
        """Every module but the layers' own."""
        found = super()._load_list(*args, **kwargs)
        return [entry for entry in found if not self._in_layer(entry)] if self.dgls_swaps else found

    def _in_layer(self, entry: tuple[Any, ...]) -> bool:
        # (…, name, module, params): how many numbers come first depends on the version.
        name = entry[-3]
        return name in self.dgls.names or self.dgls.layer_of(f"{name}.") is not None

    def load(
        self,
        device_to: torch.device | None = None,
        lowvram_model_memory: float = 0,
        force_patch_weights: bool = False,
        full_load: bool = False,
    ) -> None:
        self.dgls.voice.say_all(self.dgls_settings.notes)
        if not self.dgls_swaps:
            if self.dgls.mode == "unified":
                self.dgls.voice.say(self.dgls.why)
                lowvram_model_memory, full_load = EVERYTHING, True  # one copy, and whole
            super().load(device_to, lowvram_model_memory, force_patch_weights, full_load)
            return
        device = device_to if device_to is not None else self.load_device
        with self.use_ejected():
            # Everything else fits by decree: it is small beside the layers, and used before and after them all.
            super().load(device_to, EVERYTHING, force_patch_weights, full_load=False)
            self._rest_to(device)
            limit = EVERYTHING if full_load else lowvram_model_memory
            session = self.dgls.open(self.dgls_settings, device, 0)
            session.release()
            session.set_budget(self._budget(limit))
            self._bake(device)
            self._dress()
            self.dgls.attach()
            session.prepare()
            self.dgls.loaded_by = weakref.ref(self)
            self.model.model_loaded_weight_memory = self.loaded_size()
            LOG.info(
                "DGLS: %s: %.0f MB on %s, %.0f MB swapped",
                self.dgls.layers.model,
                self.loaded_size() / 2**20,
                device,
                max(self.dgls.layer_bytes - session.resident_bytes, 0) / 2**20,
            )

    def _budget(self, limit: float) -> int:
        """Bytes for layers, of what ComfyUI has for the model."""
        session = self.dgls.session
        assert session is not None
        asked = self.dgls_settings.budget
        # ComfyUI's estimate is careful: where it leaves nothing, one layer at a time is still tried.
        left = max(min(int(limit), UNLIMITED) - self.dgls.rest_bytes, 2 * session.minimum_budget)
        return left if asked is None else min(left, asked)

    def _dress(self) -> None:
        """What ComfyUI's `load` does to a module beside moving its weights."""
        for prefix, layer in zip(self.dgls.names, self.dgls.layers.modules, strict=True):
            for name, module in layer.named_modules(prefix=prefix):
                if not hasattr(module, "comfy_cast_weights"):
                    continue
                wipe_lowvram_weight(module)
                module.comfy_force_cast_weights = self.force_cast_weights
                if self.force_cast_weights:
                    module.prev_comfy_cast_weights = module.comfy_cast_weights
                    module.comfy_cast_weights = True
                for kind in ("weight", "bias"):
                    functions = self.weight_wrapper_patches.get(f"{name}.{kind}")
                    if functions:
                        setattr(module, f"{kind}_function", list(functions))
                module.comfy_patched_weights = True  # LoRA is in the weights themselves

    def _rest_to(self, device: torch.device) -> None:
        """What ComfyUI's list leaves out: weights of modules that have modules in them, and buffers."""
        inside = {id(m) for layer in self.dgls.layers.modules for m in layer.modules()}
        with torch.inference_mode(mode=False), torch.no_grad():
            for module in self.model.modules():
                if id(module) in inside:
                    continue
                for parameter in module.parameters(recurse=False):
                    if parameter.device != device:
                        parameter.data = parameter.data.to(device)
                for name, buffer in module.named_buffers(recurse=False):
                    if buffer.device != device:
                        module._buffers[name] = buffer.to(device)  # noqa: SLF001  # torch's `to` does the same

    def partially_load(
        self, device_to: torch.device, extra_memory: float = 0, force_patch_weights: bool = False
    ) -> float:
        if not self.dgls_swaps:
            if self.dgls.session is not None:
                self.unpatch_model(self.offload_device)
                self.dgls.close()
            return float(super().partially_load(device_to, extra_memory, force_patch_weights))
        with self.use_ejected(skip_and_inject_on_exit_only=True):
            current = self.model.current_weight_patches_uuid
            # Loaded, and not by us: ComfyUI's own patcher, or a clone with `mode: off`.
            strange = self.dgls.session is None
            again = current is not None and (strange or current != self.patches_uuid or force_patch_weights)
            used = self.loaded_size()
            # Before each run ComfyUI puts object patches on anew, over any forward that was set after them.
            self.dgls.detach()
            self.unpatch_model(self.offload_device, unpatch_weights=again)
            self.patch_model(load_weights=False)
            try:
                if current is not None and not again and self.dgls.settings == self.dgls_settings:
                    self._resize(extra_memory)
                else:
                    self.load(device_to, used + extra_memory, force_patch_weights)
            except BaseException as error:
                self.detach()
                if isinstance(error, DglsError):
                    raise NodeError(f"DGLS: {error}") from error
                raise
            return self.loaded_size() - used

    def _resize(self, extra: float) -> None:
        """Loaded already: for the next run there is so much more, or less, than it holds."""
        session = self.dgls.session
        assert session is not None
        self.dgls.attach()
        self.dgls.loaded_by = weakref.ref(self)
        if extra < 0:
            session.shrink(int(-extra))
        elif extra > 2 * session.minimum_budget and session.resident_bytes < self.dgls.layer_bytes:
            # For less, planning anew costs more than it gains: free memory is never twice the same.
            session.set_budget(self._budget(self.loaded_size() + extra))
        session.prepare()
        self.apply_hooks(self.forced_hooks, force_apply=True)

    # -- LoRA and hooks ---------------------------------------------------------------------------
    def _bake(self, device: torch.device) -> None:
        """LoRA and its kin into the host copy, once for each set of patches."""
        session = self.dgls.session
        assert session is not None
        wanted = {key for key in self.patches if self.dgls.layer_of(key) is not None}
        if not wanted:
            session.restore()
            return
        if session.rewrite_key != self.patches_uuid:
            session.restore()

        def change(layer: int, name: str, original: Tensor) -> Tensor | None:
            key = f"{self.dgls.names[layer]}.{name}"
            return self._patched(key, original, device) if key in wanted else None

        session.rewrite(self.patches_uuid, change)

    def _patched(self, key: str, original: Tensor, device: torch.device) -> Tensor:
        """As ComfyUI computes it, to the bit: by its own function, on a stand-in for the parameter."""
        held = comfy.utils.get_attr(self.model, key)
        comfy.utils.set_attr(self.model, key, torch.nn.Parameter(original, requires_grad=False))
        try:
            super().patch_weight_to_device(key, device_to=device)
            changed: Tensor = comfy.utils.get_attr(self.model, key).detach()
        finally:
            comfy.utils.set_attr(self.model, key, held)
            self.backup.pop(key, None)
        return changed

    def get_key_patches(self, filter_prefix: str | None = None) -> Any:
        """Merging starts from the weights as they came, not from those with a LoRA in them."""
        found = super().get_key_patches(filter_prefix)
        for key, patches in found.items():
            original = self.dgls.original(key)
            if original is not None:
                patches[0] = (original, *patches[0][1:])
        return found

    def patch_hooks(self, hooks: Any) -> None:
        """Weight hooks write into parameters: those of the host, and the device's are copied anew."""
        if hooks is not None or self.hook_backup:
            self._home()
        super().patch_hooks(hooks)

    def unpatch_hooks(self, whitelist_keys_set: set[str] | None = None) -> None:
        if self.hook_backup:
            self._home()
        super().unpatch_hooks(whitelist_keys_set)

    def _home(self) -> None:
        """Every layer's parameters are the host's; the next forward prepares the device again."""
        if self.dgls.session is not None:
            self.dgls.session.release()

    # -- unload -----------------------------------------------------------------------------------
    def partially_unload(
        self, device_to: torch.device, memory_to_free: float = 0, force_patch_weights: bool = False
    ) -> float:
        session = self.dgls.session
        if session is None or not self.dgls_swaps:
            return float(super().partially_unload(device_to, memory_to_free, force_patch_weights))
        freed = session.shrink(int(min(memory_to_free, UNLIMITED)))
        self.model.model_loaded_weight_memory = self.loaded_size()
        return freed

    def unpatch_model(self, device_to: torch.device | None = None, unpatch_weights: bool = True) -> None:
        if unpatch_weights and self.dgls.session is not None:
            self.dgls.detach()
            self.dgls.session.release()
        super().unpatch_model(device_to, unpatch_weights)

    def detach(self, unpatch_all: bool = True) -> Any:
        if "dgls" not in self.__dict__:  # it dies before it was whole
            return self.model
        mine = self.dgls.loaded_by is not None and self.dgls.loaded_by() is self
        if not unpatch_all and self.dgls_foreign and mine and self.dgls.session is not None:
            # A clone takes over that may move weights itself: it gets a model without ours in it.
            found = super().detach(unpatch_all=True)
            self.dgls.close()
            return found
        return super().detach(unpatch_all)

    # -- a run ------------------------------------------------------------------------------------
    def pre_run(self) -> None:
        if self.dgls_settings.verbose and self.dgls.session is not None:
            self.dgls.session.trace(TRACED)
        super().pre_run()

    def cleanup(self) -> None:
        super().cleanup()
        if self.dgls_settings.verbose and self.dgls.session is not None:
            LOG.info("%s", report.text(self.dgls.session.report()))


class _Watch:
    """Around the diffusion model: an error of the engine in words, and models that never call their blocks."""

    def __init__(self, state: State) -> None:
        self._state = state

    def __call__(self, executor: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        before = self._state.calls.count
        try:
            return executor(*args, **kwargs)
        except DglsError as error:
            raise NodeError(f"DGLS: {error}") from error
        except RuntimeError as error:
            session = self._state.session
            if (
                session is None
                or isinstance(error, torch.OutOfMemoryError)
                or self._state.calls.count > before
            ):
                raise
            raise NotCalledError(
                f"DGLS: {self._state.layers.model} failed before any of its {len(self._state.layers)} layers "
                f"({self._state.layers.names[0]}, …) was called: {error}. If it never calls them as modules, they "
                "cannot be swapped: load it with Load Diffusion Model"
            ) from error


def _dynamic(patcher: ModelPatcher) -> bool:
    return bool(getattr(patcher, "is_dynamic", lambda: False)())
