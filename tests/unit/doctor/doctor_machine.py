"""A machine made of recorded replies."""

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from imgbuild.doctor.mend.hands import Hands
from imgbuild.doctor.probe import Disk, Probe
from imgbuild.proc import Result

HANDLER = """enabled
interpreter /usr/libexec/qemu-binfmt/aarch64-binfmt-P
flags: {flags}
offset 0
magic 7f454c460201010000000000000000000200b700
mask ffffffffffffff00fffffffffffffffffeffffff
"""
CONF = r":qemu-aarch64:M::\x7fELF\xb7\x00:\xff\xff:/usr/libexec/qemu-binfmt/aarch64-binfmt-P:OPF" + "\n"
BINFMT = "/proc/sys/fs/binfmt_misc"
HANDLER_FILE = f"{BINFMT}/qemu-aarch64"
CONF_FILE = "/usr/lib/binfmt.d/qemu-aarch64.conf"
SOCKET = "unix:///var/run/docker.sock"
QEMU = "qemu-aarch64 version {} (Debian)\n"

DEBIAN_13 = (
    'ID=debian\nVERSION_ID="13"\nVERSION_CODENAME=trixie\nPRETTY_NAME="Debian GNU/Linux 13 (trixie)"\n'
)
DEBIAN_12 = (
    'ID=debian\nVERSION_ID="12"\nVERSION_CODENAME=bookworm\nPRETTY_NAME="Debian GNU/Linux 12 (bookworm)"\n'
)
UBUNTU_24 = (
    'ID=ubuntu\nID_LIKE=debian\nVERSION_ID="24.04"\nVERSION_CODENAME=noble\nPRETTY_NAME="Ubuntu 24.04 LTS"\n'
)
FEDORA = 'ID=fedora\nVERSION_ID=43\nPRETTY_NAME="Fedora Linux 43"\n'
ARCHIVE = """Types: deb
URIs: http://mirror.invalid/debian
Suites: bookworm bookworm-updates
Components: main
Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg

Types: deb
URIs: http://mirror.invalid/debian-security
Suites: bookworm-security
Components: main
Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg
"""


def done(stdout="", *, stderr="", returncode=0):
    return Result(returncode=returncode, stdout=stdout, stderr=stderr)


INFO = {
    "Driver": "overlayfs",
    "DriverStatus": [["driver-type", "io.containerd.snapshotter.v1"]],
    "DockerRootDir": "/var/lib/docker",
    "ContainersRunning": 0,
    "Images": 0,
    "Runtimes": {"runc": {}},
}
OLD_STORE = {**INFO, "Driver": "overlay2", "DriverStatus": [["Backing Filesystem", "extfs"]]}


