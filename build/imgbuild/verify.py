"""An image or a wheel against its target: does it hold code that this GPU runs?

An image is read as the engine gives it out, file by file, and every shared
object in it is opened. What fails the verification:

- a kernel that the label `imgbuild.kernels` names is not there, is another version, or one of its libraries holds
  other code than the label says;
- one of torch's own libraries runs neither natively nor after the driver compiled its PTX;
- a shared object is for another machine than the image;
- labels that contradict each other, the target asked for, or the image's platform.

Other libraries that hold nothing for the GPU are warnings. What they need is
not ours to say: libcufftw has one empty kernel for sm_75 and calls cuFFT for
the work, a tracing library may know an architecture later than its users, and
custom nodes bring what their authors compiled.
"""

from __future__ import annotations

import csv
import io
import posixpath
import re
import tarfile
import tempfile
import time
import zlib
from dataclasses import dataclass, field
from typing import IO, TYPE_CHECKING, Any, Literal, cast

import zstandard

from imgbuild import fatbin
from imgbuild.engines.blobs import members
from imgbuild.errors import EngineError, SelectionError, VerificationError
from imgbuild.layerstream import Tail

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence
    from pathlib import Path

    from imgbuild.engines import Engine, Image
    from imgbuild.matrix import Matrix, Target

Runs = Literal["yes", "jit", "no", "none", "unasked", "unreadable"]
Role = Literal["kernel", "torch", "other"]

MACHINES = {"linux/amd64": "x86_64", "linux/arm64": "aarch64"}
_PIECE = 1 << 20  # bytes
_TALK = 10.0  # seconds between two words of progress
_LARGEST_RECORD = 64_000_000  # bytes; torch's has 1.4 million


@dataclass(frozen=True, kw_only=True)
class LabelledKernel:
    """One kernel of the label `imgbuild.kernels`."""

    name: str
    version: str
    key: str | None
    """Of the wheelhouse; None for a fallback, in which nothing is compiled."""
    code: tuple[str, ...]

    @property
    def compiled(self) -> bool:
        return self.key is not None


@dataclass(frozen=True, kw_only=True)
class Row:
    """One ELF file."""

    file: str
    package: str | None
    """The distribution that brought it: 'torch 2.13.0'."""
    role: Role
    machine: str
    code: tuple[dict[str, Any], ...]
    """[{kind, arch, count, size}]"""
    holds: str
    """The same for people."""
    runs: Runs


@dataclass(frozen=True, kw_only=True)
class Report:
    """What one image or wheel holds, and what is wrong with it."""

    subject: str
    target: str | None
    capability: str | None
    machine: str | None
    rows: tuple[Row, ...]
    problems: tuple[str, ...]
    warnings: tuple[str, ...]

    def as_json(self) -> dict[str, Any]:
        return {
            "subject": self.subject,
            "target": self.target,
            "compute_capability": self.capability,
            "machine": self.machine,
            "files": [
                {
                    "file": r.file,
                    "package": r.package,
                    "role": r.role,
                    "machine": r.machine,
                    "code": r.code,
                    "runs": r.runs,
                }
                for r in self.rows
            ],
            "problems": self.problems,
            "warnings": self.warnings,
        }


@dataclass(frozen=True, kw_only=True)
class Expected:
    """What is demanded."""

    target: str | None = None
    capability: str | None = None
    machine: str | None = None
    kernels: tuple[LabelledKernel, ...] = ()
    problems: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()


def raise_for(reports: Sequence[Report]) -> None:
    """VerificationError with every problem of every subject."""
    problems = [f"{r.subject}: {p}" for r in reports for p in r.problems]
    if problems:
        raise VerificationError("\n".join(problems), hint="imgbuild verify --all shows every file")


# --- wheels ------------------------------------------------------------------------------------


