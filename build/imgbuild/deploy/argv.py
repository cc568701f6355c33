"""A deployment as a command line of docker and podman."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING, Literal

from imgbuild.deploy.deployment import PORT, Deployment, spell
from imgbuild.errors import EngineError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

EngineName = Literal["docker", "podman"]
Mode = Literal["foreground", "detached", "created", "unit"]


def run_argv(
    d: Deployment,
    engine: EngineName,
    *,
    mode: Mode = "foreground",
    command: Sequence[str] = (),
    limits: Sequence[str] = (),
    rootless: bool = False,
    terminal: bool = False,
    label_file: Path | None = None,
    name: str | None = None,
) -> tuple[str, ...]:
    """The command. `command` and `limits` are what this machine needs (engines.Engine); `label_file` holds what
    `update` goes by, `name` is another one for the container only. `created` does not start it; `unit` is for a service manager: in the foreground, restarted by it.
    """
    words = [*(command or (engine,)), *_beginning(d, mode), *(["--tty"] if terminal else [])]
    words += ["--pull", "never", "--name", name or d.name]
    for label, value in sorted(d.labels.items()):
        words += ["--label", f"{label}={value}"]
    words += ["--label-file", str(label_file)] if label_file else []
    words += _gpu_words(d, engine)
    words += ["--read-only", "--cap-drop", "ALL", "--security-opt", "no-new-privileges"]
    words += ["--tmpfs", tmpfs(d)]
    words += _user_words(d, engine, rootless=rootless)
    words += ["--publish", published(d)] if d.serves else []
    for volume in d.volumes:
        words += ["--volume", volume.spelled]
    words += ["--shm-size", spell(d.shm), "--pids-limit", str(d.pids)]
    if d.memory is not None:  # and no swap: a model that swaps is worse than one that does not load
        words += ["--memory", spell(d.memory), "--memory-swap", spell(d.memory)]
    words += ["--stop-timeout", str(d.grace), *_log_words(d, engine, mode)]
    if engine == "podman":
        words += _health_words(d)
    for variable, text in sorted(d.all_environment.items()):
        words += ["--env", variable if text is None else f"{variable}={text}"]
    return (*words, *limits, image_for(d, engine), *d.words)


def _beginning(d: Deployment, mode: Mode) -> list[str]:
    match mode:
        case "foreground" | "unit":
            return ["run", "--rm"]
        case "detached":
            return ["run", "--detach", "--restart", d.restart]
        case "created":
            return ["create", "--restart", d.restart]


def image_for(d: Deployment, engine: EngineName) -> str:
    """Podman asks registries for a short name: what was built here is localhost/…"""
    first, slash, _ = d.image.partition("/")
    full = slash and ("." in first or ":" in first or first == "localhost")
    return d.image if engine == "docker" or full else f"localhost/{d.image}"


def published(d: Deployment) -> str:
    address = f"[{d.address}]" if ":" in d.address else d.address
    return f"{address}:{d.port}:{PORT}"


def tmpfs(d: Deployment) -> str:
    """exec: Triton loads what it compiles."""
    return f"/tmp:rw,exec,nosuid,nodev,mode=1777,size={spell(d.tmp)}"  # noqa: S108


def keep_id(d: Deployment) -> str:
    """Rootless Podman: who calls is `user` in the container, and what it writes is the caller's."""
    uid, _, gid = d.user.partition(":")
    return f"keep-id:uid={uid},gid={gid}"


def as_text(argv: Sequence[str], d: Deployment) -> str:
    """For people and shells: an option a line, then the image with its command."""
    end = len(argv) - 1 - len(d.words)
    lines: list[list[str]] = [[]]
    for word in argv[:end]:
        if word.startswith("--") and any(w in ("run", "create") for w in lines[0]):
            lines.append([])
        lines[-1].append(shlex.quote(word))
    lines.append([shlex.quote(word) for word in argv[end:]])
    return " \\\n  ".join(" ".join(line) for line in lines)


def _gpu_words(d: Deployment, engine: EngineName) -> list[str]:
    if not d.gpus:
        return []
    if engine == "podman":
        return [word for gpu in d.gpus for word in ("--device", f"nvidia.com/gpu={gpu}")]
    if d.gpus == ("all",):
        return ["--gpus", "all"]
    # The option is CSV: the quotes are part of it.
    chosen = f"device={','.join(d.gpus)}"
    return ["--gpus", f'"{chosen}"' if "," in chosen else chosen]


def _user_words(d: Deployment, engine: EngineName, *, rootless: bool) -> list[str]:
    mapped = ["--userns", keep_id(d)] if engine == "podman" and rootless else []
    return [*mapped, "--user", d.user]


def _log_words(d: Deployment, engine: EngineName, mode: Mode) -> list[str]:
    if mode == "unit":  # the journal has it, and rotates
        return ["--log-driver", "none" if engine == "docker" else "passthrough"]
    size = ["--log-opt", f"max-size={spell(d.log_size)}"]
    if engine == "podman":  # which keeps one file
        return ["--log-driver", "k8s-file", *size]
    return ["--log-driver", "json-file", *size, "--log-opt", f"max-file={d.log_files}"]


def _health_words(d: Deployment) -> list[str]:
    h = d.health
    return [
        *("--health-cmd", shlex.join(h.command)),
        *("--health-interval", f"{h.interval}s", "--health-timeout", f"{h.timeout}s"),
        *("--health-start-period", f"{h.start_period}s", "--health-retries", str(h.retries)),
    ]


def must_be(name: str) -> EngineName:
    """Raises EngineError for an engine that this tool does not run containers with."""
    if name == "docker":
        return "docker"
    if name == "podman":
        return "podman"
    raise EngineError(f"no containers are run with {name}")
