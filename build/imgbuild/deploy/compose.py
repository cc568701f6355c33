"""A deployment as compose files: a base that all targets share, a file a target, and a reverse proxy."""

from __future__ import annotations

import json
import re
import shlex
from dataclasses import dataclass
from typing import TYPE_CHECKING

from imgbuild.deploy.argv import tmpfs
from imgbuild.deploy.deployment import NEVER_RESTART, PORT, Deployment, Volume, spell

if TYPE_CHECKING:
    from pathlib import Path

    from imgbuild.render import Files, Renderer

FOLDER = "compose"
HEADER = "# Rendered from "
VARIABLE_LABEL = "imgbuild.compose."
"""Labels of a service that hold the settings it was started with."""
SECRETS = ("htpasswd", "cert.pem", "key.pem")
_VARIABLES = {"/data": "COMFYUI_DATA", "/cache": "COMFYUI_CACHE"}


@dataclass(frozen=True, kw_only=True)
class _Mount:
    source: str
    target: str
    read_only: bool
    label: str
    variable: str
    """What names another volume or folder; empty for a folder that was asked for."""


@dataclass(frozen=True, kw_only=True)
class _View:
    """What the templates see, computed here."""

    again: str
    image_variable: str
    path: str
    title: str
    mounts: tuple[_Mount, ...]
    named: tuple[str, ...]
    command: str
    environment: tuple[tuple[str, str | None], ...]
    variables: tuple[tuple[str, str], ...]
    memory: str
    shm: str
    log_size: str
    tmpfs: str
    port: int = PORT
    never_restart: str = ", ".join(map(str, NEVER_RESTART))


def compose_files(renderer: Renderer, d: Deployment, *, title: str, again: str, folder: str = "") -> Files:
    """All files of one target, relative to `folder`, which the comments name; `again` says how to make them anew."""
    view = _view(d, title, again, folder)
    return {
        "base.yaml": renderer.text("compose/base.yaml.j2", d=d, v=view),
        f"{d.target}.yaml": renderer.text("compose/target.yaml.j2", d=d, v=view),
        "proxy/nginx.conf": renderer.text("compose/nginx.conf.j2", v=view),
    }


def image_variable(target: str) -> str:
    """What names another image for a target: one .env serves all of them."""
    return f"COMFYUI_IMAGE_{re.sub('[^A-Z0-9]', '_', target.upper())}"


def _view(d: Deployment, title: str, again: str, folder: str) -> _View:
    memory = spell(d.memory) if d.memory else "0"
    mounts = tuple(_mount(v) for v in d.volumes)
    settings = {
        "COMFYUI_ADDRESS": d.address,
        "COMFYUI_PORT": str(d.port),
        "COMFYUI_USER": d.user,
        "COMFYUI_MEMORY": spell(d.memory) if d.memory else "",
        "COMFYUI_RESTART": d.restart,
        "COMFYUI_ARGS": "",
        **{m.variable: m.source for m in mounts if m.variable},
    }
    return _View(
        again=again,
        image_variable=image_variable(d.target),
        path=f"{folder}/{d.target}.yaml" if folder else f"{d.target}.yaml",
        title=title,
        mounts=mounts,
        named=tuple(m.source for m in mounts if m.variable),
        command=_command(d),
        environment=tuple(sorted(d.all_environment.items())),
        variables=tuple(sorted(settings.items())),
        memory=memory,
        shm=spell(d.shm),
        log_size=spell(d.log_size),
        tmpfs=tmpfs(d),
    )


def _mount(v: Volume) -> _Mount:
    variable = "" if v.is_folder else _VARIABLES.get(v.target, "")
    return _Mount(source=v.source, target=v.target, read_only=v.read_only, label=v.label, variable=variable)


def _command(d: Deployment) -> str:
    words = d.words or ("serve",)
    text = shlex.join(words).replace("$", "$$")
    if d.gpus and d.memory is None:  # as `deploy` does where the limit is known
        text += " ${COMFYUI_MEMORY:+--disable-pinned-memory}"
    return json.dumps(text + " ${COMFYUI_ARGS:-}", ensure_ascii=False)


def leftovers(root: Path, files: Files) -> tuple[str, ...]:
    """Rendered files of targets that are gone. What somebody put there, secrets and .env among it, is theirs."""
    found = []
    for path in sorted((root / FOLDER).glob("*.yaml")):
        name = path.relative_to(root).as_posix()
        if name not in files and path.read_bytes().startswith(HEADER.encode()):
            found.append(name)
    return tuple(found)
