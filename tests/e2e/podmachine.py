"""A machine with systemd and Debian 13's Podman, for the verbs of `imgbuild service`: a container of this machine's Podman.

systemd is its PID 1, so units are generated, started at boot and restarted as anywhere. Its Podman reads the images of
this machine's, and keeps containers and volumes of its own. The tool runs on this machine: `podman` and `systemctl`
are words into the other one, and /etc/containers is the other one's.
"""

from __future__ import annotations

import json
import os
import secrets
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from kit import ROOT, wait_for
from scratch import tool_argv, tool_env
from served import picture

from imgbuild.bases import machine_mirrors

if TYPE_CHECKING:
    from imgbuild.engines.podman import Podman

_PACKAGES = (
    "systemd",
    "systemd-sysv",
    "dbus",
    "podman",
    "crun",
    "runc",
    "netavark",
    "aardvark-dns",
    "nftables",
)
_STORE = "/srv/store"
_CLIENT = ROOT / "tests" / "image" / "comfyclient.py"
_SIGRTMIN_3 = "37"
"""With which systemd shuts down."""


def bootstrap(root: Path) -> str | None:
    """Debian 13 in this folder: 50 s, 300 MB. Why not, where it cannot be had."""
    sources = root.with_suffix(".list")
    sources.write_text("".join(f"{line}\n" for line in machine_mirrors("trixie")))
    argv = ["mmdebstrap", "--variant=minbase", f"--include={','.join(_PACKAGES)}", "trixie", str(root)]
    argv += [f"--dpkgopt=path-exclude=/usr/share/{name}/*" for name in ("doc", "man", "locale")]
    argv += [str(sources)] if sources.read_text() else []
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    return done.stderr[-300:] if done.returncode else None


@dataclass(frozen=True)
class PodMachine:
    podman: Podman
    folder: Path
    """On both machines; what is not below it is not seen there."""
    name: str = field(default_factory=lambda: f"imgbuild-test-machine-{secrets.token_hex(4)}")

    @property
    def root(self) -> Path:
        return self.folder / "root"

    def boot(self) -> None:
        self._settings()
        argv = ["run", "--detach", "--name", self.name, "--hostname", "podmachine", "--privileged"]
        argv += ["--network", "none"]  # its own Podman makes one, of the same addresses as this one's
        # Not --systemd=always: on cgroups v1, Podman then gives it the host's tree of groups.
        argv += ["--systemd=false", "--stop-signal", _SIGRTMIN_3, "--cgroupns=private", *self.podman.limits]
        argv += ["--tmpfs", "/run", "--tmpfs", "/tmp", "--env", "container=podman"]
        if not Path("/sys/fs/cgroup/cgroup.controllers").exists():
            forced = "systemd.unified_cgroup_hierarchy=0 SYSTEMD_CGROUP_ENABLE_LEGACY_FORCE=1"
            argv += ["--env", f"SYSTEMD_PROC_CMDLINE={forced}"]
        argv += ["--volume", f"{self.podman.data_root()}:{_STORE}:ro"]
        argv += ["--volume", f"{self.folder / 'shared'}:{self.folder / 'shared'}"]
        done = self._engine(*argv, "--rootfs", str(self.root), "/lib/systemd/systemd")
        assert done.returncode == 0, done.stderr
        self._booted()

    def reboot(self) -> None:
        done = self._engine("restart", "--time", "40", self.name)
        assert done.returncode == 0, done.stderr
        self._booted()

    def gone(self) -> None:
        self._engine("rm", "--force", "--time", "20", "--volumes", self.name)

    def call(self, *words: str, timeout: float = 120) -> subprocess.CompletedProcess[str]:
        quiet = ("--env", "PODMAN_IGNORE_CGROUPSV1_WARNING=1")
        return self._engine("exec", *quiet, self.name, *words, timeout=timeout)

    def tool(self, *words: str) -> subprocess.CompletedProcess[str]:
        """imgbuild, as if it were run there by root."""
        here = self._words_into_it()
        env = {**tool_env(None), "IMGBUILD_CACHE": str(self.folder / "cache")}
        env["PATH"] = f"{here}{os.pathsep}{env['PATH']}"
        inside = 'mount --bind "$0" /etc/containers && exec "$@"'
        argv = ["unshare", "--mount", "sh", "-c", inside, str(self.root / "etc/containers")]
        return subprocess.run(
            [*argv, *tool_argv("--project", ROOT, *words)],
            env=env,
            capture_output=True,
            text=True,
            check=False,
            timeout=300,
        )

    def state(self, unit: str) -> str:
        return self.call("systemctl", "is-active", unit).stdout.strip()

    def property(self, unit: str, name: str) -> str:
        return self.call("systemctl", "show", "--value", f"--property={name}", unit).stdout.strip()

    def generate(self, port: int, color: int = 0xFF8800) -> None:
        """Run a workflow from its own network."""
        flow = self.folder / "picture.json"
        flow.write_text(json.dumps({"prompt": picture(color)}))
        argv = ["nsenter", f"--net=/proc/{self._pid()}/ns/net", sys.executable, str(_CLIENT)]
        done = subprocess.run(
            [*argv, f"http://127.0.0.1:{port}", str(flow), "--output", str(self.folder / "pictures")],
            capture_output=True,
            text=True,
            check=False,
            timeout=300,
        )
        assert done.returncode == 0, done.stdout + done.stderr

    def _engine(self, *words: str, timeout: float = 120) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*self.podman.command, *words], capture_output=True, text=True, check=False, timeout=timeout
        )

    def _pid(self) -> str:
        return self._engine("inspect", "--format", "{{.State.Pid}}", self.name).stdout.strip()

    def _booted(self) -> None:
        assert wait_for(
            lambda: self.call("systemctl", "is-system-running").stdout.strip() in ("running", "degraded"), 60
        ), self._engine("logs", self.name).stdout

    def _settings(self) -> None:
        etc = self.root / "etc/containers"
        (etc / "storage.conf").write_text(
            '[storage]\ndriver = "overlay"\ngraphroot = "/var/lib/containers/storage"\n'
            f'runroot = "/run/containers/storage"\n[storage.options]\nadditionalimagestores = ["{_STORE}"]\n'
        )
        if self.podman.confined:
            limits = ", ".join(f'"{word}"' for word in self.podman.limits if "=" in word)
            (etc / "containers.conf").write_text(f"[containers]\ndefault_ulimits = [{limits}]\n")
        (self.folder / "shared").mkdir(exist_ok=True)

    def _words_into_it(self) -> Path:
        """`podman` and `systemctl`, from a mount namespace of its own back to this machine's engine."""
        here = self.folder / "bin"
        here.mkdir(exist_ok=True)
        engine = " ".join(["/usr/bin/podman", *self.podman.command[1:]])
        for program in ("podman", "systemctl"):
            path = here / program
            path.write_text(
                f"#!/bin/sh\nexec nsenter --mount=/proc/{os.getpid()}/ns/mnt -- {engine} exec "
                f'--env PODMAN_IGNORE_CGROUPSV1_WARNING=1 {self.name} {program} "$@"\n'
            )
            path.chmod(0o755)
        return here
