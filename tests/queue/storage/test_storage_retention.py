"""What goes when it is old, on every storage; and what stays."""

from __future__ import annotations

import io
import time
import uuid

from comfywork.storage import Place, Storage, StorageSettings, sweep


def made(storage: Storage, tenant: str, count: int = 2) -> list[str]:
    job = str(uuid.uuid4())
    places = [Place(tenant=tenant, job=job, token=1, name=f"{n}_0.png") for n in range(count)]
    for place in places:
        storage.stage(place, io.BytesIO(b"x" * 10), 10, "")
    storage.publish(places)
    return [place.key for place in places]


def keys(storage: Storage) -> set[str]:
    return {found.key for found in storage.keys("")}


def test_what_is_old_goes_and_what_is_held_stays(storage: Storage) -> None:
    old, other, forever, live = (made(storage, tenant) for tenant in ("acme", "short", "vip", "acme"))
    wanted = storage.put_input("acme", "wanted.png", io.BytesIO(b"1"), 1, "").key
    unwanted = storage.put_input("acme", "unwanted.png", io.BytesIO(b"22"), 2, "").key
    time.sleep(2.2)
    fresh = made(storage, "acme")
    held = {*live[:1], wanted}
    settings = StorageSettings(retention=1.5, retention_of={"vip": None, "short": 3600.0})
    before = keys(storage)

    planned = sweep(storage, settings, held.__contains__, dry_run=True)
    assert keys(storage) == before
    assert planned.dry_run
    assert (planned.swept.objects, planned.swept.size) == (3, 22)
    assert planned.tenants.keys() == {"acme"}
    assert (planned.held.objects, planned.held.size) == (3, 21)

    report = sweep(storage, settings, held.__contains__)
    assert report.swept == planned.swept
    assert before - keys(storage) == {*old, unwanted}
    assert keys(storage) == {*other, *forever, *live, *fresh, wanted}
    assert sweep(storage, settings, held.__contains__).swept.objects == 0


def test_without_a_setting_nothing_goes(storage: Storage) -> None:
    made(storage, "acme")
    time.sleep(1.1)
    report = sweep(storage, StorageSettings(), lambda _: False)
    assert report.swept.objects == 0
    assert report.kept.objects == 2


def test_a_jobs_outputs_go_together(storage: Storage) -> None:
    job = str(uuid.uuid4())
    for n in range(2):
        place = Place(tenant="acme", job=job, token=1, name=f"{n}_0.png")
        storage.stage(place, io.BytesIO(b"x"), 1, "")
        storage.publish([place])
        time.sleep(2.2 if not n else 0)
    assert sweep(storage, StorageSettings(retention=1.5), lambda _: False).kept.objects == 2
    assert len(keys(storage)) == 2
