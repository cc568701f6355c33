"""Retention: what is too old goes, and never what a job that has not ended holds or wants."""

from __future__ import annotations

import io
import os
import time
from pathlib import Path

import redis

from comfywork.broker import Broker, Submission
from comfywork.keeping import Keeper
from comfywork.lease import Lease, Ledger
from comfywork.settings import Settings
from comfywork.storage import Place, Storage, StorageSettings, open_storage

WORKFLOW = {
    "1": {"class_type": "LoadImage", "inputs": {"image": "me.png"}},
    "2": {"class_type": "SaveImage", "inputs": {"images": ["1", 0], "filename_prefix": "x"}},
}


def stored(folder: Path, connection: redis.Redis, **more: str) -> tuple[Storage, StorageSettings]:
    for name in ("outputs", "inputs"):
        (folder / name).mkdir(exist_ok=True)
    environ = {"OUTPUTS_PATH": str(folder / "outputs"), "INPUTS_PATH": str(folder / "inputs"), **more}
    settings = StorageSettings.from_environment(environ)
    return open_storage(settings, connection), settings


def aged(folder: Path, seconds: float) -> None:
    then = time.time() - seconds
    for file in folder.rglob("*"):
        if file.is_file():
            os.utime(file, (then, then))


def files(folder: Path) -> list[str]:
    return sorted(file.suffix for file in folder.rglob("*") if file.is_file())


def test_a_sweep(
    tmp_path: Path, connection: redis.Redis, settings: Settings, broker: Broker, ledger: Ledger
) -> None:
    storage, kinds = stored(tmp_path, connection, RETENTION="1d", RETENTION_KEEPS="never")
    keeper = Keeper(connection, storage, kinds, settings.job_timeout)
    wanted = storage.put_input("acme", "me.png", io.BytesIO(b"wanted"), None, "image/png").key
    storage.put_input("acme", "me.png", io.BytesIO(b"unwanted"), None, "image/png")
    job = broker.submit(Submission(workflow=WORKFLOW, tenant="acme", inputs={"me.png": wanted}))
    assert ledger.own("w1", "n")
    lease = ledger.take("w1", "n")
    assert isinstance(lease, Lease)
    places = [Place(tenant="acme", job=job.id, token=lease.token, name=f"2_{n}.png") for n in (0, 1)]
    for place in places:
        storage.stage(place, io.BytesIO(b"png"), None, "image/png")
    storage.publish(places[:1])
    for tenant in ("acme", "keeps"):
        old = Place(tenant=tenant, job="00000000-0000-4000-8000-000000000001", token=1, name="9_0.png")
        storage.stage(old, io.BytesIO(b"old"), None, "image/png")
        storage.publish([old])
    dead = Place(tenant="acme", job="00000000-0000-4000-8000-000000000002", token=1, name="9_0.png")
    storage.stage(dead, io.BytesIO(b"left"), None, "image/png")
    assert keeper.sweep().all.objects == 0, "nothing is old"
    aged(tmp_path, 3 * 86400)
    would = keeper.sweep(dry_run=True)
    assert {tenant: one.objects for tenant, one in would.tenants.items()} == {"acme": 2}
    assert (would.staged.objects, len(files(tmp_path))) == (1, 7)
    assert keeper.sweep() == would
    assert len(files(tmp_path)) == 4, (
        "an input and two outputs of the job that runs, and one that is kept for ever"
    )
    assert storage.open(wanted).read() == b"wanted"
    storage.publish(places)
    ledger.finish(lease, ledger.seal(lease, [], lease.token))
    aged(tmp_path, 3 * 86400)
    assert keeper.sweep().all.objects == 3
    assert [key.key.split("/")[0] for key in storage.keys("")] == ["keeps"]


def test_without_a_retention_only_what_is_half_done_goes(
    tmp_path: Path, connection: redis.Redis, settings: Settings
) -> None:
    storage, kinds = stored(tmp_path, connection)
    done = Place(tenant="acme", job="00000000-0000-4000-8000-000000000001", token=1, name="9_0.png")
    left = Place(tenant="acme", job="00000000-0000-4000-8000-000000000002", token=1, name="9_0.png")
    for place in (done, left):
        storage.stage(place, io.BytesIO(b"x"), None, "image/png")
    storage.publish([done])
    aged(tmp_path, 90 * 86400)
    kept = Keeper(connection, storage, kinds, settings.job_timeout).sweep()
    assert (kept.tenants, kept.staged.objects) == ({}, 1)
    assert [one.key for one in storage.keys("")] == [done.key]
