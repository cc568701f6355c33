"""What the entrypoint costs: seconds until ComfyUI is ready, and until it has stopped, beside a bare `main.py`.

    python bench/start.py comfyui:cpu
    python bench/start.py comfyui:h100 --rounds 5 --keep

Both run in containers of the image under the documented options (read-only, no capability, no new privileges, a UID
without a passwd entry, fresh volumes), with the same flags and environment: the bare one with those that `serve --print`
shows. Every round starts one of each, in turns, so that both meet the same machine. Ready is when GET /prompt answers;
stopping is SIGTERM until the container has ended.
"""

from __future__ import annotations

import argparse
import json
import secrets
import statistics
import time
import urllib.error
import urllib.request
import uuid
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import docker
import machine
import output

from imgbuild.errors import BuildError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

_PORT = 8188
_WAYS = ("bare", "comfyrun")
_DIRECT = urllib.request.build_opener(urllib.request.ProxyHandler({}))
_FOLDERS = "models input output temp user custom_nodes"


@dataclass(frozen=True, kw_only=True)
class Run:
    """One container: seconds, and how it ended."""

    way: str
    ready: float
    stop: float
    code: int


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("image")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--flags", default="--cpu", help="of ComfyUI (default: --cpu)")
    parser.add_argument("--timeout", type=float, default=300, help="seconds to wait for one start")
    parser.add_argument("--keep", action="store_true", help="write the result to bench/results/ too")
    args = parser.parse_args()
    client = docker.from_env()
    bench = Bench(client, args.image, args.flags.split(), args.timeout)
    bench.run("bare")  # the first start reads gigabytes from the disk, whoever makes it
    runs = [bench.run(way) for i in range(args.rounds) for way in (_WAYS if i % 2 else reversed(_WAYS))]
    facts = bench.facts()
    text = table(runs, facts)
    print(text, end="")
    if args.keep:
        name = f"start-{args.image.rpartition('/')[2].replace(':', '-')}"
        data = {"machine": machine.describe(), "image": facts, "runs": [vars(r) for r in runs]}
        output.keep(name, f"# Starting and stopping\n\n{machine.markdown()}\n{text}", data)


class Bench:
    def __init__(self, client: docker.DockerClient, image: str, flags: Sequence[str], timeout: float) -> None:
        self.client, self.image, self.flags, self.timeout = client, image, list(flags), timeout
        # No passwd entry in any image.
        self.uid = 20_000 + secrets.randbelow(40_000)
        shown = json.loads(
            client.containers.run(
                image,
                ["serve", "--print", "--json", *flags],
                remove=True,
                stderr=False,
                **self._options(),
            )
        )
        self.argv: list[str] = shown["argv"]
        self.env = {v["name"]: v["value"] for v in shown["environment"]}
        self.target: Mapping[str, Any] = shown["image"]

    def facts(self) -> dict[str, str]:
        return {
            "image": f"{self.image}, {str(self.client.images.get(self.image).id)[:19]}",
            "ComfyUI": self.target["comfyui"],
            "torch": self.target["torch"],
            "flags": " ".join(self.flags),
        }

    def run(self, way: str) -> Run:
        bare = f'mkdir -p {" ".join("/data/" + f for f in _FOLDERS.split())} && exec "$@"'
        with self._volumes() as volumes:
            container = self.client.containers.create(
                self.image,
                **(
                    {"command": ["serve", *self.flags]}
                    if way == "comfyrun"
                    else {
                        "entrypoint": ["/usr/bin/tini", "--", "/bin/sh", "-c", bare, "sh"],
                        "command": self.argv,
                        "environment": self.env,
                    }
                ),
                volumes=volumes,
                **self._options(),
            )
            try:
                return self._measured(way, container)
            finally:
                container.remove(force=True, v=True)

    def _measured(self, way: str, container: Any) -> Run:
        begun = time.monotonic()
        container.start()
        container.reload()
        (binding,) = container.ports[f"{_PORT}/tcp"]
        url = f"http://127.0.0.1:{binding['HostPort']}/prompt"
        while not _answers(url):
            container.reload()
            if container.status == "exited" or time.monotonic() - begun > self.timeout:
                last = container.logs(tail=20).decode("utf-8", "replace")
                raise BuildError(f"{way}: {self.image} did not become ready ({container.status}):\n{last}")
            time.sleep(0.05)
        ready = time.monotonic() - begun
        time.sleep(1)  # what a server does after its first answer is no part of its stop
        begun = time.monotonic()
        container.kill("SIGTERM")
        code = container.wait(timeout=60)["StatusCode"]
        return Run(way=way, ready=ready, stop=time.monotonic() - begun, code=code)

    def _options(self) -> dict[str, Any]:
        return {
            "user": f"{self.uid}:{self.uid}",
            "read_only": True,
            "cap_drop": ["ALL"],
            "security_opt": ["no-new-privileges"],
            "tmpfs": {"/tmp": "rw,exec,nosuid,nodev,mode=1777"},
            "ports": {f"{_PORT}/tcp": ("127.0.0.1", None)},
        }

    @contextmanager
    def _volumes(self) -> Iterator[dict[str, dict[str, str]]]:
        made = {f"imgbuild-bench-{uuid.uuid4().hex[:12]}": f"/{what}" for what in ("data", "cache")}
        try:
            for name in made:
                self.client.volumes.create(name)
            yield {name: {"bind": path, "mode": "rw"} for name, path in made.items()}
        finally:
            for name in made:
                self.client.volumes.get(name).remove(force=True)


def _answers(url: str) -> bool:
    try:
        with _DIRECT.open(url, timeout=5) as response:
            return "exec_info" in json.load(response)
    except (OSError, ValueError):
        return False


def table(runs: Sequence[Run], facts: Mapping[str, str]) -> str:
    found = {way: [r for r in runs if r.way == way] for way in _WAYS}

    def cells(way: str) -> list[str]:
        ready = [r.ready for r in found[way]]
        stop = [r.stop for r in found[way]]
        codes = ", ".join(sorted({str(r.code) for r in found[way]}))
        return [
            f"{statistics.median(ready):.2f}",
            f"{min(ready):.2f}-{max(ready):.2f}",
            f"{statistics.median(stop):.2f}",
            f"{min(stop):.2f}-{max(stop):.2f}",
            codes,
        ]

    names = {"bare": "`python main.py`", "comfyrun": "`comfyrun serve`"}
    shown = [[names[way], *cells(way)] for way in _WAYS]
    medians = [statistics.median(r.ready for r in found[way]) for way in _WAYS]
    return (
        "".join(f"- {name}: {value}\n" for name, value in facts.items())
        + "\n"
        + output.table(["", "ready s", "range", "stop s", "range", "exit code"], shown, right=(1, 2, 3, 4, 5))
        + f"\nReady: {medians[1] / medians[0]:.2f} × the bare start ({medians[1] - medians[0]:+.2f} s), "
        f"medians of {len(found['bare'])} starts of each, in turns.\n"
    )


if __name__ == "__main__":
    output.run(main)
