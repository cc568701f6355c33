"""Which GPU code a binary holds, and whether a GPU runs it.

Reads the section headers of an ELF file and the headers of the fat binaries in
it, never the code itself, so compressed code is no obstacle. One file, standard
library only: it is copied into build containers and runs there as a script.

    python3 fatbin.py list [--json] FILE…
    python3 fatbin.py check --compute-capability 12.1 [--code sm_121a …] FILE…

A fat binary is a row of containers; all numbers are little endian.

    container   0  u32  magic 0xBA55ED50
                4  u16  version, 1
                6  u16  size of this header, 16
                8  u64  bytes of the entries that follow
    entry       0  u16  kind: 1 PTX, 2 ELF (a cubin), 8 NVVM IR for link-time optimisation, …
                2  u16  version, 0x101
                4  u32  size of this header, 64 and more
                8  u64  bytes of the code that follows, padded to 8
               16  u32  bytes of the code when it is compressed, else 0
               28  u32  architecture, as in sm_121
               40  u64  flags: bits 12..15 compressed (13 LZ4, 15 zstd), 20 `a`, 21 `f`
               56  u64  bytes once unpacked, when it is compressed

NVIDIA documents none of this; it was found by experiment with nvcc 13.0 and
cuobjdump 13.5, and a test holds it against cuobjdump.

Containers stand in `.nv_fatbin`; what `__nv_relfatbin` holds is input for the
device linker, which no GPU runs as it is. Some libraries (cuFFT, cuSPARSE,
cuBLASLt) load more from ordinary data sections; cuobjdump does not see those,
this module does. Cubins that stand alone, without a container (CUPTI's), are
not listed.
"""

from __future__ import annotations

import argparse
import json
import mmap
import os
import re
import struct
import sys
import tempfile
import zipfile
import zlib
from collections import Counter
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    Data = bytes | mmap.mmap

MAGIC = b"\x50\xed\x55\xba"
ELF_MAGIC = b"\x7fELF"
EXECUTABLE = ".nv_fatbin"
RELOCATABLE = "__nv_relfatbin"

_KINDS = {
    1: "ptx",
    2: "elf",
    4: "cubin",
    8: "ir",
    0x20: "index",
    0x40: "rel-ptx",
    0x80: "tile-ir",
    0x100: "concatenated",
}
"""cuobjdump's names; nvcc 13.0 writes 1, 2 and 8."""
_PREFIXES = {"ptx": "compute", "rel-ptx": "compute", "ir": "lto"}
_MACHINES = {3: "i386", 40: "arm", 62: "x86_64", 183: "aarch64", 190: "cuda", 243: "riscv64"}

_ENTRY_HEADER = 64
_COMPRESSED = 0xF000
_EXACT = 1 << 20
_FAMILY = 1 << 21

_SHT_NULL, _SHT_PROGBITS, _SHT_NOBITS = 0, 1, 8
_SHF_ALLOC, _SHF_EXECINSTR, _SHF_COMPRESSED = 0x2, 0x4, 0x800
_SHN_XINDEX = 0xFFFF

# Limits on what a hostile file can cost. The largest real ones: 24,000 entries (cuFFT), 630 MB (cuBLASLt).
_MOST_ENTRIES = 1_000_000
_MOST_SECTIONS = 200_000
_MOST_UNPACKED = 16 << 30  # bytes of all binaries of one wheel

_FAMILIES_FROM = 10
"""The major capability from which `f` exists; nvcc 13.5 knows the families 10.x, 11.x and 12.x."""

Runs = Literal["yes", "jit", "no"]
Verdict = Literal["yes", "jit", "no", "none"]


class FatbinError(Exception):
    """A file that cannot be read, or does not hold what was asked for; the message says which and why."""

    def __init__(self, message: str) -> None:
        # Names of sections and of files in a wheel are whatever somebody wrote there.
        super().__init__("".join(c if c.isprintable() else "?" for c in message))


class _NoContainerError(FatbinError):
    """The bytes at hand are no container."""