def verify_wheel(path: Path, expected: Expected, *, code: Sequence[str] = ()) -> Report:
    """A wheel, or one library. `code`: the native code that each binary with GPU code must hold, and no other."""
    try:
        found = fatbin.libraries(path)
    except fatbin.FatbinError as e:
        found, problems = (), [str(e).removeprefix(f"{path.name}: ")]
    else:
        problems = []
    problems += [
        f"{library.name} is for {library.machine}, not {expected.machine}"
        for library in found
        if expected.machine not in (None, library.machine)
    ]
    if expected.capability is not None or code:
        for library in found:
            if wrong := fatbin.complaint(library, capability=expected.capability, code=code):
                problems.append(f"{library.name} {wrong}")
    if code and not problems and not any(library.codes for library in found):
        problems.append(f"holds no GPU code, wanted {' and '.join(code)}")
    return Report(
        subject=path.name,
        target=expected.target,
        capability=expected.capability,
        machine=expected.machine,
        rows=tuple(_row(library, expected.capability, None, "other") for library in found),
        problems=tuple(problems),
        warnings=expected.warnings,
    )


def expected_of(target: Target | None, capability: str | None) -> Expected:
    """What a target demands, or a compute capability alone; VerificationError where the two contradict."""
    if target is None:
        return Expected(capability=capability)
    own = _capability_of(target)
    if capability not in (None, own):
        raise VerificationError(f"target {target.name} has compute capability {own}, not {capability}")
    return Expected(
        target=target.name, capability=None if own == "none" else own, machine=MACHINES[target.platform]
    )


def recipe_code(path: Path, matrix: Matrix, target: Target) -> tuple[str, ...]:
    """What the recipe of a wheel's kernel says it must hold for a target; () for a wheel without a recipe."""
    name = _normal(path.name.partition("-")[0])
    for kernel in matrix.common.kernels.values():
        if _normal(kernel.distribution) == name and target.gpu is not None:
            spelling = kernel.spelling.get(target.gpu.compute_capability)
            version = path.name.split("-")[1:2]
            if spelling is not None and version == [kernel.version]:
                return tuple(spelling.code)
    return ()


# --- images ------------------------------------------------------------------------------------


def verify_image(
    engine: Engine,
    tag: str,
    *,
    matrix: Matrix,
    target: Target | None,
    capability: str | None,
    say: Callable[[str], None],
) -> Report:
    """An image in an engine's store.

    SelectionError when it is not there, VerificationError when its labels already tell that it is the wrong one;
    everything found inside stands in the report.
    """
    image = engine.find(tag)
    if image is None:
        raise SelectionError(
            f"{engine.name} has no image {tag}",
            hint="imgbuild build makes one; a wheel is named by its path",
        )
    expected = expect(image, matrix=matrix, target=target, capability=capability)
    say(f"reading every file of {tag}")
    if layers := engine.layers(image):
        content = read_layers(layers, say=say)
    else:
        with engine.export(tag) as stream:
            content = read_tar(stream, say=say)
    distributions = {name: kernel.distribution for name, kernel in matrix.common.kernels.items()}
    return judge(tag, content, expected, distributions=distributions)


def expect(image: Image, *, matrix: Matrix, target: Target | None, capability: str | None) -> Expected:
    """What an image's labels promise; VerificationError when they, its platform and what was asked contradict."""
    labels = image.labels
    own = labels.get("imgbuild.target")
    if own is None and target is None and capability is None:
        raise VerificationError(
            f"{image.tag} has no label imgbuild.target: it is not one of ours",
            hint="--target or --compute-capability says what to verify it against",
        )
    warnings = []
    if own is not None and target is None:
        target = matrix.targets.get(own)
        if target is None:
            warnings.append(
                f"the matrix has no target {own!r}, which the label imgbuild.target names: "
                "only the image's own labels are held against it"
            )
    promised = labels.get("imgbuild.compute-capability")
    gpu = _capability_of(target) if target else None
    claims = [
        ("target", {"the label imgbuild.target": own, "--target": target.name if target else None}),
        (
            "platform",
            {
                "the label imgbuild.platform": labels.get("imgbuild.platform"),
                "the image itself": image.platform,
                f"target {target.name if target else ''}": target.platform if target else None,
            },
        ),
        (
            "compute capability",
            {
                "the label imgbuild.compute-capability": promised,
                f"target {target.name if target else ''}": gpu,
                "--compute-capability": capability,
            },
        ),
    ]
    if contradictions := [c for what, says in claims if (c := _contradiction(what, says))]:
        raise VerificationError(
            "\n".join(f"{image.tag}: {c}" for c in contradictions),
            hint=f"imgbuild build -t {target.name if target else own} makes it as the matrix says",
        )
    kernels = parse_kernels(labels.get("imgbuild.kernels", "none"))
    problems = []
    if target is not None and (lacking := sorted(set(target.kernels) - {k.name for k in kernels})):
        problems.append(
            f"the label imgbuild.kernels has no {', '.join(lacking)}, which target {target.name} has"
        )
    warnings += [
        f"{k.name} {k.version} is a fallback: nothing in it is compiled" for k in kernels if not k.compiled
    ]
    demanded = capability or promised or gpu
    return Expected(
        target=own or (target.name if target else None),
        capability=None if demanded == "none" else demanded,
        machine=MACHINES.get(image.platform),
        kernels=kernels,
        problems=tuple(problems),
        warnings=tuple(warnings),
    )


