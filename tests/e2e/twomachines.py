"""Two machines as far as an engine can tell, on one: each a network, process and mount namespace with a dockerd of its own.

Ending the first process of such a namespace ends all of its processes, and with them its mounts: what a power cut
does to a machine, and what leaves nothing behind here.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import ssl
import subprocess
import threading
import time
from dataclasses import dataclass, field
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from kit import wait_for

if TYPE_CHECKING:
    from collections.abc import Iterator

PROGRAMS = ("dockerd", "docker-registry", "ip", "iptables", "mmdebstrap", "nsenter", "openssl", "unshare")


def missing() -> str | None:
    """Why this cannot be done here."""
    if os.geteuid() != 0:
        return "network namespaces take root"
    absent = [name for name in PROGRAMS if shutil.which(name) is None]
    return f"not installed: {', '.join(absent)}" if absent else None


def call(*words: str | Path, check: bool = True, timeout: float = 120) -> str:
    done = subprocess.run(
        [str(w) for w in words], capture_output=True, text=True, check=False, timeout=timeout
    )
    assert not check or done.returncode == 0, f"{words}: {done.stderr}"
    return done.stdout.strip()


@dataclass
class Network:
    """A bridge of this machine; the machines hang on it. Names are this process's own, addresses too."""

    number: int = field(default_factory=lambda: os.getpid() % 250 + 1)

    @property
    def bridge(self) -> str:
        return f"imgb{os.getpid()}"

    def address(self, host: int) -> str:
        return f"10.231.{self.number}.{host}"

    def __enter__(self) -> Self:
        call("ip", "link", "add", self.bridge, "type", "bridge")
        call("ip", "address", "add", f"{self.address(1)}/24", "dev", self.bridge)
        call("ip", "link", "set", self.bridge, "up")
        return self

    def __exit__(self, *_: object) -> None:
        call("ip", "link", "delete", self.bridge, check=False)


@dataclass
class Machine:
    network: Network
    host: int
    folder: Path
    ca: Path
    leader: subprocess.Popen[bytes] | None = None

    @property
    def name(self) -> str:
        return f"imgb{os.getpid()}m{self.host}"

    @property
    def address(self) -> str:
        return self.network.address(self.host)

    @property
    def socket(self) -> str:
        return f"unix://{self.folder}/sock"

    def __enter__(self) -> Self:
        self.folder.mkdir(parents=True)
        inner = f"{self.name}i"
        call("ip", "netns", "add", self.name)
        try:
            call("ip", "link", "add", self.name, "type", "veth", "peer", "name", inner)
            call("ip", "link", "set", self.name, "master", self.network.bridge, "up")
            call("ip", "link", "set", inner, "netns", self.name)
            for words in (
                ("address", "add", f"{self.address}/24", "dev", inner),
                ("link", "set", inner, "up"),
                ("link", "set", "lo", "up"),
                ("route", "add", "default", "via", self.network.address(1)),
            ):
                call("ip", "-netns", self.name, *words)
            self.start()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()
        call("ip", "link", "delete", self.name, check=False)
        call("ip", "netns", "delete", self.name, check=False)
        shutil.rmtree(self.folder, ignore_errors=True)

    def start(self) -> None:
        """Its engine, with whatever its disk holds."""
        config = {
            "data-root": f"{self.folder}/data",
            "exec-root": f"{self.folder}/exec",
            "pidfile": f"{self.folder}/pid",
            "hosts": [self.socket],
            "features": {"containerd-snapshotter": True},
        }
        shutil.rmtree(self.folder / "exec", ignore_errors=True)
        for name in ("pid", "sock"):
            (self.folder / name).unlink(missing_ok=True)
        (self.folder / "daemon.json").write_text(json.dumps(config))
        argv = ["nsenter", f"--net=/var/run/netns/{self.name}"]  # ip netns exec would hide the cgroups
        argv += ["unshare", "--pid", "--fork", "--kill-child", "--mount-proc"]
        argv += ["dockerd", "--config-file", f"{self.folder}/daemon.json"]
        with (self.folder / "log").open("ab") as log:
            self.leader = subprocess.Popen(
                argv, stdout=log, stderr=log, env={**os.environ, "SSL_CERT_FILE": str(self.ca)}
            )
        up = wait_for(lambda: self.docker("version", check=False), 60)
        assert up, (self.folder / "log").read_text()[-2000:]

    def kill(self) -> None:
        """As if its power were cut: SIGKILL for the engine, and so for all it started."""
        if self.leader is None:
            return
        children = call("pgrep", "--parent", str(self.leader.pid), check=False).split()
        for pid in children:
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(pid), signal.SIGKILL)
        try:
            self.leader.wait(timeout=60)
        except subprocess.TimeoutExpired:
            self.leader.kill()
            self.leader.wait()
        self.leader = None

    def docker(self, *words: str, check: bool = True) -> str:
        return call("docker", "--host", self.socket, *words, check=check)

    def image(self, tag: str) -> Any:
        """What the engine knows of an image, or None."""
        found = json.loads(self.docker("image", "inspect", tag, check=False) or "[]")
        return found[0] if found else None