@dataclass(frozen=True, slots=True)
class Code:
    """One entry: code for one architecture."""

    kind: str
    """`elf` runs as it is, `ptx` is compiled by the driver; anything else a GPU does not take as it is."""
    arch: str
    """`sm_121a`, for PTX `compute_121a`, for NVVM IR `lto_121a`."""
    size: int
    """Bytes in the file."""
    unpacked: int
    """Bytes once unpacked."""


@dataclass(frozen=True, slots=True)
class Container:
    """What one compilation made: the same code for several architectures."""

    section: str
    codes: tuple[Code, ...]


@dataclass(frozen=True, slots=True)
class Library:
    """One ELF file."""

    name: str
    machine: str
    containers: tuple[Container, ...]

    @property
    def codes(self) -> tuple[Code, ...]:
        return tuple(code for container in self.containers for code in container.codes)


# --- compatibility -----------------------------------------------------------------------------


def runs(code_arch: str, capability: str, kind: str) -> Runs:
    """Whether a GPU of a compute capability ("12.1") runs code of a kind and an architecture.

    By NVIDIA's rules: plain code runs on its major capability from its own minor on, `f` code on its family (the same
    range), `a` code on exactly its own capability. PTX is compiled at load by the driver: plain for everything newer,
    `f` and `a` as above. NVIDIA promises none of it between its desktop and Tegra chips (8.7, 8.8); this function
    does not know which is which.
    """
    major, minor = split_capability(capability)
    found = re.fullmatch(r"[a-z]+_([0-9]{1,10})([af]?)", code_arch, flags=re.ASCII)
    if found is None:
        raise FatbinError(f"{code_arch!r} is no architecture")
    own_major, own_minor = divmod(int(found[1]), 10)
    same_range = own_major == major and own_minor <= minor
    if found[2] == "a":
        fits = (own_major, own_minor) == (major, minor)
    elif found[2] == "f":
        fits = same_range and own_major >= _FAMILIES_FROM
    elif kind == "ptx":
        fits = (own_major, own_minor) <= (major, minor)
    else:
        fits = same_range
    if not fits or kind not in ("elf", "ptx"):
        return "no"
    return "yes" if kind == "elf" else "jit"


def verdict(codes: Sequence[Code], capability: str) -> Verdict:
    """The best that any of the codes does on a GPU; `none` where there is no GPU code at all."""
    answers = {runs(arch, capability, kind) for kind, arch in {(c.kind, c.arch) for c in codes}}
    if not codes:
        return "none"
    return "yes" if "yes" in answers else "jit" if "jit" in answers else "no"


def split_capability(capability: str) -> tuple[int, int]:
    """("12.1") → (12, 1)."""
    found = re.fullmatch(r"([0-9]{1,3})\.([0-9])", capability, flags=re.ASCII)
    if found is None:
        raise FatbinError(f"compute capability {capability!r}: write it as 12.1")
    return int(found[1]), int(found[2])


# --- ELF ---------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Section:
    name: str
    type: int
    flags: int
    offset: int
    size: int

    @property
    def end(self) -> int:
        return self.offset + self.size


@dataclass(slots=True)
class _Budget:
    """How many containers and entries may still be read, and candidates for them be tried."""

    entries: int = _MOST_ENTRIES

    def take(self) -> None:
        self.entries -= 1
        if self.entries < 0:
            raise FatbinError(f"claims to hold more than {_MOST_ENTRIES:,} pieces of GPU code")


def machine_of(data: Data) -> str:
    """The machine that an ELF file is for: 'x86_64', 'aarch64', …; of any class and byte order."""
    if data[:4] != ELF_MAGIC:
        raise FatbinError("is no ELF file")
    if len(data) < 20:  # noqa: PLR2004  (e_machine ends here)
        raise FatbinError("is a truncated ELF file")
    (number,) = struct.unpack_from(">H" if data[5] == 2 else "<H", data, 18)  # noqa: PLR2004
    return _MACHINES.get(number, f"machine-{number}")


