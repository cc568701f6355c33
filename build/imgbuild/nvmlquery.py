"""Asks NVML which GPUs there are, and prints one line of JSON. A program of its own: a driver that hangs, hangs it.

{"driver", "cuda" (13000), "gpus": [{"name", "uuid", "capability", "total" (bytes or null), "unified", "mig"}],
"unsliced" (names of GPUs in MIG mode without a slice), "problem"}. A GPU in MIG mode is not listed, its slices are.
"""

from __future__ import annotations

import importlib
import json
import sys
from typing import Any


def main() -> int:
    found: dict[str, Any] = {"driver": None, "cuda": None, "gpus": [], "unsliced": [], "problem": None}
    try:
        pynvml = importlib.import_module("pynvml")  # nvidia-ml-py, which is optional
    except ImportError:
        found["problem"] = "nvidia-ml-py is not installed"
    else:
        _fill(found, pynvml)
    sys.stdout.write(json.dumps(found) + "\n")
    return 0


def _fill(found: dict[str, Any], nvml: Any) -> None:
    try:
        nvml.nvmlInit()
        count = nvml.nvmlDeviceGetCount()
    except nvml.NVMLError as error:
        found["problem"] = str(error)
        return
    found["driver"] = _asked(nvml, nvml.nvmlSystemGetDriverVersion)
    found["cuda"] = _asked(nvml, nvml.nvmlSystemGetCudaDriverVersion_v2)
    for index in range(count):
        try:
            _one(found, nvml, nvml.nvmlDeviceGetHandleByIndex(index))
        except nvml.NVMLError as error:  # one that fell off the bus; the others are still there
            found["problem"] = f"GPU {index}: {error}"


def _one(found: dict[str, Any], nvml: Any, device: Any) -> None:
    name = nvml.nvmlDeviceGetName(device)
    major, minor = nvml.nvmlDeviceGetCudaComputeCapability(device)
    capability = f"{major}.{minor}"
    mode = _asked(nvml, nvml.nvmlDeviceGetMigMode, device)
    if not mode or not mode[0]:
        found["gpus"].append(_described(nvml, device, name, capability, mig=False))
        return
    slices = []
    for index in range(_asked(nvml, nvml.nvmlDeviceGetMaxMigDeviceCount, device) or 0):
        part = _asked(nvml, nvml.nvmlDeviceGetMigDeviceHandleByIndex, device, index)
        if part is not None:
            own = _asked(nvml, nvml.nvmlDeviceGetName, part) or f"{name} MIG"
            slices.append(_described(nvml, part, own, capability, mig=True))
    found["gpus"] += slices
    if not slices:
        found["unsliced"].append(name)


def _described(nvml: Any, device: Any, name: str, capability: str, *, mig: bool) -> dict[str, Any]:
    total, unified = None, False
    try:
        total = nvml.nvmlDeviceGetMemoryInfo(device).total
    except nvml.NVMLError_NotSupported:  # GB10: one pool for CPU and GPU, which NVML does not count
        unified = not mig
    except nvml.NVMLError:
        pass
    uuid = nvml.nvmlDeviceGetUUID(device)
    return {
        "name": name,
        "uuid": uuid,
        "capability": capability,
        "total": total,
        "unified": unified,
        "mig": mig,
    }


def _asked(nvml: Any, function: Any, *arguments: Any) -> Any:
    try:
        return function(*arguments)
    except nvml.NVMLError:
        return None


if __name__ == "__main__":
    sys.exit(main())