def _capability_of(target: Target) -> str:
    return target.gpu.compute_capability if target.gpu else "none"


def _contradiction(what: str, says: Mapping[str, str | None]) -> str | None:
    known = {who: value for who, value in says.items() if value is not None}
    if len(set(known.values())) < 2:  # noqa: PLR2004  (one opinion)
        return None
    return f"{what}: " + ", ".join(f"{who} says {value}" for who, value in known.items())


def parse_kernels(text: str) -> tuple[LabelledKernel, ...]:
    """The label `imgbuild.kernels`: `name=version@key:arch+arch`, several with commas, or `none`.

    A fallback has `fallback` in the place of the key and `none` in that of the architectures.
    """
    if text in ("", "none"):
        return ()
    kernels = []
    for item in text.split(","):
        found = re.fullmatch(
            r"([a-z0-9][a-z0-9._-]*)=([A-Za-z0-9.+!_-]+)@(fallback|[0-9a-f]{8,64}):(none|sm_[0-9]+[af]?(?:\+sm_[0-9]+[af]?)*)",
            item,
        )
        if found is None or (found[3] == "fallback") != (found[4] == "none"):
            raise VerificationError(
                f"the label imgbuild.kernels has {item!r}, which is not name=version@key:architectures"
            )
        name, version, key, code = found.groups()
        compiled = key != "fallback"
        kernels.append(
            LabelledKernel(
                name=name,
                version=version,
                key=key if compiled else None,
                code=tuple(code.split("+")) if compiled else (),
            )
        )
    return tuple(kernels)


@dataclass(frozen=True, kw_only=True)
class Package:
    """An installed distribution."""

    name: str
    """Normalised: 'flash-attn'."""
    version: str
    files: frozenset[str]
    """Absolute paths of its shared objects."""


@dataclass(kw_only=True)
class Content:
    """What an image's file system holds of interest."""

    libraries: dict[str, fatbin.Library] = field(default_factory=dict)
    """By absolute path."""
    unreadable: dict[str, str] = field(default_factory=dict)
    """Path → why."""
    packages: list[Package] = field(default_factory=list)


def read_tar(stream: IO[bytes], *, say: Callable[[str], None]) -> Content:
    """Read an image's file system off a tar stream, once, from its beginning to its end.

    Each shared object is written to a temporary file for as long as it is looked at. EngineError when the stream ends
    too early or is no tar file.
    """
    tail = Tail(stream)
    source = cast("IO[bytes]", tail)  # it reads, and that is all tarfile asks of it
    with tempfile.TemporaryFile() as spool:
        reader = _Reader(spool, say)
        try:
            with tarfile.open(fileobj=source, mode="r|", bufsize=_PIECE) as archive:
                for member in archive:
                    reader.take(archive, member)
        except tarfile.TarError as e:
            raise EngineError(f"the image's file system did not arrive whole: {e}") from None
    if not tail.ended():
        raise EngineError("the image's file system did not arrive whole: its end is missing")
    return reader.result()