def _header(data: Data) -> tuple[int, int, int]:
    """Where the section headers are, how many, and which of them is that of the names."""
    machine_of(data)
    if len(data) < 64:  # noqa: PLR2004  (the header's size)
        raise FatbinError("is a truncated ELF file")
    if (data[4], data[5]) != (2, 1):
        raise FatbinError("is an ELF file, but not a 64-bit little-endian one")
    (table,) = struct.unpack_from("<Q", data, 40)
    width, count, names = struct.unpack_from("<3H", data, 58)
    if table == 0:
        raise FatbinError("has no section headers, so its GPU code cannot be found")
    if width != 64:  # noqa: PLR2004
        raise FatbinError(f"is a damaged ELF file: its section headers have {width} bytes")
    if table + width > len(data):
        raise FatbinError("is truncated: its section headers lie behind its end")
    size, link = struct.unpack_from("<QI", data, table + 32)
    count = count or size  # more than a u16 holds: the number stands in the first header
    names = link if names == _SHN_XINDEX else names
    if count > _MOST_SECTIONS or not 0 < names < count:
        raise FatbinError(
            f"is a damaged ELF file: of its {count} sections, number {names} is to hold the names"
        )
    if table + width * count > len(data):
        raise FatbinError("is truncated: its section headers lie behind its end")
    return table, count, names


def _sections(data: Data) -> list[_Section]:
    """All sections with content; FatbinError when one is not whole."""
    table, count, names = _header(data)
    text, text_size = struct.unpack_from("<QQ", data, table + 64 * names + 24)
    if text + text_size > len(data):
        raise FatbinError("is truncated: the names of its sections lie behind its end")
    sections = []
    for i in range(count):
        name_at, kind, flags, _, offset, size = struct.unpack_from("<IIQQQQ", data, table + 64 * i)
        if kind in (_SHT_NULL, _SHT_NOBITS):
            continue
        if name_at >= text_size:
            raise FatbinError("is a damaged ELF file: a section has no name")
        start = text + name_at
        raw = data[start : min(start + 32, text + text_size)]  # longer names are not ours
        name = raw.partition(b"\0")[0].decode("ascii", "replace")
        if offset + size > len(data):
            raise FatbinError(
                f"is truncated: section {name} ends at byte {offset + size:,}, the file at {len(data):,}"
            )
        sections.append(_Section(name, kind, flags, offset, size))
    return sections


def read_containers(
    data: Data, *, embedded: bool = True, budget: _Budget | None = None
) -> Iterator[Container]:
    """The containers of an ELF file in its order; `embedded`: also those in ordinary data sections.

    FatbinError for a file that is damaged or of another kind, whatever its bytes are. Takes time and memory in
    proportion to the file's size at most.
    """
    budget = budget or _Budget()
    ours, others = [], []
    for section in _sections(data):
        if section.name in (EXECUTABLE, RELOCATABLE):
            ours.append(section)
        elif section.type == _SHT_PROGBITS and section.flags & (_SHF_ALLOC | _SHF_EXECINSTR) == _SHF_ALLOC:
            others.append(section)
    if sum(s.size for s in ours) > len(data):
        raise FatbinError("is a damaged ELF file: its sections of GPU code overlap")
    for section in ours:
        if section.flags & _SHF_COMPRESSED:
            raise FatbinError(f"its section {section.name} is compressed, so its GPU code cannot be read")
        yield from _walk(data, section, budget)
    if embedded:
        seen = 0
        for section in sorted(others, key=lambda s: (s.offset, s.end)):
            yield from _search(data, section, max(seen, section.offset), budget)  # no byte twice
            seen = max(seen, section.end)


def read_elf(data: Data, *, embedded: bool = True) -> tuple[Code, ...]:
    """All GPU code of an ELF file, in its order; see `read_containers`."""
    return tuple(code for c in read_containers(data, embedded=embedded) for code in c.codes)


_NOT_ZERO = re.compile(rb"[^\0]")
_MAGIC = re.compile(re.escape(MAGIC))


def _walk(data: Data, section: _Section, budget: _Budget) -> Iterator[Container]:
    """A section of nothing but containers and padding."""
    at = section.offset
    while found := _NOT_ZERO.search(data, at, section.end):
        # A magic number begins with no zero, so the first byte that is none begins a container.
        start = found.start()
        try:
            container, at = _container(data, start, section, budget)
        except _NoContainerError as e:
            where = f"{section.name} at byte {start:,}"
            raise FatbinError(f"is damaged: {where}: {e}") from None
        yield container


