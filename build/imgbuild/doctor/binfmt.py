"""Can this machine run programs of the other processors that are built for?"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from imgbuild.doctor import minimum
from imgbuild.doctor.finding import Finding, Mend, Repair, error, ok
from imgbuild.doctor.platforms import EXIT_STATUS, Platform, foreign, tiny_program
from imgbuild.doctor.probe import TIMED_OUT

if TYPE_CHECKING:
    from imgbuild.doctor.probe import Probe
    from imgbuild.doctor.situation import Situation

BINFMT = Path("/proc/sys/fs/binfmt_misc")
HANDLER_D = Path("/usr/lib/binfmt.d")
OWN_FILES = ("register", "status")
PACKAGES = Repair(kind=Mend.BINFMT_PACKAGES)
MOUNT = Repair(kind=Mend.BINFMT_MOUNT)
FIX = "imgbuild doctor --fix"


@dataclass(frozen=True, kw_only=True)
class Handler:
    """A file in binfmt_misc, as the kernel prints it."""

    path: Path
    enabled: bool
    interpreter: str
    flags: str
    magic: str

    @property
    def machine(self) -> int | None:
        """The processor number of the ELF files it takes, None when it is not for ELF files."""
        if not self.magic.startswith("7f454c46"):
            return None
        low, high = self.magic[36:38], self.magic[38:40]
        return int(high + low, 16) if high else None


def parse_handler(path: Path, text: str) -> Handler:
    words = dict(line.partition(" ")[::2] for line in text.splitlines())
    return Handler(
        path=path,
        enabled="enabled" in words,
        interpreter=words.get("interpreter", ""),
        flags=words.get("flags:", ""),
        magic=words.get("magic", ""),
    )


def handlers(probe: Probe) -> list[Handler]:
    names = (name for name in probe.listing(BINFMT) if name not in OWN_FILES)
    return [parse_handler(BINFMT / name, text) for name in names if (text := _text(probe, BINFMT / name))]


def handler_for(probe: Probe, platform: Platform) -> Handler | None:
    """The one that the kernel uses: the enabled one, when several are for this processor."""
    fitting = [h for h in handlers(probe) if h.machine == platform.elf_machine]
    return next((h for h in fitting if h.enabled), fitting[0] if fitting else None)


@dataclass(frozen=True)
class Binfmt:
    id: str = "binfmt"

    def __call__(self, s: Situation) -> list[Finding]:
        wanted = foreign(s.platforms, s.probe.arch)
        if not wanted:
            return [ok(self.id, f"every platform wanted is this machine's own ({s.probe.arch})")]
        if not s.docker.is_local:
            return [ok(self.id, f"left to the engine at {s.docker.endpoint}")]
        return [self._one(s.probe, platform) for platform in wanted]

    def _one(self, probe: Probe, p: Platform) -> Finding:
        register = Repair(kind=Mend.BINFMT_REGISTER, about=p.uname)
        have_qemu = probe.exists(HANDLER_D / f"qemu-{p.uname}.conf")
        packages = () if have_qemu else (PACKAGES,)
        if not probe.exists(BINFMT / "status"):
            return error(
                self.id,
                f"{p.name}: binfmt_misc is not mounted, so no foreign program can run",
                FIX,
                repairs=(*packages, MOUNT, register),
            )
        handler = handler_for(probe, p)
        if handler is None:
            return error(
                self.id,
                f"{p.name}: no handler for {p.uname} programs is registered",
                FIX,
                repairs=(*packages, register),
            )
        if not handler.enabled:
            return error(
                self.id,
                f"{p.name}: the handler {handler.path.name} is disabled",
                f"echo 1 > {handler.path}",
                repairs=(*packages, register),
            )
        if "F" not in handler.flags:
            return error(
                self.id,
                f"{p.name}: the handler {handler.path.name} lacks the flag F, so containers do not see "
                f"{handler.interpreter}",
                FIX,
                repairs=(*packages, register),
            )
        return self._tried(probe, p, handler, register)

    def _tried(self, probe: Probe, p: Platform, handler: Handler, register: Repair) -> Finding:
        """What the kernel really starts: with F it holds the emulator that was there at registration."""
        program = tiny_program(p)
        ran = probe.execute(program, env={}, timeout=20)
        if ran.returncode == TIMED_OUT:
            return error(
                self.id,
                f"{p.name}: a program of {p.uname} did not end within 20 s",
                FIX,
                repairs=(PACKAGES, register),
            )
        if ran.returncode != EXIT_STATUS:
            why = ran.stderr.strip() or f"status {ran.returncode}"
            return error(
                self.id,
                f"{p.name}: a handler is registered, but a program of {p.uname} does not run: {why}",
                FIX,
                repairs=(PACKAGES, register),
            )
        version = probe.execute(program, env={"QEMU_VERSION": "1"}, timeout=20).stdout
        if "qemu" not in version.casefold():
            return ok(
                self.id,
                f"{p.name}: runs, through {handler.interpreter} (not QEMU: its version is not checked)",
            )
        number = ".".join(map(str, minimum.parse(version) or ()))
        if not minimum.enough("qemu", version):
            return error(
                self.id,
                f"{p.name}: the kernel runs {p.uname} programs with QEMU {number or 'of unknown version'}, older than "
                f"{minimum.spelled('qemu')} (7.2 hangs for ever in `import torch`)",
                FIX,
                repairs=(PACKAGES, register),
            )
        return ok(self.id, f"{p.name}: a foreign program runs, with QEMU {number}")


def _text(probe: Probe, path: Path) -> str | None:
    try:
        return probe.read(path)
    except OSError:
        return None
