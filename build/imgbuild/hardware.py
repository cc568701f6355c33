"""Which GPUs this machine has: NVML in a process of its own, else nvidia-smi. Both may hang, fail, or know half.

Nothing here raises: a machine without a GPU, and one whose driver is broken, are answers too.
"""

from __future__ import annotations

import csv
import json
import re
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from imgbuild.doctor.probe import NOT_FOUND, NOT_STARTED, TIMED_OUT

if TYPE_CHECKING:
    from imgbuild.doctor.probe import Run
    from imgbuild.proc import Result

NVML, SMI = "NVML", "nvidia-smi"
SECONDS = 20
"""Without the persistence daemon the driver wakes each GPU first, which takes one or two."""
QUERY = Path(__file__).with_name("nvmlquery.py")
SMI_GPUS = (
    "nvidia-smi",
    "--query-gpu=name,uuid,compute_cap,memory.total,driver_version,mig.mode.current",
    "--format=csv,noheader,nounits",
)
SMI_SLICES = ("nvidia-smi", "-L")
_COLUMNS = 6
_UUID = re.compile(r"(?:GPU-|MIG-)[0-9A-Za-z/-]{3,99}")
_CAPABILITY = re.compile(r"\d{1,3}\.\d")
_DRIVER = re.compile(r"\d{1,5}(?:\.\d{1,5}){0,3}")
_GPU_LINE = re.compile(r"GPU \d+: .*\(UUID: (GPU-[0-9A-Za-z-]+)\)")
_SLICE_LINE = re.compile(r"\s+(MIG \S+)\s+Device\s+\d+: \(UUID: (MIG-[0-9A-Za-z/-]+)\)")
_MOST = 1 << 50
"""Bytes: more memory than any GPU has is a value gone wrong."""


@dataclass(frozen=True, kw_only=True)
class Gpu:
    """A GPU, or a MIG slice of one."""

    name: str
    uuid: str
    capability: str | None
    """As NVIDIA writes it: "12.1"."""
    memory: int | None = None
    """Bytes; None where the driver does not say."""
    unified: bool = False
    """One pool for CPU and GPU (GB10): the driver counts none as the GPU's own."""
    mig: bool = False
    """A slice: name and memory are the slice's."""

    def __str__(self) -> str:
        return f"{self.name} ({self.capability or 'compute capability unknown'})"


@dataclass(frozen=True, kw_only=True)
class Hardware:
    """What the driver says; `gpus` is empty when there is none, or none can be used."""

    gpus: tuple[Gpu, ...] = ()
    driver: str | None = None
    cuda: tuple[int, int] | None = None
    """The newest CUDA that the driver speaks."""
    source: str | None = None
    unsliced: tuple[str, ...] = ()
    """GPUs in MIG mode that have no slice: nothing can use them."""
    problem: str | None = None
    """Why the answer is not whole; None also where there simply is no NVIDIA driver."""
    late: bool = False
    """The driver did not answer in time."""

    def as_json(self) -> dict[str, Any]:
        return {
            "gpus": [
                {
                    "name": g.name,
                    "uuid": g.uuid,
                    "compute_capability": g.capability,
                    "memory": g.memory,
                    "unified": g.unified,
                    "mig": g.mig,
                }
                for g in self.gpus
            ],
            "driver": self.driver,
            "cuda": ".".join(map(str, self.cuda)) if self.cuda else None,
            "source": self.source,
            "unsliced": self.unsliced,
            "problem": self.problem,
        }


def look(run: Run) -> Hardware:
    """Ask NVML, then nvidia-smi; `run` is a doctor's probe's, which never raises."""
    by_nvml = _nvml(
        run("python" if not sys.executable else sys.executable, "-P", str(QUERY), timeout=SECONDS)
    )
    if by_nvml.gpus or by_nvml.unsliced:
        return by_nvml
    if by_nvml.late:  # nvidia-smi waits for the same library: it would hang as long again
        return by_nvml
    by_smi = _smi(run)
    if by_smi.gpus or by_smi.unsliced or by_smi.problem:
        return by_smi
    return Hardware(problem=by_nvml.problem if _driver_is_there(by_nvml) else None)


def _driver_is_there(answer: Hardware) -> bool:
    """Whether NVML's complaint is about a driver, and not about the library that a machine without one lacks."""
    text = (answer.problem or "").lower()
    return bool(text) and not any(w in text for w in ("not installed", "not found", "no such file"))


