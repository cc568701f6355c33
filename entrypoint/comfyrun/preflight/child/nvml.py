"""Asks NVML which GPUs there are. Prints an object as `comfyrun.preflight.gpus.read` takes it."""

from __future__ import annotations

import ctypes
import json
from ctypes import byref, c_char, c_int, c_uint, c_ulonglong, c_void_p
from typing import Any

LIBRARY = "libnvidia-ml.so.1"
TOO_SMALL = 7
UNKNOWN = (1 << 64) - 1


class Memory(ctypes.Structure):
    _fields_ = (("total", c_ulonglong), ("free", c_ulonglong), ("used", c_ulonglong))


class Process(ctypes.Structure):
    _fields_ = (("pid", c_uint), ("used", c_ulonglong), ("instance", c_uint), ("compute", c_uint))


class NvmlError(Exception):
    pass


class Nvml:
    def __init__(self, library: Any) -> None:
        self._library = library

    def call(self, name: str, *arguments: object) -> None:
        try:
            function = getattr(self._library, name)
        except AttributeError:
            raise NvmlError(f"{name} is missing") from None
        if code := function(*arguments):
            raise NvmlError(f"{name}: {self._words(code)}")

    def text(self, name: str, *arguments: object, length: int = 96) -> str:
        buffer = (c_char * length)()
        self.call(name, *arguments, buffer, c_uint(length))
        return bytes(buffer.value).decode(errors="replace")

    def whole(self, name: str, *arguments: object) -> int:
        value = c_uint()
        self.call(name, *arguments, byref(value))
        return value.value

    def _words(self, code: int) -> str:
        try:
            self._library.nvmlErrorString.restype = ctypes.c_char_p
            said = self._library.nvmlErrorString(code)
        except AttributeError:
            said = None
        return f"{said.decode(errors='replace') if isinstance(said, bytes) else 'error'} ({code})"

    def report(self) -> dict[str, Any]:
        found: dict[str, Any] = {"driver": None, "cuda": None, "gpus": [], "unsliced": [], "problem": None}
        try:
            self.call("nvmlInit_v2")
            count = self.whole("nvmlDeviceGetCount_v2")
        except NvmlError as error:
            return {**found, "problem": str(error)}
        found["driver"] = _try(self.text, "nvmlSystemGetDriverVersion")
        version = c_int()
        if _try(self.call, "nvmlSystemGetCudaDriverVersion_v2", byref(version), failed=NvmlError) is None:
            found["cuda"] = version.value
        for index in range(count):
            try:
                device = c_void_p()
                self.call("nvmlDeviceGetHandleByIndex_v2", c_uint(index), byref(device))
                self._add(found, device)
            except NvmlError as error:
                # One that another container has, or one that fell off the bus.
                found["problem"] = f"GPU {index}: {error}"
        return found

    def _add(self, found: dict[str, Any], device: c_void_p) -> None:
        name = self.text("nvmlDeviceGetName", device)
        major, minor = c_int(), c_int()
        self.call("nvmlDeviceGetCudaComputeCapability", device, byref(major), byref(minor))
        common = {"capability": f"{major.value}.{minor.value}", "display": self._display(device)}
        current, pending = c_uint(), c_uint()
        asked = _try(
            self.call, "nvmlDeviceGetMigMode", device, byref(current), byref(pending), failed=NvmlError
        )
        if asked is NvmlError or not current.value:
            found["gpus"].append({**common, **self._one(device, name)})
            return
        slices = list(self._slices(device))
        if not slices:
            found["unsliced"].append(name)
        for one in slices:
            # The name of a slice names its GPU already ("NVIDIA H100 80GB HBM3 MIG 1g.10gb").
            own = _try(self.text, "nvmlDeviceGetName", one) or f"{name} MIG"
            found["gpus"].append({**common, **self._one(one, own), "mig": True})

    def _slices(self, device: c_void_p) -> list[c_void_p]:
        found = []
        for index in range(_try(self.whole, "nvmlDeviceGetMaxMigDeviceCount", device) or 0):
            one = c_void_p()
            name = "nvmlDeviceGetMigDeviceHandleByIndex"
            if _try(self.call, name, device, c_uint(index), byref(one), failed=NvmlError) is None:
                found.append(one)
        return found

    def _one(self, device: c_void_p, name: str) -> dict[str, Any]:
        memory = Memory()
        known = _try(self.call, "nvmlDeviceGetMemoryInfo", device, byref(memory), failed=NvmlError) is None
        return {
            "name": name,
            "uuid": self.text("nvmlDeviceGetUUID", device),
            "total": memory.total if known else None,
            "free": memory.free if known else None,
            "holders": self._holders(device),
        }

    def _display(self, device: c_void_p) -> bool | None:
        found = _try(self.whole, "nvmlDeviceGetDisplayActive", device)
        return None if found is None else bool(found)

    def _holders(self, device: c_void_p) -> list[dict[str, Any]]:
        holders: dict[int, dict[str, Any]] = {}
        for kind in ("Compute", "Graphics"):
            for process in self._processes(f"nvmlDeviceGet{kind}RunningProcesses_v3", device):
                used = None if process.used == UNKNOWN else process.used
                name = _try(self.text, "nvmlSystemGetProcessName", c_uint(process.pid), length=1024)
                holders[process.pid] = {"pid": process.pid, "used": used, "name": name}
        return list(holders.values())

    def _processes(self, name: str, device: c_void_p) -> list[Process]:
        count = c_uint(64)
        for _ in range(3):  # more may have started meanwhile
            room = (Process * count.value)()
            try:
                code = getattr(self._library, name)(device, byref(count), room)
            except AttributeError:
                return []
            if not code:
                return list(room[: count.value])
            if code != TOO_SMALL:
                return []
            count = c_uint(count.value * 2 + 8)
        return []


def _try(function: Any, *arguments: object, failed: Any = None, **options: object) -> Any:
    try:
        return function(*arguments, **options)
    except NvmlError:
        return failed


def main() -> None:
    try:
        library = ctypes.CDLL(LIBRARY)
    except OSError as error:
        print(json.dumps({"problem": str(error)}))
        return
    print(json.dumps(Nvml(library).report()))


if __name__ == "__main__":
    main()