def _search(data: Data, section: _Section, start: int, budget: _Budget) -> Iterator[Container]:
    """Containers among other data: what only looks like one is passed over."""
    while found := _MAGIC.search(data, start, section.end):
        start = found.start()
        try:
            container, start = _container(data, start, section, budget)
        except _NoContainerError:
            start += 4
            continue
        yield container


def _container(data: Data, at: int, section: _Section, budget: _Budget) -> tuple[Container, int]:
    """The container at a byte, and where it ends; _NoContainerError when there is none."""
    budget.take()
    if section.end - at < 16:  # noqa: PLR2004
        raise _NoContainerError("a container's header is cut off")
    magic, version, header, size = struct.unpack_from("<4sHHQ", data, at)
    if magic != MAGIC:
        raise _NoContainerError("here begins no container")
    if (version, header) != (1, 16):
        raise _NoContainerError(
            f"a container of version {version} with a header of {header} bytes is unknown"
        )
    at += header
    end = at + size
    if end > section.end:
        raise _NoContainerError("a container is cut off")
    relocatable = section.name == RELOCATABLE
    codes = []
    while at < end:
        code, at = _entry(data, at, end, relocatable=relocatable)
        budget.take()
        codes.append(code)
    return Container(section.name, tuple(codes)), end


def _entry(data: Data, at: int, end: int, *, relocatable: bool) -> tuple[Code, int]:
    if end - at < _ENTRY_HEADER:
        raise _NoContainerError("an entry's header is cut off")
    number, version, header, padded, packed = struct.unpack_from("<HHIQI", data, at)
    (arch,) = struct.unpack_from("<I", data, at + 28)
    (flags,) = struct.unpack_from("<Q", data, at + 40)
    (unpacked,) = struct.unpack_from("<Q", data, at + 56)
    if version != 0x101:  # noqa: PLR2004
        raise _NoContainerError(f"an entry of version {version:#x} is unknown")
    if header < _ENTRY_HEADER:
        raise _NoContainerError(f"an entry has a header of {header} bytes")
    if at + header + padded > end:
        raise _NoContainerError("an entry is cut off")
    if packed > padded:
        raise _NoContainerError("an entry's two sizes contradict each other")
    kind = _KINDS.get(number, f"kind-{number}")
    # As cuobjdump reads it, `a` counts where both are set.
    suffix = "a" if flags & _EXACT else "f" if flags & _FAMILY else ""
    name = f"{_PREFIXES.get(kind, 'sm')}_{arch}{suffix}"
    if relocatable and not kind.startswith("rel-"):
        kind = f"rel-{kind}"
    compressed = bool(flags & _COMPRESSED)
    size = packed if compressed else padded
    code = Code(kind=kind, arch=name, size=size, unpacked=unpacked if compressed else padded)
    return code, at + header + padded


# --- files -------------------------------------------------------------------------------------


def read_file(path: str | Path) -> dict[str, tuple[Code, ...]]:
    """By name, the GPU code of each ELF file in a wheel, or of a file that is one; () where it holds none."""
    return {library.name: library.codes for library in libraries(path)}


def inventory(path: str | Path) -> list[dict[str, Any]]:
    """[{file, machine, code: [{kind, arch, count, size}]}], ready for JSON; sizes in bytes, as stored."""
    return [
        {"file": library.name, "machine": library.machine, "code": summary(library.codes)}
        for library in libraries(path)
    ]


def summary(codes: Sequence[Code]) -> list[dict[str, Any]]:
    """[{kind, arch, count, size}], each kind and architecture once, in a fixed order."""
    counts: Counter[tuple[str, str]] = Counter()
    sizes: Counter[tuple[str, str]] = Counter()
    for code in codes:
        counts[code.kind, code.arch] += 1
        sizes[code.kind, code.arch] += code.size
    return [
        {"kind": kind, "arch": arch, "count": counts[kind, arch], "size": sizes[kind, arch]}
        for kind, arch in sorted(counts, key=lambda ka: (ka[0], _order(ka[1])))
    ]


