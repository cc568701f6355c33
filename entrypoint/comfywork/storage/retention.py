"""What is older than its tenant's retention goes; nothing that a live job holds."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from comfywork.storage import names
from comfywork.storage.base import Swept

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from comfywork.storage.base import ListedObject, Storage
    from comfywork.storage.settings import StorageSettings


@dataclass(frozen=True, kw_only=True)
class Report:
    """`tenants`: what went, by tenant; `held`: what was old enough, and stayed because a live job has it."""

    tenants: dict[str, Swept] = field(default_factory=dict)
    held: Swept = field(default_factory=Swept)
    kept: Swept = field(default_factory=Swept)
    dry_run: bool = False

    @property
    def swept(self) -> Swept:
        return sum(self.tenants.values(), start=Swept())


def sweep(
    storage: Storage,
    settings: StorageSettings,
    held: Callable[[str], bool],
    *,
    dry_run: bool = False,
) -> Report:
    """Delete the objects of jobs, and inputs, that are older than RETENTION or RETENTION_<TENANT> says.

    Ages are by the storage's clock. A job's outputs go together, when the newest is old enough. `held(key)` says
    whether a job that has not ended has this output, or wants this input; it is asked again before each deletion.
    """
    now = storage.now()
    tenants: dict[str, Swept] = {}
    stayed = kept = Swept()
    for objects in _together(storage.keys("")):
        tenant = objects[0].key.partition("/")[0]
        keep = settings.retention_for(tenant)
        found = Swept(objects=len(objects), size=sum(one.size for one in objects))
        if keep is None or now - max(one.modified for one in objects) < keep:
            kept += found
        elif any(held(one.key) for one in objects):
            stayed += found
        else:
            tenants[tenant] = tenants.get(tenant, Swept()) + found
            for one in () if dry_run else objects:
                storage.delete(one.key)
    return Report(tenants=tenants, held=stayed, kept=kept, dry_run=dry_run)


def _together(objects: Iterator[ListedObject]) -> Iterator[list[ListedObject]]:
    """A job's outputs as one, an input by itself. A job's keys come one after the other."""
    group: list[ListedObject] = []
    for one in objects:
        if group and (names.job_of(one.key) is None or _owner(group[0].key) != _owner(one.key)):
            yield group
            group = []
        group.append(one)
    if group:
        yield group


def _owner(key: str) -> str:
    return key.rpartition("/")[0]
