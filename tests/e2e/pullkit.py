"""A registry of this machine for one test run, and what it was asked for."""

from __future__ import annotations

import re
import shutil
import socket
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

_FETCHED = re.compile(r'"GET (/v2/\S+/blobs/\S+) HTTP/1.1" 20[06] (\d+)')


@dataclass(frozen=True, kw_only=True)
class Loopback:
    host: str
    log: Path
    folder: Path

    def fetched(self, path: str) -> dict[str, int]:
        """Bytes of each blob that was fetched of a repository since the log began, by digest."""
        found: dict[str, int] = {}
        for name, size in _FETCHED.findall(self.log.read_text()):
            if name.startswith(f"/v2/{path}/blobs/"):
                digest = name.rpartition("/")[2]
                found[digest] = found.get(digest, 0) + int(size)
        return found


def loopback(folder: Path) -> Iterator[Loopback]:
    """Debian's docker-registry by plain HTTP; skips where it is not installed."""
    if shutil.which("docker-registry") is None:
        pytest.skip("no docker-registry: apt-get install docker-registry")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    host = f"127.0.0.1:{port}"
    config, log = folder / "registry.yml", folder / "registry.log"
    config.write_text(
        "version: 0.1\nlog: {level: info}\n"
        f"storage: {{filesystem: {{rootdirectory: {folder / 'data'}}}, delete: {{enabled: true}}}}\n"
        f"http: {{addr: {host}}}\n"
    )
    with log.open("wb") as out:
        child = subprocess.Popen(["docker-registry", "serve", config], stdout=out, stderr=out)
    try:
        for _ in range(100):
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(0.1)
        yield Loopback(host=host, log=log, folder=folder / "data")
    finally:
        child.terminate()
        child.wait(timeout=10)
