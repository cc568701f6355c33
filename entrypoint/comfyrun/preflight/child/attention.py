"""Compares one kernel with plain attention on the GPU: by itself, and as ComfyUI calls it, with a mask too.

    python -P attention.py --tree=/opt/comfyui --attention=sage [--import=MODULE ...]

The only program of comfyrun that imports torch and ComfyUI. Prints an object as
`comfyrun.preflight.verdicts.parse` takes it; whatever torch and others print goes to stderr.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import sys
import time
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

HEADS = 2
BATCH = 2
LENGTHS = ((1, 1), (17, 17), (200, 77), (129, 1000))
"""Of queries and keys: blocks are of 32 to 256 rows, and these are shorter than any, or end within one."""
HEAD_SIZES = (64, 128)
DTYPES = ("bfloat16", "float16")


@dataclass(frozen=True)
class Tolerance:
    """An element may differ by `relative`·A + `absolute`, with A = softmax(QKᵀ)·|V|: what errors scale with."""

    relative: float
    absolute: float
    cosine: float


# tests/gpu/measures.py has where they come from. `int8` is that of SageAttention's fp8 kernels, the coarsest.
TOLERANCES = {
    "flash bfloat16": Tolerance(3 / 2**8, 1e-3, 0.99995),
    "flash float16": Tolerance(3 / 2**11, 2e-4, 0.999995),
    "int8": Tolerance(0.2, 5e-3, 0.998),
}


class DiffersError(Exception):
    """The kernel computes something else."""


class FailsError(Exception):
    """The kernel cannot be used."""


class UnknownError(Exception):
    """It cannot be tried here and now."""


def tolerance(attention: str, dtype: str) -> Tolerance:
    return TOLERANCES[f"flash {dtype}" if attention == "flash" else "int8"]


def operator(attention: str) -> Callable[[Any, Any, Any], Any] | None:
    """The kernel's own function, of tensors (batch, heads, length, head size); None where only ComfyUI calls it."""
    match attention:
        case "sage":
            sageattn = import_module("sageattention").sageattn
            return lambda q, k, v: sageattn(q, k, v, is_causal=False, tensor_layout="HND")
        case "flash":
            flash = import_module("flash_attn").flash_attn_func

            def attend(q: Any, k: Any, v: Any) -> Any:
                q, k, v = (t.transpose(1, 2) for t in (q, k, v))
                return flash(q, k, v, dropout_p=0.0, causal=False).transpose(1, 2)

            return attend
        case _:
            return None


def comfyui(tree: str, attention: str, device: str) -> Callable[..., Any]:
    """ComfyUI's own function of that name, of tensors (batch, length, heads times head size)."""
    sys.path.insert(0, tree)
    sys.argv = ["main.py", *(["--cpu"] if device == "cpu" else [])]
    import_module("comfy.options").enable_args_parsing()  # its parser reads them at import
    module = import_module("comfy.ldm.modules.attention")
    registered = getattr(module, "REGISTERED_ATTENTION_FUNCTIONS", {})
    if attention not in registered:
        raise FailsError(f"ComfyUI has no attention function {attention!r}: it cannot import the kernel")
    found: Callable[..., Any] = registered[attention]
    return found


def tensors(
    torch: Any, device: str, lengths: tuple[int, int], head_size: int, dtype: str
) -> tuple[Any, Any, Any]:
    """Normally distributed, the same ones each time."""
    generator = torch.Generator(device).manual_seed(20261121)
    rows = (lengths[0], lengths[1], lengths[1])
    q, k, v = (
        torch.randn(BATCH, HEADS, n, head_size, device=device, generator=generator).to(getattr(torch, dtype))
        for n in rows
    )
    return q, k, v


def reference(torch: Any, q: Any, k: Any, v: Any, mask: Any = None) -> tuple[Any, Any]:
    """Attention in fp32 by torch's plain implementation, and A (see Tolerance)."""
    q, k, v = q.float(), k.float(), v.float()
    mask = None if mask is None else mask.float()
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        both = torch.nn.functional.scaled_dot_product_attention(
            q, k, torch.cat([v, v.abs()], -1), attn_mask=mask
        )
    wanted, scale = both.split(v.shape[-1], dim=-1)
    return wanted, scale


def compare(torch: Any, what: str, got: Any, wanted: Any, scale: Any, allowed: Tolerance) -> None:
    """Raises DiffersError, saying by how much."""
    if got.shape != wanted.shape:
        raise DiffersError(f"{what}: shape {tuple(got.shape)} instead of {tuple(wanted.shape)}")
    got = got.float()
    if not bool(got.isfinite().all()):
        raise DiffersError(f"{what}: NaN or infinite values")
    share = float(((got - wanted).abs() / (allowed.relative * scale + allowed.absolute)).max())
    cosine = float(
        torch.nn.functional.cosine_similarity(got.double().flatten(), wanted.double().flatten(), dim=0)
    )
    if not (share <= 1 and cosine >= allowed.cosine):
        raise DiffersError(f"{what}: {share:.1f} times the error that is allowed, cosine {cosine:.4f}")


