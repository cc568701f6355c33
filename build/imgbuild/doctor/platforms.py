"""Platforms in the spellings of Docker, uname and QEMU, and the smallest program of each."""

from __future__ import annotations

import struct
from dataclasses import dataclass

EXIT_STATUS = 42
"""What `tiny_program` ends with: no shell, loader or emulator ends with it by accident."""


@dataclass(frozen=True, kw_only=True)
class Platform:
    name: str
    uname: str
    """Also QEMU's spelling."""
    debian: str
    elf_machine: int
    exit_code: bytes
    """Machine code for exit(42)."""


PLATFORMS: dict[str, Platform] = {
    p.name: p
    for p in (
        Platform(
            name="linux/amd64",
            uname="x86_64",
            debian="amd64",
            elf_machine=62,
            # mov edi, 42; mov eax, 60; syscall
            exit_code=bytes.fromhex("bf2a000000 b83c000000 0f05"),
        ),
        Platform(
            name="linux/arm64",
            uname="aarch64",
            debian="arm64",
            elf_machine=183,
            # mov x0, #42; mov x8, #93; svc #0
            exit_code=struct.pack("<3I", 0xD2800540, 0xD2800BA8, 0xD4000001),
        ),
    )
}


def foreign(platforms: frozenset[str], uname: str) -> list[Platform]:
    """Those of the platforms wanted that this processor does not run by itself."""
    return [p for name, p in sorted(PLATFORMS.items()) if name in platforms and p.uname != uname]


def tiny_program(platform: Platform) -> bytes:
    """A static ELF file of about 130 bytes that does nothing but exit(42)."""
    base, header, entry = 0x400000, 64, 64 + 56
    size = entry + len(platform.exit_code)
    ident = b"\x7fELF\x02\x01\x01" + bytes(9)
    ehdr = struct.pack(
        "<HHIQQQIHHHHHH", 2, platform.elf_machine, 1, base + entry, header, 0, 0, header, 56, 1, 0, 0, 0
    )
    phdr = struct.pack("<IIQQQQQQ", 1, 5, 0, base, base, size, size, 0x10000)
    return ident + ehdr + phdr + platform.exit_code