def certificate(folder: Path, address: str, *, beside: Path | None) -> tuple[Path, Path]:
    """A server's key and certificate in one file, and a bundle that trusts it beside what is trusted anyway."""
    pem, bundle = folder / "server.pem", folder / "ca.pem"
    authority, key, request = folder / "authority.pem", folder / "key.pem", folder / "request.pem"
    # An authority and what it signed: uv takes no certificate that is both.
    new = ("openssl", "req", "-newkey", "rsa:2048", "-nodes")
    name = "/CN=imgbuild test"
    call(*new, "-x509", "-days", "2", "-subj", name, "-keyout", folder / "authority.key", "-out", authority)
    call(*new, "-subj", f"{name} server", "-keyout", key, "-out", request)
    (folder / "extensions").write_text(f"subjectAltName=IP:{address}\nbasicConstraints=CA:FALSE\n")
    call(
        "openssl", "x509", "-req", "-days", "2", "-in", request, "-CA", authority, "-CAkey", folder / "authority.key",
        "-CAcreateserial", "-extfile", folder / "extensions", "-out", folder / "cert.pem",
    )  # fmt: skip
    pem.write_text(key.read_text() + (folder / "cert.pem").read_text())
    bundle.write_text(authority.read_text() + (beside.read_text() if beside else ""))
    return pem, bundle


class Index(ThreadingHTTPServer):
    """A package index of a few wheels, over TLS. It can keep one machine waiting, and counts what it gives out."""

    daemon_threads = True

    def __init__(self, address: str, folder: Path, pem: Path) -> None:
        self.folder = folder
        self.given: list[tuple[str, str]] = []
        self.keep_waiting: str | None = None
        self.waits, self.go_on = threading.Event(), threading.Event()
        super().__init__((address, 0), _Handler)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(pem)
        # The handshake in the connection's own thread: a client that is killed in it must not stop the others.
        self.socket = context.wrap_socket(self.socket, server_side=True, do_handshake_on_connect=False)

    @property
    def address(self) -> str:
        host, port = self.server_address[:2]
        return f"https://{host!s}:{port}/simple"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A killed client is what this is for."""


class _Handler(SimpleHTTPRequestHandler):
    server: Index

    def __init__(self, *args: Any) -> None:
        super().__init__(*args, directory=str(args[2].folder))

    def do_GET(self) -> None:
        if self.path.endswith(".whl"):
            self.server.given.append((self.client_address[0], self.path.rpartition("/")[2]))
            if self.client_address[0] == self.server.keep_waiting:
                self._slowly(Path(self.translate_path(self.path)).read_bytes())
                return
        super().do_GET()

    def _slowly(self, content: bytes) -> None:
        """A byte now and then, so that no client gives up, until the rest is wanted."""
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        sent = 0
        while not self.server.go_on.wait(1):
            self.wfile.write(content[sent : sent + 1])
            sent += 1
            self.server.waits.set()
        self.wfile.write(content[sent:])

    def log_message(self, *_args: Any) -> None:
        pass


@contextlib.contextmanager
def registry(address: str, folder: Path, pem: Path) -> Iterator[str]:
    """Debian's docker-registry on one address, over TLS."""
    folder.mkdir()
    port = 20000 + os.getpid() % 20000
    config = {
        "version": "0.1",
        "log": {"level": "error", "accesslog": {"disabled": True}},
        "storage": {"filesystem": {"rootdirectory": str(folder / "data")}},
        "http": {"addr": f"{address}:{port}", "tls": {"certificate": str(pem), "key": str(pem)}},
    }
    (folder / "config.yml").write_text(json.dumps(config))
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            ["docker-registry", "serve", folder / "config.yml"], stdout=log, stderr=log
        )
    try:
        time.sleep(1)
        assert process.poll() is None, (folder / "log").read_text()
        yield f"{address}:{port}"
    finally:
        process.terminate()
        process.wait()