def read_layers(layers: Sequence[Path], *, say: Callable[[str], None]) -> Content:
    """Read an image's file system off its layers' blobs, bottom to top. EngineError when one is damaged."""
    with tempfile.TemporaryFile() as spool:
        reader = _Reader(spool, say)
        try:
            for archive, member, covered in members(layers):
                reader.take(archive, member, covered=covered)
        except (tarfile.TarError, EOFError, zlib.error, zstandard.ZstdError, OSError) as e:
            raise EngineError(f"a layer of the image cannot be read: {e}") from None
    return reader.result()


class _Reader:
    """What has been seen of a file system so far."""

    def __init__(self, spool: IO[bytes], say: Callable[[str], None]) -> None:
        self._spool = spool
        self._say = say
        self._spoken = time.monotonic()
        self._total = 0
        self._content = Content()
        self._infos: dict[str, dict[str, bytes]] = {}
        self._latest: dict[str, fatbin.Library] = {}
        """Also what a layer above covers: a hard link below may still lead to it."""

    def take(self, archive: tarfile.TarFile, member: tarfile.TarInfo, *, covered: bool = False) -> None:
        """`covered`: a layer above has deleted or replaced it."""
        path = _absolute(member.name)
        folder, name = posixpath.split(path)
        self._total += member.size
        if time.monotonic() - self._spoken > _TALK:
            self._spoken = time.monotonic()
            self._say(
                f"{self._total / 1e9:.1f} GB read, {len(self._content.libraries)} shared objects so far"
            )
        if member.islnk() and ".so" in name and not covered:
            target = _absolute(member.linkname)
            if target in self._latest:
                self._content.libraries[path] = self._latest[target]
            elif target in self._content.unreadable:
                self._content.unreadable[path] = self._content.unreadable[target]
        file = archive.extractfile(member) if member.isreg() else None
        if file is not None and ".so" in name:
            self._read_library(path, file, covered=covered)
        elif (
            file is not None
            and not covered
            and name in ("RECORD", "METADATA")
            and folder.endswith(".dist-info")
        ):
            self._infos.setdefault(folder, {})[name] = file.read(_LARGEST_RECORD)

    def _read_library(self, path: str, file: IO[bytes], *, covered: bool) -> None:
        piece = file.read(_PIECE)
        if piece[:4] != fatbin.ELF_MAGIC:
            return  # a linker script, say
        self._spool.seek(0)
        self._spool.truncate()
        while piece:
            self._spool.write(piece)
            piece = file.read(_PIECE)
        self._spool.flush()
        with fatbin.mapped(self._spool) as data:
            try:
                self._latest[path] = fatbin.read_library(path, data)
            except fatbin.FatbinError as e:
                if not covered:
                    self._content.unreadable[path] = str(e)
                return
        if not covered:
            self._content.libraries[path] = self._latest[path]

    def result(self) -> Content:
        content = self._content
        packages = (read_package(folder, files) for folder, files in sorted(self._infos.items()))
        content.packages = [p for p in packages if p is not None]
        return content


def _absolute(name: str) -> str:
    return posixpath.normpath("/" + name.lstrip("/"))


def read_package(folder: str, files: Mapping[str, bytes]) -> Package | None:
    """A distribution from its .dist-info folder (an absolute path); None where it does not say what it is."""
    head = files.get("METADATA", b"").decode(errors="replace").partition("\n\n")[0]
    name = re.search(r"^Name: *(\S+) *$", head, flags=re.MULTILINE)
    version = re.search(r"^Version: *(\S+) *$", head, flags=re.MULTILINE)
    if not name or not version:
        return None
    record = files.get("RECORD", b"").decode(errors="replace")
    rows = csv.reader(io.StringIO(record, newline=""))
    site = posixpath.dirname(folder)
    try:
        paths = [row[0] for row in rows if row and ".so" in row[0]]
    except csv.Error:
        paths = []
    return Package(
        name=_normal(name[1]),
        version=version[1],
        files=frozenset(posixpath.normpath(posixpath.join(site, p)) for p in paths),
    )


