"""Which model files a worker has: told to Redis again and again, for frontends that have none themselves."""

from __future__ import annotations

import json
import logging
import zlib
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import httpx
import redis

from comfywork import names
from comfywork.link import text

if TYPE_CHECKING:
    import threading
    from collections.abc import Mapping

log = logging.getLogger("comfywork")

EVERY = 60.0  # seconds; a new model appears after that
_KEPT = 3  # rounds that a worker may miss before its files are forgotten
_LARGEST = 1 << 20  # bytes in Redis
_MOST = 20_000  # files
_TIMEOUT = httpx.Timeout(30.0, connect=3.0)  # ComfyUI walks the folders for each answer
_NONE = ("configs", "custom_nodes")

Lists = dict[str, list[str]]
"""Folder, as ComfyUI calls it → its files."""


class Lister:
    """In a thread of its own: folders on a slow volume hold up neither a job nor a heartbeat."""

    def __init__(self, server: str, connection: redis.Redis, worker: str, every: float = EVERY) -> None:
        self._server, self._redis, self._worker, self._every = server, connection, worker, every
        self._told: bytes | None = None
        self.count = 0
        """Files of the last round."""

    def run(self, over: threading.Event) -> None:
        with httpx.Client(base_url=self._server, timeout=_TIMEOUT, trust_env=False) as http:
            while True:
                pause = self._every
                try:
                    self.tell(lists(http))
                except (httpx.HTTPError, ValueError):
                    pause = min(5.0, self._every)  # ComfyUI is starting, or gone
                except redis.RedisError:
                    pass  # the heartbeat hears of it, too
                if over.wait(pause):
                    return

    def tell(self, found: Lists) -> None:
        self.count = sum(map(len, found.values()))
        packed, left_out = packed_lists(found)
        if left_out and packed != self._told:
            log.warning(
                "%d model files are too many to be offered elsewhere: %d are",
                self.count,
                self.count - left_out,
            )
        self._told = packed
        self._redis.set(names.models(self._worker), packed, ex=int(_KEPT * self._every) + 1)


def lists(http: httpx.Client) -> Lists:
    """What ComfyUI offers; folders without files are left out."""
    found: Lists = {}
    for folder in http.get("/models").raise_for_status().json():
        if folder in _NONE:
            continue
        answer = http.get(f"/models/{quote(str(folder), safe='')}")
        if answer.status_code == httpx.codes.OK and (files := [str(file) for file in answer.json()]):
            found[str(folder)] = files
    return found


def packed_lists(found: Lists) -> tuple[bytes, int]:
    """As it lies in Redis, and how many files found no room there."""
    count = sum(map(len, found.values()))
    room = _MOST
    while True:
        kept, left = {}, room
        for folder, files in sorted(found.items(), key=lambda pair: len(pair[1])):
            kept[folder] = files[: max(0, left)]
            left -= len(kept[folder])
        packed = zlib.compress(json.dumps(kept, sort_keys=True).encode())
        if len(packed) <= _LARGEST:
            return packed, count - sum(map(len, kept.values()))
        room //= 2


def read(connection: redis.Redis) -> dict[str, dict[str, int]]:
    """Folder → file → how many of the workers that live have it."""
    keys = sorted(connection.scan_iter(names.models("*"), count=500))
    found: dict[str, dict[str, int]] = {}
    packs: Any = connection.mget(keys) if keys else ()
    for packed in packs:
        for folder, files in _unpacked(packed).items():
            counts = found.setdefault(folder, {})
            for file in files:
                counts[file] = counts.get(file, 0) + 1
    return found


def workers(connection: redis.Redis) -> list[str]:
    """Who has told."""
    return sorted(text(key).rpartition(":")[2] for key in connection.scan_iter(names.models("*"), count=500))


def _unpacked(packed: bytes | None) -> Mapping[str, Any]:
    try:
        found = json.loads(zlib.decompress(packed)) if packed else {}
    except (ValueError, zlib.error):
        return {}
    return found if isinstance(found, dict) else {}
