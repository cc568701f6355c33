"""What storage costs: MB/s of stage, publish and open, beside a plain copy of the same bytes in the same run.

    python bench/storage.py                     # volume, SeaweedFS, Redis, on this machine
    python bench/storage.py --rounds 9 --keep

Beside the volume stands cp with a flush (dd conv=fsync); beside S3, boto3's upload_file and download_file of the same
client; beside Redis, a plain SET and GET. Every round does one of each, in turns, so that both meet the same machine.
"""

from __future__ import annotations

import argparse
import io
import os
import statistics
import subprocess
import sys
import tempfile
import time
import uuid
from pathlib import Path
from typing import TYPE_CHECKING, Any

import machine
import output

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT / "entrypoint"), str(ROOT / "tests/queue/storage")]

import storage_servers as servers  # noqa: E402

from comfywork.storage import Place, S3Settings, Storage  # noqa: E402
from comfywork.storage.queued import QueueStorage  # noqa: E402
from comfywork.storage.s3 import S3Storage  # noqa: E402
from comfywork.storage.volume import VolumeStorage  # noqa: E402

if TYPE_CHECKING:
    from collections.abc import Callable

    from redis import Redis

_LIMIT = 1 << 30
_CHUNK = 1 << 20


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--sizes", type=int, nargs="+", default=[1, 256], help="MB")
    parser.add_argument("--keep", action="store_true", help="write the result to bench/results/ too")
    args = parser.parse_args()
    found: list[dict[str, Any]] = []
    busy = f"{os.getloadavg()[0]:.1f}"
    with tempfile.TemporaryDirectory(prefix="imgbuild-bench-") as folder:
        root = Path(folder)
        for name in ("volume", "weed", "redis"):
            (root / name).mkdir()
        volume = VolumeStorage(root / "volume", root / "volume", max_output=_LIMIT, max_input=_LIMIT)
        found += [measure("volume", volume, size, args.rounds, Copying(root)) for size in args.sizes]
        if servers.weed():
            with servers.seaweedfs(root / "weed") as server:
                storage = _s3(server)
                for size in args.sizes:
                    plain = Uploading(storage, root)
                    found.append(measure("S3 (SeaweedFS)", storage, size, args.rounds, plain, server.vacuum))
        with servers.redis_server(root / "redis") as client:
            queue = QueueStorage(client, max_output=_LIMIT, max_input=_LIMIT, total=_LIMIT, ttl=600)
            found.append(measure("queue (Redis)", queue, 1, args.rounds, Setting(client)))
    text = table(found, args.rounds) + f"Load before it began: {busy} on {os.cpu_count()} cores.\n"
    print(text, end="")
    if args.keep:
        output.keep(
            "storage",
            f"# Storage\n\n{machine.markdown()}\n{text}",
            {"machine": machine.describe(), "runs": found},
        )


def _s3(server: servers.S3Server) -> S3Storage:
    settings = S3Settings(
        bucket=servers.BUCKET, endpoint=server.endpoint, access_key=servers.ACCESS, secret_key=servers.SECRET
    )
    storage = S3Storage(settings, max_output=_LIMIT, max_input=_LIMIT)
    storage._client.create_bucket(Bucket=servers.BUCKET)  # noqa: SLF001
    return storage


class Copying:
    """dd with a flush, there and back."""

    name = "dd conv=fsync"

    def __init__(self, root: Path) -> None:
        self._source, self._target = root / "source", root / "target"

    def put(self, data: bytes) -> float:
        self._source.write_bytes(data)
        return _timed(lambda: self._dd(self._target, "conv=fsync"))

    def get(self) -> float:
        return _timed(lambda: self._dd(Path("/dev/null")))

    def _dd(self, target: Path, *more: str) -> None:
        source = self._source if more else self._target
        subprocess.run(["dd", f"if={source}", f"of={target}", "bs=1M", "status=none", *more], check=True)


class Uploading:
    """boto3's own transfer by the same client, from a file and to one."""

    name = "upload_file"

    def __init__(self, storage: S3Storage, root: Path) -> None:
        self._client, self._file = storage._client, root / "file"  # noqa: SLF001

    def put(self, data: bytes) -> float:
        self._file.write_bytes(data)
        return _timed(lambda: self._client.upload_file(str(self._file), servers.BUCKET, "plain"))

    def get(self) -> float:
        took = _timed(lambda: self._client.download_file(servers.BUCKET, "plain", str(self._file)))
        self._client.delete_object(Bucket=servers.BUCKET, Key="plain")
        return took


class Setting:
    name = "SET, GET"

    def __init__(self, client: Redis) -> None:
        self._client = client

    def put(self, data: bytes) -> float:
        return _timed(lambda: self._client.set("plain", data))

    def get(self) -> float:
        return _timed(lambda: self._client.get("plain"))


def measure(
    name: str,
    storage: Storage,
    size: int,
    rounds: int,
    plain: Any,
    between: Callable[[], None] = lambda: None,
) -> dict[str, Any]:
    data = os.urandom(_CHUNK) * size
    times: dict[str, list[float]] = {key: [] for key in ("stage", "publish", "open", "put", "get")}
    for _ in range(rounds + 1):
        times["put"].append(plain.put(data))
        times["get"].append(plain.get())
        place = Place(tenant="bench", job=str(uuid.uuid4()), token=1, name="1_0.bin")
        times["stage"].append(_timed(lambda place=place: storage.stage(place, io.BytesIO(data), None, "")))
        times["publish"].append(_timed(lambda place=place: storage.publish([place])))
        times["open"].append(_timed(lambda place=place: _read(storage, place.key)))
        storage.delete(place.key)
        between()
    # The first of each opens connections and fills caches.
    seconds = {key: statistics.median(all_[1:]) for key, all_ in times.items()}
    return {"storage": name, "beside": plain.name, "bytes": len(data), "seconds": seconds}


def _read(storage: Storage, key: str) -> None:
    with storage.open(key) as opened:
        while opened.read(_CHUNK):
            pass


def _timed(act: Callable[[], object]) -> float:
    begin = time.perf_counter()
    act()
    return time.perf_counter() - begin


def table(found: list[dict[str, Any]], rounds: int) -> str:
    rows = []
    for one in found:
        seconds, size = one["seconds"], one["bytes"] / 1e6
        into = seconds["stage"] + seconds["publish"]
        rows.append(
            [
                one["storage"],
                f"{size:,.0f}",
                f"{size / into:,.0f}",
                f"{seconds['stage'] * 1000:,.1f}",
                f"{seconds['publish'] * 1000:,.1f}",
                f"{one['beside']}: {size / seconds['put']:,.0f}",
                f"{into / seconds['put']:.2f}",
                f"{size / seconds['open']:,.0f}",
                f"{size / seconds['get']:,.0f}",
                f"{seconds['open'] / seconds['get']:.2f}",
            ]
        )
    columns = [
        *("storage", "MB", "stage + publish MB/s", "stage ms", "publish ms", "plain, MB/s", "time, × plain"),
        *("open and read MB/s", "plain MB/s", "time, × plain"),
    ]
    return (
        output.table(columns, rows, right=(1, 2, 3, 4, 6, 7, 8, 9))
        + f"\nMedians of {rounds} rounds of each, in turns; client and server on the same machine. Staging hashes what it "
        "writes (SHA-256) and flushes it; the plain ways do not hash.\n"
    )


if __name__ == "__main__":
    output.run(main)
