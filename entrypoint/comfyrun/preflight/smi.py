"""What nvidia-smi prints, as values."""

from __future__ import annotations

import csv
import re
from dataclasses import replace

from comfyrun.preflight.gpus import Answer, Gpu, Holder, capability, driver_version, program
from comfyrun.preflight.words import one_line

GPUS = (
    "nvidia-smi",
    "--query-gpu=name,uuid,compute_cap,memory.total,memory.free,driver_version,mig.mode.current,display_active",
    "--format=csv,noheader,nounits",
)
HOLDERS = (
    "nvidia-smi",
    "--query-compute-apps=gpu_uuid,pid,process_name,used_memory",
    "--format=csv,noheader,nounits",
)
SLICES = ("nvidia-smi", "-L")

_COLUMNS = 8
_HOLDER_COLUMNS = 4
_GPU_LINE = re.compile(r"GPU \d+: .*\(UUID: (GPU-[0-9A-Za-z-]+)\)")
_SLICE_LINE = re.compile(r"\s+(MIG \S+)\s+Device\s+\d+: \(UUID: (MIG-[0-9A-Za-z/-]+)\)")


def gpus(text: str) -> Answer:
    """The GPUs in the answer to `GPUS`; those in MIG mode are in `unsliced`, by their UUID."""
    found: list[Gpu] = []
    sliced: list[str] = []
    driver = None
    for row in _rows(text, _COLUMNS):
        name, uuid, capable, total, free, version, mig, display = row
        if not uuid.startswith("GPU-"):
            continue
        driver = driver or driver_version(version)
        found.append(
            Gpu(
                name=one_line(name),
                uuid=one_line(uuid),
                capability=capability(capable),
                total=_mebibytes(total) or None,
                free=_mebibytes(free),
                display={"Enabled": True, "Disabled": False}.get(display),
            )
        )
        if mig == "Enabled":
            sliced.append(found[-1].uuid)
    if not found:
        return Answer(source="nvidia-smi", problem=_first(text))
    return Answer(source="nvidia-smi", driver=driver, gpus=tuple(found), unsliced=tuple(sliced))


def with_slices(answer: Answer, listing: str) -> Answer:
    """Every GPU in MIG mode replaced by the slices that `SLICES` lists; how large they are, it does not say."""
    slices: dict[str, list[tuple[str, str]]] = {}
    parent = ""
    for line in listing.splitlines():
        if whole := _GPU_LINE.match(line):
            parent = whole.group(1)
        elif part := _SLICE_LINE.match(line):
            slices.setdefault(parent, []).append((part.group(1), part.group(2)))
    found: list[Gpu] = []
    for gpu in answer.gpus:
        if gpu.uuid not in answer.unsliced:
            found.append(gpu)
            continue
        found += [
            replace(gpu, name=f"{gpu.name} {name}", uuid=uuid, mig=True, total=None, free=None, holders=())
            for name, uuid in slices.get(gpu.uuid, ())
        ]
    empty = tuple(g.name for g in answer.gpus if g.uuid in answer.unsliced and g.uuid not in slices)
    return replace(answer, gpus=tuple(found), unsliced=empty)


def with_holders(answer: Answer, text: str) -> Answer:
    holders: dict[str, list[Holder]] = {}
    for uuid, pid, name, used in _rows(text, _HOLDER_COLUMNS):
        if pid.isascii() and pid.isdecimal() and len(pid) < 12:  # noqa: PLR2004  (a PID has seven digits)
            one = Holder(pid=int(pid), name=program(name), used=_mebibytes(used))
            holders.setdefault(uuid, []).append(one)
    return replace(
        answer, gpus=tuple(replace(gpu, holders=tuple(holders.get(gpu.uuid, ()))) for gpu in answer.gpus)
    )


def _rows(text: str, columns: int) -> list[list[str]]:
    try:
        rows = list(csv.reader(text.replace("\0", "").splitlines(), skipinitialspace=True))
    except csv.Error:
        return []
    return [[cell.strip() for cell in row] for row in rows if len(row) == columns]


def _mebibytes(text: str) -> int | None:
    # Anything else is "[N/A]", "[Insufficient Permissions]" and the like.
    return int(text) << 20 if text.isascii() and text.isdecimal() and len(text) < 12 else None  # noqa: PLR2004


def _first(text: str) -> str:
    return next(filter(None, map(one_line, text.splitlines())), "it says nothing")