@dataclass
class Machine:
    """All is well, until a test says otherwise; `probe()` is what doctor sees of it."""

    env: dict = field(default_factory=dict)
    arch: str = "x86_64"
    uid: int = 0
    programs: dict = field(
        default_factory=lambda: {
            name: (f"/usr/bin/{name}",)
            for name in ("docker", "dockerd", "git", "mmdebstrap", "arch-test", "apt-get", "apt-cache")
        }
    )
    files: dict = field(
        default_factory=lambda: {
            f"{BINFMT}/status": "enabled\n",
            f"{BINFMT}/register": "",
            HANDLER_FILE: HANDLER.format(flags="POF"),
            CONF_FILE: CONF,
            "/etc/os-release": DEBIAN_13,
            "/etc/docker/daemon.json": '{"features": {"containerd-snapshotter": true}}',
        }
    )
    replies: dict = field(
        default_factory=lambda: {
            "/usr/bin/docker --version": done("Docker version 26.1.5+dfsg1, build a72d7cd\n"),
            "docker version --format {{json .}}": done(
                json.dumps({"Client": {}, "Server": {"Version": "26.1.5+dfsg1"}})
            ),
            "docker version --format {{.Server.Version}}": done("26.1.5\n"),
            "docker context inspect": done(f"{SOCKET}\n"),
            "docker info": done(json.dumps(INFO)),
            "docker buildx version": done("github.com/docker/buildx 0.13.1+ds1 0.13.1+ds1-3\n"),
            "docker compose version": done("Docker Compose version 2.26.1-4\n"),
            "docker buildx imagetools inspect": done("Name: …\n"),
            "docker image ls": done(""),
            "docker ps": done(""),
            "git --version": done("git version 2.47.3\n"),
            "git ls-remote": done("abc\tHEAD\n"),
            "uv pip install": done(stderr="Would install 1 package\n"),
            "apt-cache policy": done(""),
            "apt-get": done(""),
            "systemctl": done(""),
            "mount": done(""),
        }
    )
    foreign: Result = field(default_factory=lambda: done(returncode=42))
    qemu: Result = field(default_factory=lambda: done(QEMU.format("10.0.13")))
    disks: dict = field(default_factory=lambda: {"/": Disk(device=1, free=100 * 10**9)})
    unreadable: dict = field(default_factory=dict)
    ran: list = field(default_factory=list)
    written: dict = field(default_factory=dict)
    poked: list = field(default_factory=list)
    spawned: list = field(default_factory=list)
    killed: list = field(default_factory=list)
    dead: set = field(default_factory=set)
    said: list = field(default_factory=list)
    on_spawn: Callable | None = None
    """Of the machine and the number of the start: what a program does that is started."""
    now: float = 0

    def without(self, *programs):
        for name in programs:
            self.programs.pop(name)
        return self

    def reply(self, start, *args, **kwargs):
        self.replies[start] = done(*args, **kwargs)
        return self

    def info(self, **changed):
        return self.reply("docker info", json.dumps({**INFO, **changed}))

    def down(self, stderr="Cannot connect to the Docker daemon at unix:///var/run/docker.sock."):
        self.reply(
            "docker version --format {{json .}}",
            '{"Client": {}, "Server": null}',
            stderr=stderr,
            returncode=1,
        )
        return self.reply("docker version --format {{.Server.Version}}", returncode=1)

    def probe(self):
        return Probe(
            env=self.env,
            arch=self.arch,
            uid=self.uid,
            python="/usr/bin/python3",
            uv="uv",
            run=self._run,
            execute=lambda program, *, env, timeout: self.qemu if env else self.foreign,
            which=lambda name: self.programs.get(name, ()),
            read=self._read,
            listing=self._listing,
            exists=lambda path: str(path) in self.files or any(f.startswith(f"{path}/") for f in self.files),
            disk=self._disk,
        )

    def hands(self):
        return Hands(
            probe=self.probe(),
            write=self._write,
            poke=lambda path, text: self.poked.append((str(path), text)),
            spawn=self._spawn,
            alive=lambda pid: pid not in self.dead,
            terminate=self._terminate,
            sleep=self._sleep,
            clock=lambda: self.now,
            say=self.said.append,
        )

    def _run(self, *argv, timeout=15, env=None):
        line = " ".join(argv)
        self.ran.append(line)
        if argv[0].startswith("docker") and "docker" not in self.programs:
            return done(returncode=127)
        fitting = [start for start in self.replies if line.startswith(start)]
        if not fitting:
            return done(returncode=127, stderr=f"no reply was recorded for: {line}")
        found = self.replies[max(fitting, key=len)]
        return found(line) if callable(found) else found

    def _read(self, path):
        if str(path) in self.unreadable:
            raise self.unreadable[str(path)]
        return self.files.get(str(path))

    def _listing(self, folder):
        names = (f.removeprefix(f"{folder}/") for f in self.files if f.startswith(f"{folder}/"))
        return tuple(sorted(n for n in names if "/" not in n))

    def _disk(self, path):
        places = [p for p in self.disks if Path(path).is_relative_to(p)]
        return self.disks[max(places, key=len)]

    def _write(self, path, text):
        self.written[str(path)] = self.files[str(path)] = text

    def _spawn(self, argv, log):
        self.spawned.append(list(argv))
        if self.on_spawn:
            self.on_spawn(self, len(self.spawned))
        return 4710 + len(self.spawned)

    def _terminate(self, pid):
        self.killed.append(pid)
        self.dead.add(pid)

    def _sleep(self, seconds):
        self.now += seconds


def policy(**packages):
    """`apt-cache policy`: name → (installed, candidate), with `_` and `__` for `-` and `.`."""
    text = ""
    for name, (installed, candidate) in packages.items():
        spelled = name.replace("__", ".").replace("_", "-")
        text += f"{spelled}:\n  Installed: {installed or '(none)'}\n  Candidate: {candidate or '(none)'}\n  Version table:\n"
    return text
