"""The steps of a repair. Each says what it does, shows itself as shell, and can be done."""

from __future__ import annotations

import shlex
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from imgbuild.doctor.binfmt import BINFMT, HANDLER_D, handlers
from imgbuild.errors import EngineError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from imgbuild.doctor.mend.hands import Hands
    from imgbuild.doctor.probe import Probe

DOCKERD_LOG = Path("/var/log/dockerd.log")
START_SECONDS = 60
STOP_SECONDS = 40
TAIL = 12
COLD_DISK = "failed to start containerd: timeout waiting for containerd to start"
"""dockerd gives its containerd 10 s. The first one after a boot reads everything from the disk and may need more; the
next one finds it in memory."""


class Step(Protocol):
    @property
    def title(self) -> str: ...

    @property
    def manual(self) -> bool:
        """Whether it is for a person: `apply` then does nothing."""

    def shell(self) -> tuple[str, ...]:
        """The same as lines for a root shell."""

    def apply(self, hands: Hands) -> None:
        """Do it; EngineError when that fails."""


@dataclass(frozen=True, kw_only=True)
class Command:
    title: str
    argv: tuple[str, ...]
    env: Mapping[str, str] = field(default_factory=dict)
    timeout: float = 900
    optional: bool = False
    manual: bool = False

    def shell(self) -> tuple[str, ...]:
        words = [f"{name}={shlex.quote(value)}" for name, value in self.env.items()]
        return (" ".join([*words, shlex.join(self.argv), *(["|| true"] if self.optional else [])]),)

    def apply(self, hands: Hands) -> None:
        done = hands.probe.run(*self.argv, env=self.env, timeout=self.timeout)
        if done.returncode and not self.optional:
            raise EngineError(
                f"{self.title}: {self.argv[0]} ended with status {done.returncode}:\n"
                + _tail(done.stdout + done.stderr),
                hint=f"the command was: {self.shell()[0]}",
            )


@dataclass(frozen=True, kw_only=True)
class WriteFile:
    title: str
    path: Path
    text: str
    manual: bool = False

    def shell(self) -> tuple[str, ...]:
        return (
            f"mkdir -p {shlex.quote(str(self.path.parent))}",
            f"cat > {shlex.quote(str(self.path))} <<'EOF'",
            *self.text.splitlines(),
            "EOF",
        )

    def apply(self, hands: Hands) -> None:
        try:
            hands.write(self.path, self.text)
        except OSError as e:
            raise EngineError(f"{self.path} cannot be written: {e.strerror or e}") from None


@dataclass(frozen=True, kw_only=True)
class StopEngine:
    title: str
    pid: int
    manual: bool = False

    def shell(self) -> tuple[str, ...]:
        return (f"kill {self.pid}; while kill -0 {self.pid} 2>/dev/null; do sleep 1; done",)

    def apply(self, hands: Hands) -> None:
        hands.terminate(self.pid)
        end = hands.clock() + STOP_SECONDS
        while hands.alive(self.pid):
            if hands.clock() > end:
                raise EngineError(
                    f"dockerd (process {self.pid}) did not stop within {STOP_SECONDS} s",
                    hint=f"tail {DOCKERD_LOG}",
                )
            hands.sleep(0.5)


@dataclass(frozen=True, kw_only=True)
class StartEngine:
    """For a machine without an init system."""

    title: str
    argv: tuple[str, ...] = ("dockerd",)
    log: Path = DOCKERD_LOG
    manual: bool = False

    def shell(self) -> tuple[str, ...]:
        return (f"setsid {shlex.join(self.argv)} </dev/null >>{self.log} 2>&1 &",)

    def apply(self, hands: Hands) -> None:
        if not hands.probe.which(self.argv[0]):
            raise EngineError(f"{self.argv[0]} is not installed", hint="imgbuild doctor --fix")
        before = len(self._said(hands.probe))
        how = self._start(hands)
        if how and COLD_DISK in self._said(hands.probe)[before:]:
            hands.say(
                "containerd was not ready within the 10 s that dockerd waits for it: starting dockerd once more"
            )
            how = self._start(hands)
        if how:
            raise EngineError(
                f"dockerd was started and {how}; the end of {self.log}:\n{_tail(self._said(hands.probe))}",
                hint=f"less {self.log}",
            )

    def _start(self, hands: Hands) -> str | None:
        """None once it answers, or what became of it."""
        pid = hands.spawn(self.argv, self.log)
        end = hands.clock() + START_SECONDS
        while hands.probe.run("docker", "version", "--format", "{{.Server.Version}}", timeout=10).returncode:
            if not hands.alive(pid):
                return "ended"
            if hands.clock() > end:
                return f"does not answer after {START_SECONDS} s"
            hands.sleep(0.5)
        return None

    def _said(self, probe: Probe) -> str:
        try:
            return probe.read(self.log) or ""
        except OSError:
            return ""


@dataclass(frozen=True, kw_only=True)
class Register:
    """Hand the kernel an emulator anew: with the flag F it keeps the one it was given, however old."""

    title: str
    uname: str
    elf_machine: int
    manual: bool = False

    @property
    def settings(self) -> Path:
        return HANDLER_D / f"qemu-{self.uname}.conf"

    def shell(self) -> tuple[str, ...]:
        name = BINFMT / f"qemu-{self.uname}"
        return (f"[ ! -e {name} ] || echo -1 > {name}", f"cat {self.settings} > {BINFMT}/register")

    def apply(self, hands: Hands) -> None:
        line = next(
            (r for r in (hands.probe.read(self.settings) or "").splitlines() if r.startswith(":")), None
        )
        if line is None:
            raise EngineError(
                f"{self.settings} is missing or empty, so the handler cannot be registered",
                hint="the package qemu-user-binfmt brings it",
            )
        start, _, flags = line.rpartition(":")
        try:
            for old in handlers(hands.probe):
                if old.machine == self.elf_machine:
                    hands.poke(old.path, "-1")
            hands.poke(BINFMT / "register", f"{start}:{flags if 'F' in flags else flags + 'F'}")
        except OSError as e:
            raise EngineError(f"the kernel refuses the handler for {self.uname}: {e.strerror or e}") from None


@dataclass(frozen=True, kw_only=True)
class Manual:
    """What only a person can do."""

    title: str
    commands: tuple[str, ...] = ()
    manual: bool = True

    def shell(self) -> tuple[str, ...]:
        return self.commands

    def apply(self, hands: Hands) -> None:
        """Nothing: it is shown."""


def _tail(text: str) -> str:
    return "\n".join(f"  {line}" for line in text.strip().splitlines()[-TAIL:])
