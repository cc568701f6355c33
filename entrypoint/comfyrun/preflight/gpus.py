"""What a driver layer answers. Values, and reading them from what the programs in `child` print."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from comfyrun.preflight.words import one_line

if TYPE_CHECKING:
    from collections.abc import Iterable

_UUID = re.compile(r"(?:GPU-|MIG-)?[0-9A-Za-z][0-9A-Za-z/-]{3,99}")
_CAPABILITY = re.compile(r"\d{1,3}\.\d{1,2}")
_DRIVER = re.compile(r"\d{1,5}(?:\.\d{1,5}){0,3}")
_MOST = 1 << 50
"""Bytes: more memory than any GPU has is a value gone wrong."""


@dataclass(frozen=True, kw_only=True)
class Holder:
    """A process that holds GPU memory."""

    pid: int
    """In the host's numbering, in most containers."""
    name: str | None
    used: int | None


@dataclass(frozen=True, kw_only=True)
class Gpu:
    """A GPU, or a slice of one; sizes in bytes, None where the driver does not say."""

    name: str
    uuid: str
    capability: str | None
    """As NVIDIA writes it: "12.1"."""
    total: int | None = None
    free: int | None = None
    mig: bool = False
    """A slice (MIG device): what is counted is the slice's."""
    display: bool | None = None
    """Whether a screen hangs on it."""
    holders: tuple[Holder, ...] = ()

    def __str__(self) -> str:
        return f"{self.name} ({self.capability or 'compute capability unknown'})"


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What one way of asking the driver said."""

    source: str
    driver: str | None = None
    cuda: tuple[int, int] | None = None
    """The newest CUDA that the driver speaks."""
    gpus: tuple[Gpu, ...] = ()
    unsliced: tuple[str, ...] = ()
    """GPUs in MIG mode without a slice that is visible here: CUDA cannot use them."""
    problem: str | None = None
    code: int | None = None
    """The CUDA error behind the problem, where it is one."""
    late: bool = False


def same(one: str, other: str) -> bool:
    """Whether two UUIDs are one; CUDA's own has no prefix that could be trusted."""
    return _bare(one) == _bare(other)


def _bare(uuid: str) -> str:
    return uuid.upper().removeprefix("GPU-").removeprefix("MIG-")


def complete(gpus: Iterable[Gpu], others: Iterable[Gpu]) -> tuple[Gpu, ...]:
    """`gpus`, with what they lack taken from `others`."""
    known = list(others)
    found = []
    for gpu in gpus:
        other = next((o for o in known if same(o.uuid, gpu.uuid)), None)
        if other is None:
            found.append(gpu)
            continue
        found.append(
            replace(
                gpu,
                capability=gpu.capability or other.capability,
                total=other.total if gpu.total is None else gpu.total,
                free=other.free if gpu.free is None else gpu.free,
            )
        )
    return tuple(found)


def read(source: str, text: str) -> Answer:
    """The answer in a child's one line of JSON. Whatever the text is, an Answer comes out."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        return Answer(source=source, problem="the answer cannot be understood")
    listed = value.get("gpus")
    gpus = [_gpu(item) for item in listed] if isinstance(listed, list) else []
    unsliced = value.get("unsliced")
    return Answer(
        source=source,
        driver=driver_version(value.get("driver")),
        cuda=cuda_version(value.get("cuda")),
        gpus=tuple(gpu for gpu in gpus if gpu is not None),
        unsliced=tuple(one_line(name) for name in unsliced) if isinstance(unsliced, list) else (),
        problem=(one_line(value["problem"]) or None) if value.get("problem") else None,
        code=number(value.get("code")),
    )


def _gpu(value: object) -> Gpu | None:
    if not isinstance(value, dict):
        return None
    uuid = value.get("uuid")
    if not isinstance(uuid, str) or not _UUID.fullmatch(uuid):
        return None
    total, free = number(value.get("total")), number(value.get("free"))
    display = value.get("display")
    holders = value.get("holders")
    return Gpu(
        name=one_line(value.get("name") or "a GPU without a name"),
        uuid=uuid,
        capability=capability(value.get("capability")),
        total=total or None,
        free=free,
        mig=value.get("mig") is True,
        display=display if isinstance(display, bool) else None,
        holders=tuple(h for h in map(_holder, holders) if h) if isinstance(holders, list) else (),
    )


def _holder(value: object) -> Holder | None:
    pid = number(value.get("pid")) if isinstance(value, dict) else None
    if pid is None or not isinstance(value, dict):
        return None
    name = value.get("name")
    return Holder(
        pid=pid, name=program(name) if isinstance(name, str) else None, used=number(value.get("used"))
    )


def program(text: str) -> str | None:
    """The program in a command line; never its arguments, which may hold a secret."""
    words = text.split()
    if not words or text.startswith("["):  # "[Not Found]": of another container
        return None
    return one_line(words[0].rpartition("/")[2], 40) or None


def number(value: object) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < _MOST else None


def capability(value: object) -> str | None:
    return value if isinstance(value, str) and _CAPABILITY.fullmatch(value) else None


def driver_version(value: object) -> str | None:
    return value if isinstance(value, str) and _DRIVER.fullmatch(value) else None


def cuda_version(value: object) -> tuple[int, int] | None:
    """(13, 0) for the driver's 13000."""
    found = number(value)
    return (found // 1000, found % 1000 // 10) if found else None
