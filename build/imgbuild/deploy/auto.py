"""Which target this machine's GPU asks for."""

from __future__ import annotations

from typing import TYPE_CHECKING

from imgbuild.errors import SelectionError

if TYPE_CHECKING:
    from imgbuild.hardware import Hardware
    from imgbuild.matrix import Matrix, Target


def target_for(matrix: Matrix, hardware: Hardware, platform: str) -> tuple[Target, str]:
    """The target and why. SelectionError where nothing fits, or several do: never a guess."""
    without = next((t.name for t in matrix.targets.values() if t.gpu is None), None)
    on_cpu = f"--target {without} runs on the CPU" if without else "--gpu none runs an image on the CPU"
    if not hardware.gpus:
        why = f" ({hardware.problem})" if hardware.problem else ""
        why = why or (
            f" ({', '.join(hardware.unsliced)} is in MIG mode without a slice)" if hardware.unsliced else ""
        )
        raise SelectionError(f"this machine has no NVIDIA GPU that can be used{why}", hint=on_cpu)
    fitting = {
        t.name: gpu
        for gpu in hardware.gpus
        for t in matrix.targets.values()
        if t.gpu is not None and t.gpu.compute_capability == gpu.capability and t.platform == platform
    }
    if len(fitting) == 1:
        [(name, gpu)] = fitting.items()
        return matrix.targets[name], str(gpu)
    found = ", ".join(dict.fromkeys(map(str, hardware.gpus)))
    if fitting:
        raise SelectionError(
            f"several targets fit this machine's GPUs ({found})",
            hint=" or ".join(f"--target {name} --gpu {gpu.uuid}" for name, gpu in sorted(fitting.items())),
        )
    raise SelectionError(
        f"no target fits {found} on {platform}", hint=f"imgbuild targets lists them; {on_cpu}"
    )
