"""Kills a worker with SIGKILL between every two steps of a call, and lets another one finish. Prints what it did as JSON.

    python killing.py volume FOLDER | s3 ENDPOINT PREFIX | redis PORT

A step is a call of the operating system that changes a file, or a request on its way to S3 or Redis, or the answer on
its way back. The worker is a process of its own, forked from this one, which has no threads and no connections.
"""

from __future__ import annotations

import io
import json
import os
import signal
import sys
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

from comfywork.storage import MissingError, Place, S3Settings, Storage
from comfywork.storage.queued import QueueStorage
from comfywork.storage.volume import VolumeStorage

LARGE = os.urandom(1 << 20) * 6  # two parts of an upload, and of a copy
SMALL = b"\x89PNG\r\n\x1a\nsmall"


def opened(argv: list[str]) -> Storage:
    match argv:
        case ["volume", folder]:
            root = Path(folder)
            return VolumeStorage(root, root, max_output=1 << 30, max_input=1 << 30)
        case ["s3", endpoint, prefix]:
            from comfywork.storage.s3 import S3Storage, Sizes

            settings = S3Settings(
                bucket="imgbuild-tests",
                endpoint=endpoint,
                prefix=prefix,
                access_key="test-key",
                secret_key="test-secret",
            )
            small = Sizes(part=5 << 20, copy=5 << 20, copy_part=5 << 20)
            return S3Storage(settings, max_output=1 << 30, max_input=1 << 30, sizes=small)
        case ["redis", port]:
            import redis

            client = redis.Redis(host="127.0.0.1", port=int(port))
            return QueueStorage(client, max_output=1 << 30, max_input=1 << 30, total=1 << 30, ttl=600)
    raise SystemExit(__doc__)


class Killer:
    """Counts steps and kills this process before the one that is due."""

    def __init__(self, due: int) -> None:
        self._left = due

    def step(self) -> None:
        self._left -= 1
        if self._left < 0:
            os.kill(os.getpid(), signal.SIGKILL)

    def around(self, owner: Any, name: str, *, after: bool) -> None:
        real = getattr(owner, name)

        def stepped(*args: Any, **more: Any) -> Any:
            self.step()
            done = real(*args, **more)
            if after:
                self.step()
            return done

        setattr(owner, name, stepped)

    def install(self, kind: str) -> None:
        match kind:
            case "volume":
                for name in ("open", "mkdir", "write", "fsync", "rename", "unlink", "rmdir", "close"):
                    self.around(os, name, after=False)
            case "s3":
                from botocore.httpsession import URLLib3Session

                self.around(URLLib3Session, "send", after=True)
            case "redis":
                from redis.connection import AbstractConnection

                self.around(AbstractConnection, "send_packed_command", after=True)


def killed(storage: Storage, argv: list[str], due: int, act: Callable[[Storage], None]) -> bool:
    """Whether the worker was killed before it was done."""
    child = os.fork()
    if not child:
        try:
            Killer(due).install(argv[0])
            act(storage)
        except BaseException as error:  # noqa: BLE001 - a forked child must not go on as its parent
            print(repr(error), file=sys.stderr)
            os._exit(1)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status):
        assert os.WTERMSIG(status) == signal.SIGKILL
        return True
    assert os.waitstatus_to_exitcode(status) == 0
    return False


def left(storage: Storage) -> int:
    return storage.sweep_staging(-60, dry_run=True).objects


def walk(  # noqa: C901 - one branch an action
    argv: list[str], sizes: tuple[bytes, bytes], actions: tuple[str, ...]
) -> dict[str, int]:
    steps = dict.fromkeys(actions, 0)
    # Made once, since that takes long; the one has never been used here, so that a child finds no connection in it.
    untouched, storage = opened(argv), opened(argv)
    for action in steps:
        while True:
            job = str(uuid.uuid4())
            places = [Place(tenant="acme", job=job, token=5, name=f"9_{n}.mp4") for n in range(2)]

            def stage(storage: Storage, places: list[Place] = places) -> None:
                for place, content in zip(places, sizes, strict=True):
                    storage.stage(place, io.BytesIO(content), None, "video/mp4")

            def whole(storage: Storage, places: list[Place] = places) -> None:
                for place, content in zip(places, sizes, strict=True):
                    with storage.open(place.key) as opened:
                        assert opened.read() == content, place.key

            match action:
                case "stage":
                    died = killed(untouched, argv, steps[action], stage)
                    assert not list(storage.keys("")), "staged and already listed"
                    # Another worker has the next token: it does not know what is there, and makes all anew.
                    again = [Place(tenant="acme", job=job, token=6, name=place.name) for place in places]
                    for place, content in zip(again, sizes, strict=True):
                        storage.stage(place, io.BytesIO(content), None, "video/mp4")
                    storage.publish(again)
                    whole(storage)
                    storage.discard("acme", job, 5)
                case "publish":
                    stage(storage)
                    died = killed(
                        untouched, argv, steps[action], lambda storage, places=places: storage.publish(places)
                    )
                    storage.publish(places)
                    whole(storage)
                    storage.publish(places)
                case "discard":
                    stage(storage)
                    died = killed(
                        untouched,
                        argv,
                        steps[action],
                        lambda storage, job=job: storage.discard("acme", job, 5),
                    )
                    storage.discard("acme", job, 5)
                    try:
                        storage.publish(places)
                    except MissingError:
                        pass
                    else:
                        raise AssertionError("discarded and published")
                case "input":

                    def keep(storage: Storage) -> None:
                        storage.put_input("acme", "x.mp4", io.BytesIO(sizes[0]), None, "video/mp4")

                    died = killed(untouched, argv, steps[action], keep)
                    for found in storage.keys("acme/inputs/"):
                        with storage.open(found.key) as there:
                            assert there.read() == sizes[0]
                    storage.put_input("acme", "x.mp4", io.BytesIO(sizes[0]), None, "video/mp4")
                    storage.sweep_staging(-60)
            for found in list(storage.keys("")):
                storage.delete(found.key)
            assert left(storage) == 0, (action, steps[action], left(storage))
            if not died:
                break
            steps[action] += 1
    return steps


if __name__ == "__main__":
    found = walk(sys.argv[1:], (SMALL * 2, SMALL), ("stage", "publish", "discard", "input"))
    if sys.argv[1] == "s3":
        large = walk(sys.argv[1:], (LARGE, SMALL), ("stage", "publish"))
        found |= {f"{action} in parts": steps for action, steps in large.items()}
    print(json.dumps(found))