def _nvml(done: Result) -> Hardware:
    if done.returncode == TIMED_OUT:
        return Hardware(source=NVML, late=True, problem=f"the driver did not answer NVML within {SECONDS} s")
    if done.returncode:
        return Hardware(source=NVML, problem=f"asking NVML ended with status {done.returncode}")
    try:
        value = json.loads(done.stdout)
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        return Hardware(source=NVML, problem="NVML's answer cannot be understood")
    listed, unsliced, cuda = value.get("gpus"), value.get("unsliced"), value.get("cuda")
    gpus = [_gpu(item) for item in listed] if isinstance(listed, list) else []
    return Hardware(
        gpus=tuple(g for g in gpus if g is not None),
        driver=_matching(_DRIVER, value.get("driver")),
        cuda=(cuda // 1000, cuda % 1000 // 10) if _is_number(cuda) and cuda else None,
        source=NVML,
        unsliced=tuple(_line(n) for n in unsliced) if isinstance(unsliced, list) else (),
        problem=_line(value["problem"]) if value.get("problem") else None,
    )


def _gpu(item: Any) -> Gpu | None:
    uuid = _matching(_UUID, item.get("uuid")) if isinstance(item, dict) else None
    if uuid is None:
        return None
    total, mig = item.get("total"), item.get("mig") is True
    memory = total if _is_number(total) and total else None
    return Gpu(
        name=_line(item.get("name") or "a GPU without a name"),
        uuid=uuid,
        capability=_matching(_CAPABILITY, item.get("capability")),
        memory=memory,
        unified=memory is None and not mig and item.get("unified", True) is True,
        mig=mig,
    )


def _smi(run: Run) -> Hardware:
    done = run(*SMI_GPUS, timeout=SECONDS)
    if done.returncode == NOT_FOUND:
        return Hardware()
    if done.returncode == TIMED_OUT:
        return Hardware(source=SMI, late=True, problem=f"nvidia-smi did not end within {SECONDS} s")
    if done.returncode:
        said = _first(done.stdout + "\n" + done.stderr)
        if done.returncode != NOT_STARTED and "no devices were found" in said.lower():
            return Hardware(source=SMI)
        return Hardware(source=SMI, problem=f"nvidia-smi: {said}")
    answer, sliced = _smi_gpus(done.stdout)
    if sliced:
        listing = run(*SMI_SLICES, timeout=SECONDS)
        answer = _with_slices(answer, sliced, listing.stdout)
    return answer


def _smi_gpus(text: str) -> tuple[Hardware, frozenset[str]]:
    """The GPUs, and the UUIDs of those in MIG mode."""
    try:
        rows = list(csv.reader(text.replace("\0", "").splitlines(), skipinitialspace=True))
    except csv.Error:
        rows = []
    found: list[Gpu] = []
    sliced: set[str] = set()
    driver = None
    for row in ([cell.strip() for cell in r] for r in rows if len(r) == _COLUMNS):
        name, uuid, capable, total, version, mig = row
        if not _UUID.fullmatch(uuid):
            continue
        driver = driver or _matching(_DRIVER, version)
        found.append(
            Gpu(
                name=_line(name),
                uuid=uuid,
                capability=_matching(_CAPABILITY, capable),
                memory=int(total) << 20 if re.fullmatch("[0-9]{1,11}", total) else None,
                # "[Insufficient Permissions]" says nothing about the GPU.
                unified=total in ("[N/A]", "N/A", "[Not Supported]"),
            )
        )
        if mig == "Enabled":
            sliced.add(uuid)
    if not found:
        return Hardware(source=SMI, problem=f"nvidia-smi: {_first(text)}"), frozenset()
    return Hardware(source=SMI, gpus=tuple(found), driver=driver), frozenset(sliced)


def _with_slices(answer: Hardware, sliced: frozenset[str], listing: str) -> Hardware:
    """Every GPU in MIG mode replaced by its slices; how large they are, `nvidia-smi -L` does not say."""
    slices: dict[str, list[tuple[str, str]]] = {}
    parent = ""
    for line in listing.splitlines():
        if whole := _GPU_LINE.match(line):
            parent = whole[1]
        elif part := _SLICE_LINE.match(line):
            slices.setdefault(parent, []).append((part[1], part[2]))
    found: list[Gpu] = []
    for gpu in answer.gpus:
        if gpu.uuid not in sliced:
            found.append(gpu)
            continue
        found += [
            replace(gpu, name=f"{gpu.name} {name}", uuid=uuid, mig=True, memory=None, unified=False)
            for name, uuid in slices.get(gpu.uuid, ())
        ]
    empty = tuple(g.name for g in answer.gpus if g.uuid in sliced and g.uuid not in slices)
    return replace(answer, gpus=tuple(found), unsliced=empty)


def _matching(pattern: re.Pattern[str], value: object) -> str | None:
    return value if isinstance(value, str) and pattern.fullmatch(value) else None


def _is_number(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < _MOST


def _line(value: object) -> str:
    """One printable line: what a driver says goes to a terminal."""
    return "".join(c if c.isprintable() else " " for c in str(value)).strip()[:200]


def _first(text: str) -> str:
    return next(filter(None, map(_line, text.splitlines())), "it says nothing")
