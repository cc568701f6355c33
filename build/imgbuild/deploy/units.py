"""A deployment as systemd units: a quadlet for Podman, a service that runs `docker run` for Docker."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING

from imgbuild.deploy.argv import EngineName, image_for, keep_id, published, run_argv, tmpfs
from imgbuild.deploy.deployment import NEVER_RESTART, Deployment, spell

if TYPE_CHECKING:
    from collections.abc import Sequence

    from imgbuild.render import Files

_AGAIN = "# Written by imgbuild service; the same command writes it anew."
_TRIES, _WITHIN, _PAUSE = 5, 600, 10
"""After so many failed starts in so many seconds systemd rests; seconds between two."""


def unit_files(
    d: Deployment, engine: EngineName, *, at_boot: bool, user: bool, command: Sequence[str] = ()
) -> Files:
    """File name → text. `user` is the caller's own systemd, for rootless Podman."""
    if engine == "docker":
        return {f"{d.name}.service": _docker_service(d, at_boot=at_boot, command=command)}
    files = {f"{d.name}.container": _quadlet(d, at_boot=at_boot, user=user)}
    for volume in d.volumes:
        if not volume.is_folder:
            files[f"{volume.source}.volume"] = f"{_AGAIN}\n[Volume]\nVolumeName={volume.source}\n"
    return files


def _quadlet(d: Deployment, *, at_boot: bool, user: bool) -> str:
    """In keys of Podman 4.9 and newer; what got a key later stands in PodmanArgs."""
    h, image = d.health, image_for(d, "podman")
    uid, _, gid = d.user.partition(":")
    lines = [
        _AGAIN,
        *_unit_section(d),
        "",
        "[Container]",
        f"Image={_value(image)}",
        "Pull=never",
        f"ContainerName={d.name}",
        *(f"Label={name}={_value(value)}" for name, value in sorted(d.labels.items())),
        *(f"AddDevice=nvidia.com/gpu={gpu}" for gpu in d.gpus),
        "ReadOnly=true",
        "DropCapability=all",
        "NoNewPrivileges=true",
        f"Tmpfs={tmpfs(d)}",
        *([f"UserNS={keep_id(d)}"] if user else []),
        f"User={uid}",
        f"Group={gid}",
        f"PublishPort={published(d)}",
        *(f"Volume={_value(_mounted(v.spelled, is_folder=v.is_folder))}" for v in d.volumes),
        f"ShmSize={spell(d.shm)}",
        f"PidsLimit={d.pids}",
        *([f"PodmanArgs=--memory {spell(d.memory)} --memory-swap {spell(d.memory)}"] if d.memory else []),
        f"PodmanArgs=--stop-timeout {d.grace}",
        *(
            f"Environment={_quoted(f'{name}={value}')}"
            for name, value in sorted(d.all_environment.items())
            if value is not None
        ),
        # An OCI image carries no HEALTHCHECK for Podman.
        f"HealthCmd={shlex.join(h.command)}",
        f"HealthInterval={h.interval}s",
        f"HealthTimeout={h.timeout}s",
        f"HealthStartPeriod={h.start_period}s",
        f"HealthRetries={h.retries}",
        "LogDriver=journald",
        *([f"Exec={' '.join(map(_quoted, d.words))}"] if d.words else []),
        "",
        *_service_section(d),
        *_install_section(at_boot=at_boot, user=user),
    ]
    return "\n".join(lines) + "\n"


def _docker_service(d: Deployment, *, at_boot: bool, command: Sequence[str]) -> str:
    docker = tuple(command) or ("/usr/bin/docker",)
    argv = run_argv(d, "docker", mode="unit", command=docker)
    lines = [
        _AGAIN,
        *_unit_section(d, "Requires=docker.service", "After=docker.service"),
        "",
        *_service_section(d),
        # A container that a crash left behind.
        f"ExecStartPre=-{' '.join(docker)} rm --force {d.name}",
        f"ExecStart={' '.join(map(_quoted, argv))}",
        f"ExecStop={' '.join(docker)} stop {d.name}",
        *_install_section(at_boot=at_boot, user=False),
    ]
    return "\n".join(lines) + "\n"


def _unit_section(d: Deployment, *more: str) -> list[str]:
    return [
        "[Unit]",
        f"Description=ComfyUI ({d.target})",
        *(more or ("Wants=network-online.target", "After=network-online.target")),
        f"StartLimitIntervalSec={_WITHIN}",
        f"StartLimitBurst={_TRIES}",
    ]


def _service_section(d: Deployment) -> list[str]:
    return [
        "[Service]",
        f"Restart={'no' if d.restart == 'no' else 'on-failure'}",
        f"RestartSec={_PAUSE}",
        f"RestartPreventExitStatus={' '.join(map(str, NEVER_RESTART))}",
        "TimeoutStartSec=120",
        f"TimeoutStopSec={d.grace + 10}",
    ]


def _install_section(*, at_boot: bool, user: bool) -> list[str]:
    if not at_boot:
        return []
    return ["", "[Install]", f"WantedBy={'default.target' if user else 'multi-user.target'}"]


def _mounted(spelled: str, *, is_folder: bool) -> str:
    """NAME.volume: the unit beside it, which makes the volume."""
    if is_folder:
        return spelled
    name, _, rest = spelled.partition(":")
    return f"{name}.volume:{rest}"


def _value(text: str) -> str:
    """systemd replaces %x."""
    return text.replace("%", "%%")


def _quoted(word: str) -> str:
    """A word as systemd splits and expands them."""
    text = _value(word).replace("\\", "\\\\").replace('"', '\\"').replace("$", "$$").replace("\n", "\\n")
    return f'"{text}"' if text != word or not text or any(c in text for c in " \t'\"") else text