class Overheard(logging.Handler):
    """What ComfyUI logs when a kernel fails: it goes on with plain attention, call by call."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())


def flat(tensor: Any) -> Any:
    """(batch, heads, length, head size) as ComfyUI's models hold it."""
    return tensor.transpose(1, 2).reshape(tensor.shape[0], tensor.shape[2], -1)


def by_itself(torch: Any, device: str, attention: str) -> int:
    attend = operator(attention)
    if attend is None:
        return 0
    made = 0
    for case in cases():
        q, k, v = tensors(torch, device, *case)
        wanted, scale = reference(torch, q, k, v)
        compare(torch, name(*case), attend(q, k, v), wanted, scale, tolerance(attention, case[2]))
        made += 1
    return made


def through_comfyui(torch: Any, device: str, attention: str, function: Callable[..., Any]) -> int:
    made = 0
    overheard = Overheard()
    logging.getLogger().addHandler(overheard)
    for case in cases():
        lengths, _, dtype = case
        q, k, v = tensors(torch, device, *case)
        allowed = tolerance(attention, dtype)
        wanted, scale = reference(torch, q, k, v)
        overheard.lines.clear()
        got = function(flat(q), flat(k), flat(v), HEADS)
        if overheard.lines:
            raise FailsError(f"ComfyUI falls back at every call: {overheard.lines[0]}")
        compare(torch, f"as ComfyUI calls it, {name(*case)}", got, flat(wanted), flat(scale), allowed)
        made += 1
        if lengths[1] == 1:
            continue  # nothing could be hidden
        # With a mask it may well take another attention: that is right, ignoring the mask is not.
        mask = masked(torch, device, lengths, dtype)
        wanted, scale = reference(torch, q, k, v, mask)
        got = function(flat(q), flat(k), flat(v), HEADS, mask=mask)
        compare(torch, f"with a mask, {name(*case)}", got, flat(wanted), flat(scale), allowed)
        made += 1
    return made


def masked(torch: Any, device: str, lengths: tuple[int, int], dtype: str) -> Any:
    """Every other key hidden, and the second half of them."""
    kind = getattr(torch, dtype)
    hidden = torch.arange(lengths[1], device=device)
    hidden = (hidden % 2 == 1) | (hidden >= (lengths[1] + 1) // 2)
    row = torch.zeros(lengths[1], dtype=kind, device=device).masked_fill(hidden, torch.finfo(kind).min)
    return row.expand(lengths).contiguous()


def cases() -> Iterator[tuple[tuple[int, int], int, str]]:
    for lengths in LENGTHS:
        for head_size in HEAD_SIZES:
            for dtype in DTYPES:
                yield lengths, head_size, dtype


def name(lengths: tuple[int, int], head_size: int, dtype: str) -> str:
    return f"{dtype}, {lengths[0]} x {lengths[1]}, heads of {head_size}"


def examine(tree: str, attention: str, imports: list[str], device: str) -> str:
    """One line on how well it agrees. Raises one of the three errors above, or whatever the kernel raises."""
    for module in imports:
        try:
            import_module(module)
        except Exception as error:  # noqa: BLE001  (whatever a broken library raises)
            raise FailsError(f"{module} does not import: {error}") from None
    torch = import_module("torch")
    if device != "cpu" and not torch.cuda.is_available():
        raise UnknownError("torch sees no GPU")
    with torch.inference_mode():
        try:
            made = by_itself(torch, device, attention)
            made += through_comfyui(torch, device, attention, comfyui(tree, attention, device))
            if device != "cpu":
                torch.cuda.synchronize()
        except torch.OutOfMemoryError as error:
            raise UnknownError(f"no GPU memory is left: {error}") from None
    return f"agrees with plain attention in {made} comparisons"


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--tree", required=True)
    parser.add_argument("--attention", required=True)
    parser.add_argument("--import", dest="imports", action="append", default=[])
    parser.add_argument("--device", default="cuda:0")  # with its index: sageattn looks the GPU up by it
    given = parser.parse_args()
    answer = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    begin = time.monotonic()
    try:
        outcome, detail = "agrees", examine(given.tree, given.attention, given.imports, given.device)
    except DiffersError as error:
        outcome, detail = "differs", f"it computes something else ({error})"
    except UnknownError as error:
        outcome, detail = "unknown", str(error)
    except (Exception, SystemExit) as error:  # noqa: BLE001  (foreign code; ComfyUI exits when an import fails)
        outcome, detail = (
            "fails",
            str(error) if isinstance(error, FailsError) else f"{type(error).__name__}: {error}",
        )
    detail = " ".join(detail.split())[:400]
    seconds = round(time.monotonic() - begin, 2)
    print(json.dumps({"schema": 1, "outcome": outcome, "detail": detail, "seconds": seconds}), file=answer)
    answer.flush()
    # Without a word from destructors: CUDA's have crashed programs that were done.
    os._exit(0)


if __name__ == "__main__":
    main()