def libraries(path: str | Path) -> tuple[Library, ...]:
    """The ELF files of a wheel, or the file itself when it is one; FatbinError, with its name, for all else."""
    path = Path(path)
    try:
        _must_be_file(path)
        with path.open("rb") as file:
            if file.read(4) == ELF_MAGIC:
                with mapped(file) as data:
                    return (read_library(path.name, data),)
            return tuple(_wheel(file))
    except FatbinError as e:
        raise FatbinError(f"{path.name}: {e}") from None
    except OSError as e:
        raise FatbinError(f"{path.name}: {e.strerror or e}") from e


def _must_be_file(path: Path) -> None:
    if not path.is_file():  # a folder, or a pipe that would never end
        raise FatbinError("is no file" if path.exists() else "there is no such file")


def read_library(name: str, data: Data, budget: _Budget | None = None) -> Library:
    """An ELF file's machine and GPU code."""
    return Library(name, machine_of(data), tuple(read_containers(data, budget=budget)))


@contextmanager
def mapped(file: IO[bytes]) -> Iterator[Data]:
    """A file's bytes, without reading them."""
    if os.fstat(file.fileno()).st_size == 0:
        yield b""
        return
    with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        yield data


def _wheel(file: IO[bytes]) -> Iterator[Library]:
    """The ELF files in a wheel, each unpacked to disk for as long as it is read."""
    budget, total = _Budget(), 0
    with _reading_zip():
        archive = zipfile.ZipFile(file)
        members = [m for m in archive.infolist() if not m.is_dir()]
        if len({m.filename for m in members}) < len(members):
            raise FatbinError("is no sound wheel: it holds two files of one name")
    for member in members:
        with _reading_zip():
            # Others can make zipfile allocate whatever the file says, and no wheel has them.
            if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                raise FatbinError(f"{member.filename} is compressed in a way that wheels are not")
            content = archive.open(member)
            head = content.read(4)
        if head != ELF_MAGIC:
            continue
        total += member.file_size
        if total > _MOST_UNPACKED:
            raise FatbinError(f"its binaries are larger than {_MOST_UNPACKED >> 30} GiB")
        with tempfile.TemporaryFile() as spool:
            chunk = head
            while chunk:
                spool.write(chunk)
                with _reading_zip():
                    chunk = content.read(1 << 20)
            spool.flush()
            with mapped(spool) as data:
                try:
                    library = read_library(member.filename, data, budget)
                except FatbinError as e:
                    raise FatbinError(f"{member.filename} {e}") from None
        yield library


@contextmanager
def _reading_zip() -> Iterator[None]:
    """Everything zipfile raises for damaged files."""
    try:
        yield
    except (
        zipfile.BadZipFile, zlib.error, struct.error, EOFError, OSError, ArithmeticError,
        LookupError, NotImplementedError, RuntimeError, ValueError,
    ) as e:  # fmt: skip
        raise FatbinError(
            f"is neither an ELF file nor a sound wheel ({str(e) or type(e).__name__})"
        ) from None


# --- checking ----------------------------------------------------------------------------------


def check(
    path: str | Path,
    *,
    capability: str | None,
    code: Sequence[str] = (),
    machine: str | None = None,
    no_code: bool = False,
) -> tuple[Library, ...]:
    """Demand that a wheel or library was compiled for a GPU; return what was read.

    Every binary with GPU code has to run natively on `capability`, in every part that was compiled on its own, and at
    least one has to have some. `code`: each of these architectures has to be in every such binary, and no other
    native code. `machine`: what every binary has to be for. `no_code`: there must be no GPU code at all. FatbinError
    names the first binary that is not so, what it holds, and what was wanted.
    """
    found = libraries(path)
    name = Path(path).name
    for library in found:
        where = name if library.name == name else f"{name}: {library.name}"
        if machine is not None and library.machine != machine:
            raise FatbinError(f"{where} is for {library.machine}, wanted {machine}")
        if wrong := complaint(library, capability=capability, code=code, no_code=no_code):
            raise FatbinError(f"{where} {wrong}")
    if not no_code and not any(library.codes for library in found):
        holds = f"its {len(found)} binaries hold no GPU code" if found else "it holds no binary"
        raise FatbinError(f"{name}: {holds}, wanted {_wanted(capability, code)}")
    return found


