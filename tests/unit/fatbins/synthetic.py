"""ELF files, containers and wheels made of nothing but their headers."""

from __future__ import annotations

import struct
import zipfile

MAGIC = 0xBA55ED50
PTX, ELF, IR = 1, 2, 8
A, F = 1 << 20, 1 << 21
LZ4, ZSTD = 0x2000, 0x8000
PROGBITS, NOBITS = 1, 8
ALLOC, EXEC, COMPRESSED = 0x2, 0x4, 0x800
X86_64, AARCH64 = 62, 183


def entry(
    kind=ELF, arch=80, flags=0, *, size=8, packed=0, unpacked=0, header=64, version=0x101, payload=None
):
    """`size` in bytes, of the code as it is stored."""
    payload = bytes(size) if payload is None else payload
    head = struct.pack("<HHIQII", kind, version, header, len(payload), packed, 0x40)
    head += struct.pack("<HHIIIQQQ", 8, 1, arch, 0, 0, flags | 0x11, 0, unpacked)
    return head + bytes(header - 64) + payload


def container(*entries, version=1, header=16, magic=MAGIC):
    body = b"".join(entries)
    return struct.pack("<IHHQ", magic, version, header, len(body)) + body


def elf(*sections, machine=X86_64, many=False):
    """Sections are (name, content) or (name, content, type, flags). `many`: count and names as above 0xFF00."""
    names, raw, at = b"\0.shstrtab\0", b"", 64
    headers = [bytes(64)]
    for name, content, *rest in sections:
        kind, flags = rest or (PROGBITS, ALLOC)
        headers.append(struct.pack("<IIQQQQIIQQ", len(names), kind, flags, 0, at, len(content), 0, 0, 8, 0))
        names += name.encode() + b"\0"
        if kind != NOBITS:
            raw += content + bytes(-len(content) % 8)
            at = 64 + len(raw)
    headers.append(struct.pack("<IIQQQQIIQQ", 1, 3, 0, 0, at, len(names), 0, 0, 1, 0))
    raw += names + bytes(-len(names) % 8)
    count, last = len(headers), len(headers) - 1
    if many:
        headers[0] = struct.pack("<IIQQQQIIQQ", 0, 0, 0, 0, 0, count, last, 0, 0, 0)
        count, last = 0, 0xFFFF
    ident = b"\x7fELF\x02\x01\x01" + bytes(9)
    head = struct.pack("<HHIQQQIHHHHHH", 3, machine, 1, 0, 0, 64 + len(raw), 0, 64, 0, 0, 64, count, last)
    return ident + head + raw + b"".join(headers)


def library(*archs, machine=X86_64, section=".nv_fatbin"):
    """One container with native code for each of (number, flags) or number."""
    pairs = [a if isinstance(a, tuple) else (a, 0) for a in archs]
    content = container(*(entry(ELF, number, flags) for number, flags in pairs)) if archs else b""
    return elf((section, content), machine=machine) if archs else elf((".text", b"code"), machine=machine)


def wheel(path, files, method=zipfile.ZIP_DEFLATED):
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return path
