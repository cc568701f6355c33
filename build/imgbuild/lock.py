"""A lock: the wheels of one target and one ComfyUI version, as a hashed requirements file.

One line a wheel, sorted: `name==version --hash=sha256:…  # filename bytes`. pip
and uv install it as it is; the comment says which file was meant and its size.
The head holds a hash of what the lock was made from, and one of its own lines.
Pure: reading and writing text; `resolve` does the network.
"""

from __future__ import annotations

import fnmatch
import hashlib
import json
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from packaging.utils import parse_wheel_filename

from imgbuild.errors import DriftError
from imgbuild.textfile import read_text

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from imgbuild.matrix import Layer, Matrix, Target
    from imgbuild.project import Project

_FORMAT = 1
_UV_NEWEST_MANYLINUX = 40
_LINE = re.compile(
    r"(?P<name>[a-z0-9._-]+)==(?P<version>\S+) --hash=sha256:(?P<sha256>[0-9a-f]{64})"
    r"  # (?P<filename>\S+\.(?:whl|tar\.gz)) (?P<size>\d+)"
)
_HEAD = re.compile(r"# imgbuild lock, inputs sha256:(?P<inputs>\S+) wheels sha256:(?P<wheels>[0-9a-f]{64})")


@dataclass(frozen=True, order=True, kw_only=True)
class Wheel:
    name: str
    version: str
    filename: str
    sha256: str
    size: int
    """Bytes of the file."""

    @property
    def requirement(self) -> str:
        return f"{self.name}=={self.version} --hash=sha256:{self.sha256}"

    def line(self) -> str:
        return f"{self.requirement}  # {self.filename} {self.size}"


@dataclass(frozen=True, kw_only=True)
class Lock:
    inputs: str
    """Hash of everything the resolution was made from."""
    wheels: tuple[Wheel, ...]

    def text(self, title: str) -> str:
        head = f"# imgbuild lock, inputs sha256:{self.inputs} wheels sha256:{_body_hash(self.wheels)}"
        lines = [head, f"# {title}", *(w.line() for w in sorted(self.wheels))]
        return "\n".join(lines) + "\n"

    @property
    def size(self) -> int:
        """Bytes of all wheels: the floor under an image's compressed size."""
        return sum(w.size for w in self.wheels)


def _body_hash(wheels: Iterable[Wheel]) -> str:
    lines = "".join(f"{w.line()}\n" for w in sorted(wheels))
    return hashlib.sha256(lines.encode()).hexdigest()


def parse_lock(text: str, *, name: str) -> Lock:
    """A DriftError when it is not, to the last line, what `imgbuild lock` wrote."""
    lines = text.splitlines()
    head = _HEAD.fullmatch(lines[0]) if lines else None
    wheels = []
    for number, line in enumerate(lines, 1):
        if line and not line.startswith("#"):
            match = _LINE.fullmatch(line)
            if match is None:
                raise DriftError(
                    f"{name}:{number}: not a line of a lock: {line[:60]!r}", hint="imgbuild lock"
                )
            found = match.groupdict()
            wheels.append(
                Wheel(
                    name=found["name"],
                    version=found["version"],
                    filename=found["filename"],
                    sha256=found["sha256"],
                    size=int(found["size"]),
                )
            )
    if head is None:
        raise DriftError(f"{name}:1: does not begin as this version's locks do", hint="imgbuild lock")
    if not wheels:
        raise DriftError(f"{name}: holds no wheel", hint="imgbuild lock")
    if _body_hash(wheels) != head["wheels"]:
        raise DriftError(
            f"{name} was changed by hand or damaged: its lines are not those its first line was made for",
            hint="imgbuild lock",
        )
    return Lock(inputs=head["inputs"], wheels=tuple(wheels))


def lock_name(target: str, version: str) -> str:
    return f"{target}-{version}.txt"


def requirements_name(version: str) -> str:
    return f"comfyui-{version}.txt"


def normalised(requirements: str) -> tuple[str, ...]:
    """The lines of a requirements file that mean something, sorted: what two versions are compared by."""
    lines = (line.partition("#")[0].strip() for line in requirements.splitlines())
    return tuple(sorted({line for line in lines if line}))


def read_requirements(project: Project, matrix: Matrix, version: str) -> tuple[str, ...]:
    path = project.requirements / requirements_name(version)
    try:
        text = read_text(path)
    except OSError:
        raise DriftError(
            f"the requirements of ComfyUI {version} are not kept: there is no {path}",
            hint="imgbuild lock --source comfyui=PATH, with PATH a checkout of that version",
        ) from None
    fallback = matrix.comfyui.fallback
    extra = fallback.requirements if version == fallback.version else ()
    return tuple(sorted({*normalised(text), *extra}))


def manylinux(target: Target, matrix: Matrix) -> str:
    """The platform in uv's spelling, with the base's glibc: 'aarch64-manylinux_2_40'."""
    minor = min(int(matrix.base_of(target).glibc.partition(".")[2]), _UV_NEWEST_MANYLINUX)
    machine = {"amd64": "x86_64", "arm64": "aarch64"}[target.arch]
    return f"{machine}-manylinux_2_{minor}"


def inputs_hash(requirements: Sequence[str], target: Target, matrix: Matrix) -> str:
    """One function for writing a lock and for checking it."""
    inputs = {
        "format": _FORMAT,
        "platform": manylinux(target, matrix),
        "python": matrix.base_of(target).python,
        "requirements": list(requirements),
        "torch": target.torch,
    }
    return hashlib.sha256(json.dumps(inputs, sort_keys=True).encode()).hexdigest()


def read_lock(project: Project, matrix: Matrix, target: Target, version: str) -> Lock:
    """The lock of a target for a ComfyUI version; a missing or older one is a DriftError with the remedy."""
    name = lock_name(target.name, version)
    path = project.locks / name
    command = f"imgbuild lock {target.name}"
    try:
        text = read_text(path)
    except OSError:
        raise DriftError(
            f"{target.name} has no lock for ComfyUI {version}: there is no {path}", hint=command
        ) from None
    lock = parse_lock(text, name=str(path))
    wanted = inputs_hash(read_requirements(project, matrix, version), target, matrix)
    if lock.inputs != wanted:
        raise DriftError(
            f"{path} is older than the matrix: its platform, Python, torch or requirements have changed",
            hint=command,
        )
    return lock


def for_machine(wheels: Iterable[Wheel], machine: str) -> tuple[Wheel, ...]:
    """Of a lock of several platforms, what is for one (ELF's spelling: 'x86_64') or for any."""
    found = []
    for wheel in wheels:
        _, _, _, tags = parse_wheel_filename(wheel.filename)
        if any(tag.platform == "any" or tag.platform.endswith(machine) for tag in tags):
            found.append(wheel)
    return tuple(found)


def split(wheels: Iterable[Wheel], layers: Sequence[Layer]) -> dict[str, tuple[Wheel, ...]]:
    """The wheels of each layer, by the layer's patterns; exact names win over `*`, then the first layer."""
    found: dict[str, list[Wheel]] = {layer.name: [] for layer in layers}
    for wheel in sorted(wheels):
        layer = next(
            layer
            for wanted in (False, True)  # patterns first, the layer that takes the rest last
            for layer in layers
            for pattern in layer.packages
            if (pattern == "*") is wanted and fnmatch.fnmatchcase(wheel.name, pattern)
        )
        found[layer.name].append(wheel)
    return {name: tuple(members) for name, members in found.items()}