def complaint(
    library: Library, *, capability: str | None, code: Sequence[str] = (), no_code: bool = False
) -> str | None:
    """What is wrong with one binary (see `check`), or None; a binary without GPU code is never wrong."""
    codes = library.codes
    if not codes:
        return None
    if no_code:
        return f"holds {archs(codes)}, wanted no GPU code"
    wanted = _wanted(capability, code)
    if capability is not None:
        if verdict(codes, capability) != "yes":
            return f"holds {archs(codes)}, wanted {wanted}"
        parts = [c.codes for c in library.containers if c.section == EXECUTABLE and c.codes]
        lacking = [p for p in parts if verdict(p, capability) != "yes"]
        if lacking:
            return f"holds, in {len(lacking)} of its {len(parts)} parts, only {archs(lacking[0])}, wanted {wanted}"
    native = {c.arch for c in codes if c.kind == "elf"}
    if code and native != set(code):
        return f"holds {archs(codes)}, wanted {wanted}"
    return None


def _wanted(capability: str | None, code: Sequence[str]) -> str:
    words = [f"{' and '.join(code)} and no other"] if code else ["GPU code"]
    if capability is not None:
        words.append(f"that runs on {capability}")
    return " ".join(words) if not code or capability is None else f"{words[0]}, {words[1]}"


def archs(codes: Sequence[Code]) -> str:
    """The architectures for people: 'sm_80, sm_90a, PTX compute_90'."""
    words = {"elf": "", "ptx": "PTX "}
    pairs = sorted({(c.kind, c.arch) for c in codes}, key=lambda ka: (ka[0], _order(ka[1])))
    return ", ".join(f"{words.get(kind, f'{kind} ')}{arch}" for kind, arch in pairs) or "no GPU code"


def _order(arch: str) -> tuple[int, str]:
    digits = re.search(r"[0-9]+", arch)
    return (int(digits[0]) if digits else 0, arch)


# --- as a script -------------------------------------------------------------------------------


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="fatbin.py", description="Which GPU code a binary or wheel holds.")
    verbs = parser.add_subparsers(dest="verb", required=True)
    listing = verbs.add_parser("list", help="show it")
    listing.add_argument("--json", action="store_true", help="for programs")
    checking = verbs.add_parser("check", help="demand that it runs on a GPU")
    checking.add_argument("--compute-capability", metavar="X.Y", help="as in 12.1")
    checking.add_argument(
        "--code",
        action="append",
        default=[],
        metavar="sm_XY",
        help="this native code and no other; repeatable",
    )
    checking.add_argument("--machine", choices=["aarch64", "x86_64"], help="what every binary is for")
    checking.add_argument("--no-code", action="store_true", help="there must be no GPU code")
    for verb in (listing, checking):
        verb.add_argument("files", nargs="+", type=Path, metavar="FILE", help=".whl or .so")
    args = parser.parse_args(argv)
    if args.verb == "check" and args.no_code == bool(args.compute_capability):
        parser.error("check takes either --compute-capability or --no-code")
    if args.verb == "check" and args.no_code and args.code:
        parser.error("--no-code and --code exclude one another")
    try:
        if args.verb == "check":
            found = [(path, _check(path, args)) for path in args.files]
        else:
            found = [(path, libraries(path)) for path in args.files]
    except FatbinError as e:
        print(f"fatbin: {e}", file=sys.stderr)
        return 1
    if args.verb == "list" and args.json:
        rows = {
            str(path): [
                {"file": library.name, "machine": library.machine, "code": summary(library.codes)}
                for library in read
            ]
            for path, read in found
        }
        print(json.dumps(rows, indent=2))
    else:
        for path, read in found:
            _print(path, read)
    return 0


def _check(path: Path, args: argparse.Namespace) -> tuple[Library, ...]:
    return check(
        path,
        capability=args.compute_capability,
        code=args.code,
        machine=args.machine,
        no_code=args.no_code,
    )


def _print(path: Path, found: Sequence[Library]) -> None:
    print(path.name)
    for library in found:
        lines = [
            f"{c['kind']:<4} {c['arch']:<13} {c['count']:>6} x {c['size']:>13,} B"
            for c in summary(library.codes)
        ]
        print(f"  {library.machine:<8} {library.name}{'' if lines else ': no GPU code'}")
        for line in lines:
            print(f"    {line}")


if __name__ == "__main__":
    sys.exit(main())
