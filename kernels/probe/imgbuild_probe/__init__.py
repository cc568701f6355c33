"""Whether code that was compiled for this image's GPU runs on the GPU at hand.

Needs no torch: `python -m imgbuild_probe` answers in the time that CUDA takes to start.
"""

from __future__ import annotations

import ctypes
from pathlib import Path

__all__ = ["ProbeError", "run"]
__version__ = "1.0.0"

_LIBRARY = Path(__file__).with_name("libimgbuild_probe.so")


class ProbeError(RuntimeError):
    """CUDA refused: no driver, no device, or no code for it; `code` is the cudaError_t."""

    def __init__(self, code: int, text: str) -> None:
        self.code = code
        super().__init__(text)


def _load() -> ctypes.CDLL:
    library = ctypes.CDLL(str(_LIBRARY))
    library.imgbuild_probe_expected.argtypes = [ctypes.c_uint64]
    library.imgbuild_probe_expected.restype = ctypes.c_uint64
    library.imgbuild_probe_run.argtypes = [
        ctypes.c_int,
        ctypes.c_uint64,
        ctypes.POINTER(ctypes.c_uint64),
        ctypes.POINTER(ctypes.c_int),
    ]
    library.imgbuild_probe_error.argtypes = [ctypes.c_int]
    library.imgbuild_probe_error.restype = ctypes.c_char_p
    return library


_probe = _load()


def run(device: int = 0, seed: int = 0x1B6B) -> dict[str, object]:
    """Run the kernel on a CUDA device; ProbeError when CUDA refuses.

    Keys: `ok` (the sums agree), `capability` ("12.1"), `expected` and `actual` (64-bit sums).
    """
    actual, capability = ctypes.c_uint64(), ctypes.c_int()
    code = _probe.imgbuild_probe_run(device, seed, ctypes.byref(actual), ctypes.byref(capability))
    if code:
        raise ProbeError(code, _probe.imgbuild_probe_error(code).decode())
    expected = _probe.imgbuild_probe_expected(seed)
    return {
        "ok": actual.value == expected,
        "capability": f"{capability.value // 10}.{capability.value % 10}",
        "expected": expected,
        "actual": actual.value,
    }
