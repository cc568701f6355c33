"""What a start is for: `serve`, or a worker's ComfyUI, which listens and writes elsewhere."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from comfyrun import options, scratch
from comfyrun import settings as settings_module
from comfyrun.options import OWN

if TYPE_CHECKING:
    from comfyrun.flagtable import FlagTable, Option
    from comfyrun.layout import Layout


@dataclass(frozen=True, kw_only=True)
class Role:
    name: Literal["serve", "worker"] = "serve"
    listen: str = settings_module.Settings.listen
    """Unless somebody says otherwise."""
    worker: str = ""
    """A worker's id: its ComfyUI writes to a folder of its own on the cache volume, and none of it is kept there."""

    def options(
        self,
        table: FlagTable,
        layout: Layout,
        *,
        data: tuple[str, str],
        user: tuple[str, str] | None,
        cache: str,
    ) -> list[Option]:
        """The flags that every start gets; `user` is a folder that somebody has named."""
        if not self.worker:
            return options.own_options(table, layout, data=data, user=user)
        origin, place = f"{OWN}: worker {self.worker}", scratch.place(cache, self.worker)
        folders = [
            ("--output-directory", f"{place}/output", origin),
            ("--input-directory", f"{place}/input", origin),
            ("--temp-directory", place, origin),  # ComfyUI adds the name
        ]
        if user is None:
            # Settings and database: one a server, or the second finds it locked.
            user = (f"{place}/user", origin)
            folders.append(("--user-directory", *user))
        return options.own_options(
            table, layout, data=data, user=user, listen=(self.listen, origin), folders=folders
        )