def judge(subject: str, content: Content, expected: Expected, *, distributions: Mapping[str, str]) -> Report:
    """Hold what an image holds against what is expected. `distributions`: the package of a kernel, by its name."""
    owners = {file: package for package in content.packages for file in package.files}
    problems = list(expected.problems)
    warnings = list(expected.warnings)
    kernel_files: set[str] = set()
    for kernel in expected.kernels:
        package = _package_of(kernel, content.packages, distributions)
        kernel_files |= package.files if package else set()
        problems += _kernel_problems(kernel, package, content, expected.capability)
    rows = []
    for path, library in content.libraries.items():
        package = owners.get(path)
        role = _role(path, package, kernel_files)
        row = _row(library, expected.capability, package, role, path)
        rows.append(row)
        if expected.machine not in (None, library.machine):
            problems.append(f"{path} is for {library.machine}, the image for {expected.machine}")
        if row.runs == "no" and role != "kernel":  # a kernel's are among the problems already
            text = f"{path} holds {row.holds}: nothing of it runs on {expected.capability}"
            (problems if role == "torch" else warnings).append(text)
    for path, why in content.unreadable.items():
        package = owners.get(path)
        role = _role(path, package, kernel_files)
        rows.append(_unreadable(path, package, role))
        (warnings if role == "other" else problems).append(f"{path} {why}")
    order = {"kernel": 0, "torch": 1, "other": 2}
    return Report(
        subject=subject,
        target=expected.target,
        capability=expected.capability,
        machine=expected.machine,
        rows=tuple(sorted(rows, key=lambda r: (order[r.role], r.file))),
        problems=tuple(problems),
        warnings=tuple(warnings),
    )


def _package_of(
    kernel: LabelledKernel, packages: Iterable[Package], distributions: Mapping[str, str]
) -> Package | None:
    name = _normal(distributions.get(kernel.name, kernel.name))
    return next((p for p in packages if p.name == name), None)


def _kernel_problems(
    kernel: LabelledKernel, package: Package | None, content: Content, capability: str | None
) -> list[str]:
    """What of a label is not so."""
    promise = f"the label imgbuild.kernels says {kernel.name} {kernel.version}"
    if package is None:
        return [f"{promise}, and no such package is installed"]
    if package.version != kernel.version:
        return [f"{promise}, and {package.version} is installed"]
    found = {f: content.libraries[f] for f in sorted(package.files) if f in content.libraries}
    if not kernel.compiled:
        return [
            f"{promise} with nothing compiled, and {file} holds {fatbin.archs(library.codes)}"
            for file, library in found.items()
            if library.codes
        ]
    if not any(library.codes for library in found.values()):
        return [f"{promise} for {' and '.join(kernel.code)}, and it holds no GPU code"]
    problems = []
    for file, library in found.items():
        if not library.codes:
            problems.append(f"{file} holds no GPU code")
        if wrong := fatbin.complaint(library, capability=capability, code=kernel.code):
            problems.append(f"{file} {wrong}")
    return problems


def _role(path: str, package: Package | None, kernel_files: set[str]) -> Role:
    if path in kernel_files:
        return "kernel"
    return "torch" if package is not None and package.name == "torch" else "other"


def _row(
    library: fatbin.Library,
    capability: str | None,
    package: Package | None,
    role: Role,
    path: str | None = None,
) -> Row:
    codes = library.codes
    runs: Runs = "none" if not codes else "unasked"
    if codes and capability is not None:
        runs = fatbin.verdict(codes, capability)
    return Row(
        file=path or library.name,
        package=f"{package.name} {package.version}" if package else None,
        role=role,
        machine=library.machine,
        code=tuple(fatbin.summary(codes)),
        holds=fatbin.archs(codes),
        runs=runs,
    )


def _unreadable(path: str, package: Package | None, role: Role) -> Row:
    return Row(
        file=path,
        package=f"{package.name} {package.version}" if package else None,
        role=role,
        machine="",
        code=(),
        holds="",
        runs="unreadable",
    )


def _normal(name: str) -> str:
    """A distribution's name as PEP 503 writes it."""
    return re.sub(r"[-_.]+", "-", name).lower()
