"""CUDA's errors that a machine can be mended of: what each means in a container, and what helps.

The numbers are the same in the runtime (cudaError_t) and in the driver (CUresult).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from comfyrun.preflight.finding import Cause

if TYPE_CHECKING:
    from collections.abc import Mapping

OUT_OF_MEMORY = 2

REMEDIES: Mapping[int, str] = {
    OUT_OF_MEMORY: "the GPU's memory is full: nvidia-smi on the host names who holds it",
    # Also what the runtime says when libcuda.so.1 is missing.
    35: "the container needs NVIDIA_DRIVER_CAPABILITIES=compute,utility, or the host a newer driver",
    46: "another process has the GPU for itself: on the host, nvidia-smi -c DEFAULT ends exclusive mode",
    100: "give the container the GPU: --gpus all (Podman: --device nvidia.com/gpu=all)",
    101: "CUDA_VISIBLE_DEVICES names a GPU that is not there",
    209: "the image holds no code for this GPU: use the image with the tag of its target",
    214: "the GPU reports a memory error that cannot be corrected: nvidia-smi -q -d ECC; reset it or reboot the host",
    802: "the machine's NVSwitches are not set up: on the host, sudo systemctl start nvidia-fabricmanager",
    803: "the driver's files in the container are not those of the running driver: reboot the host after an update, "
    "or write the CDI file again: sudo nvidia-ctk cdi generate --output=/etc/cdi/nvidia.yaml",
    804: "a CUDA compatibility package is in the way, which this GPU does not support: install a newer driver on the host",
    805: "the MPS daemon does not answer: unset CUDA_MPS_PIPE_DIRECTORY, or start nvidia-cuda-mps-control on the host",
    999: "on the host: sudo nvidia-modprobe -u -c=0, then start the container anew; it also lost its GPU if "
    "systemctl daemon-reload ran while it was up",
}


def remedy(code: int | None) -> str:
    return REMEDIES.get(code or 0, "on the host: sudo dmesg | grep -iE 'nvrm|xid' says what the driver saw")


def cause(code: int | None) -> Cause:
    """Full memory is a matter of the moment; everything else is the hardware's, or its driver's."""
    return Cause.MACHINE if code == OUT_OF_MEMORY else Cause.HARDWARE
