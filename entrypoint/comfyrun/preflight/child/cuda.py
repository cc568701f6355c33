"""Asks the CUDA driver which GPUs it would use, in its own order. With --free: how much the first has free.

Prints an object as `comfyrun.preflight.gpus.read` takes it. Free memory needs a context, which takes
memory and time of its own: only where nothing else knows it.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import sys
from ctypes import byref, c_char, c_char_p, c_int, c_size_t, c_ubyte, c_void_p
from typing import Any

LIBRARY = "libcuda.so.1"
MAJOR, MINOR = 75, 76


class CudaError(Exception):
    def __init__(self, code: int, text: str) -> None:
        self.code = code
        super().__init__(text)


class Cuda:
    def __init__(self, library: Any) -> None:
        self._library = library

    def call(self, name: str, *arguments: object) -> None:
        try:
            function = getattr(self._library, name)
        except AttributeError:
            raise CudaError(0, f"{name} is missing") from None
        if code := function(*arguments):
            raise CudaError(code, f"{name}: {self._words(code)}")

    def whole(self, name: str, *arguments: object) -> int:
        value = c_int()
        self.call(name, byref(value), *arguments)
        return value.value

    def _words(self, code: int) -> str:
        text = c_char_p()
        with contextlib.suppress(AttributeError):
            self._library.cuGetErrorString(code, byref(text))
        return f"{text.value.decode(errors='replace') if text.value else 'error'} ({code})"

    def report(self, *, free: bool) -> dict[str, Any]:
        found: dict[str, Any] = {"cuda": None, "gpus": [], "problem": None, "code": None}
        try:
            found["cuda"] = self.whole("cuDriverGetVersion")  # also without a device
            self.call("cuInit", 0)
            for index in range(self.whole("cuDeviceGetCount")):
                device = self.whole("cuDeviceGet", index)
                found["gpus"].append(self._one(device))
                if free and index == 0:
                    found["gpus"][0]["free"] = self._free(device)
        except CudaError as error:
            found |= {"problem": str(error), "code": error.code}
        return found

    def _one(self, device: int) -> dict[str, Any]:
        name = (c_char * 256)()
        self.call("cuDeviceGetName", name, 256, device)
        uuid = (c_ubyte * 16)()
        # The second version gives a slice's own, the first that of its GPU.
        function = "cuDeviceGetUuid_v2" if hasattr(self._library, "cuDeviceGetUuid_v2") else "cuDeviceGetUuid"
        self.call(function, uuid, device)
        total = c_size_t()
        self.call("cuDeviceTotalMem_v2", byref(total), device)
        major = self.whole("cuDeviceGetAttribute", MAJOR, device)
        minor = self.whole("cuDeviceGetAttribute", MINOR, device)
        return {
            "name": bytes(name.value).decode(errors="replace"),
            "uuid": _spelled(bytes(uuid)),
            "capability": f"{major}.{minor}",
            "total": total.value,
        }

    def _free(self, device: int) -> int:
        context, free, total = c_void_p(), c_size_t(), c_size_t()
        self.call("cuDevicePrimaryCtxRetain", byref(context), device)
        self.call("cuCtxSetCurrent", context)
        self.call("cuMemGetInfo_v2", byref(free), byref(total))
        return free.value


def _spelled(raw: bytes) -> str:
    text = raw.hex()
    return "GPU-" + "-".join((text[:8], text[8:12], text[12:16], text[16:20], text[20:]))


def main() -> None:
    try:
        library = ctypes.CDLL(LIBRARY)
    except OSError as error:
        print(json.dumps({"problem": str(error)}))
        return
    print(json.dumps(Cuda(library).report(free="--free" in sys.argv[1:])))


if __name__ == "__main__":
    main()
