"""A deployment as a service of systemd: its unit files, and systemctl's verbs."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from imgbuild import proc
from imgbuild.errors import ConfigError, EngineError, SelectionError
from imgbuild.render import write

if TYPE_CHECKING:
    from collections.abc import Mapping

    from imgbuild.deploy.argv import EngineName
    from imgbuild.render import Files

MARK = "# Written by imgbuild service"
_PATIENT = 300.0
_QUADLETS = re.compile(r"^Volume=([\w.-]+)\.volume:", re.MULTILINE)
_DOCKERS = re.compile(r"--volume ([A-Za-z0-9][\w.-]*):")


@dataclass(frozen=True, kw_only=True)
class Services:
    """`user`: the caller's own systemd, whose units need no root; Docker's are the system's."""

    engine: EngineName
    user: bool
    env: Mapping[str, str]
    root: Path = Path("/")

    @property
    def folder(self) -> Path:
        if self.engine == "docker":
            return self.root / "etc/systemd/system"
        if self.user:
            base = self.env.get("XDG_CONFIG_HOME") or f"{self.env.get('HOME', '/root')}/.config"
            return Path(base) / "containers/systemd"
        return self.root / "etc/containers/systemd"

    def install(self, files: Files) -> tuple[str, ...]:
        """Write units; those that changed. Raises ConfigError for a file that is somebody else's."""
        for name in files:
            path = self.folder / name
            if path.is_file() and MARK not in path.read_text(errors="replace"):
                raise ConfigError(f"{path} was not written by imgbuild service", hint="--name is another one")
        try:
            return write(files, self.folder)
        except PermissionError:
            raise ConfigError(
                f"{self.folder} can be written by root only",
                hint="sudo imgbuild service …"
                + ("" if self.engine == "docker" else ", or --user for a service of yours"),
            ) from None

    def installed(self, name: str) -> Path:
        """The unit file of a deployment. Raises SelectionError when there is none."""
        path = self.folder / (f"{name}.service" if self.engine == "docker" else f"{name}.container")
        if not path.is_file():
            raise SelectionError(f"there is no {path}", hint="imgbuild service install writes it")
        return path

    def volumes(self, name: str) -> tuple[str, ...]:
        """The named volumes of a deployment, as its unit has them."""
        text = self.installed(name).read_text(errors="replace")
        words = _DOCKERS if self.engine == "docker" else _QUADLETS
        return tuple(dict.fromkeys(words.findall(text)))

    def remove(self, name: str) -> tuple[Path, ...]:
        """Delete a deployment's unit, and units of volumes that no other one names; volumes stay."""
        unit = self.installed(name)
        if MARK not in unit.read_text(errors="replace"):
            raise ConfigError(f"{unit} was not written by imgbuild service", hint=f"rm {unit}")
        unit.unlink()
        gone = [unit]
        others = "\n".join(p.read_text(errors="replace") for p in self.folder.glob("*.container"))
        for path in sorted(self.folder.glob("*.volume")):
            text = path.read_text(errors="replace")
            if self.engine == "podman" and MARK in text and f"={path.name}:" not in others:
                path.unlink()
                gone.append(path)
        return tuple(gone)

    def systemctl(self, *words: str, check: bool = True) -> proc.Result:
        """Raises EngineError where no systemd runs."""
        argv = ["systemctl", *(["--user"] if self.user else []), "--no-pager", *words]
        if proc.which("systemctl", env=self.env) is None:
            raise EngineError("this machine has no systemd", hint="imgbuild service print shows the units")
        done = proc.run(argv, env=self.env, check=False, timeout=_PATIENT)
        said = (done.stderr or done.stdout).strip()
        if done.returncode and ("not been booted with systemd" in said or "Failed to connect to bus" in said):
            raise EngineError(
                f"systemd does not run here: {said.splitlines()[0]}",
                hint="imgbuild service print shows the units; imgbuild run --detach needs no systemd",
            )
        if check and done.returncode:
            unit = f" --unit {words[-1]}" if words[-1].endswith(".service") else ""
            raise EngineError(
                f"systemctl {' '.join(words)}: {said[-600:]}",
                hint=f"journalctl{' --user' if self.user else ''}{unit}",
            )
        return done

    def lingers(self) -> bool:
        """Whether the caller's services run without a session: from boot on, and after a logout."""
        done = proc.run(["loginctl", "show-user", "--property=Linger"], env=self.env, check=False, timeout=30)
        return "Linger=yes" in done.stdout
