"""A deployment: how one image is run, the secure standard way. Pure and frozen; every way to run it is a projection.

What `docker run`, `podman run`, a compose file and a systemd unit say about it is in
`argv`, `compose` and `units`; a test holds them against one another.
"""

from __future__ import annotations

import json
import math
import re
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any

from imgbuild.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from imgbuild.plan import Plan

PORT = 8188
"""In the container; which port of the machine leads to it is the deployment's."""
NEVER_RESTART = (2, 76, 77)
"""Exit codes of an image that stay until somebody changes something: docs/exit-codes.md."""
DATA_VOLUME, CACHE_VOLUME = "comfy-data", "comfy-cache"
LABEL = "imgbuild.deployment"
TARGET_LABEL = "imgbuild.deployment.target"
VALUE_LABEL = "imgbuild.deployment.value"
_LEAST_STOP = 2
_LEAST_MEMORY = 1 << 30
_NAME = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9_.-]{0,62}")
_USER = re.compile(r"[0-9]{1,10}(:[0-9]{1,10})?")
_SIZE = re.compile(r"([0-9]{1,15})(b|k|m|g|t)?b?", re.IGNORECASE)
_UNITS = {"b": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30, "t": 1 << 40}
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_GPU = re.compile(r"[0-9]{1,3}(:[0-9]{1,2})?|GPU-[0-9a-f-]{36}|MIG-[0-9A-Za-z/-]{8,80}")
_SECRET = re.compile(r"TOKEN|SECRET|PASSW|CREDENTIAL|(^|_)KEY$|API_?KEY", re.IGNORECASE)
_VERBS = (
    *("serve", "worker", "check", "shell", "nodes", "health"),
    *("submit", "status", "cancel", "jobs", "workers", "queue", "api", "dashboard", "models"),
)
"""Of comfyrun; words that begin with something else are flags of ComfyUI."""


@dataclass(frozen=True, kw_only=True)
class Volume:
    source: str
    """A named volume, or a folder of this machine as an absolute path."""
    target: str
    read_only: bool = False
    shared: bool = False
    """SELinux: other containers may have it too (z); else it is this one's alone (Z)."""

    @property
    def is_folder(self) -> bool:
        return self.source.startswith("/")

    @property
    def label(self) -> str:
        """SELinux's, for a folder; the engine labels its own volumes."""
        return ("z" if self.shared else "Z") if self.is_folder else ""

    @property
    def spelled(self) -> str:
        """SOURCE:TARGET[:OPTIONS], as docker, podman and quadlets write it."""
        options = [*(["ro"] if self.read_only else []), *([self.label] if self.label else [])]
        return ":".join([self.source, self.target, *([",".join(options)] if options else [])])


@dataclass(frozen=True, kw_only=True)
class Health:
    """Times in seconds; as the image's own HEALTHCHECK, which OCI images do not carry for Podman."""

    command: tuple[str, ...] = ("comfyrun", "health")
    interval: int = 30
    timeout: int = 10
    start_period: int = 180
    retries: int = 3


@dataclass(frozen=True, kw_only=True)
class Wishes:
    """What somebody wants otherwise than standard; empty or None: the standard."""

    name: str | None = None
    image: str | None = None
    data: str | None = None
    cache: str | None = None
    models: tuple[str, ...] = ()
    address: str = "127.0.0.1"
    port: int = PORT
    user: str | None = None
    gpu: str | None = None
    """all, none, or GPUs by index, UUID or MIG UUID, with commas between."""
    memory: str | None = None
    shm: str | None = None
    stop_timeout: int | None = None
    restart: str | None = None
    environment: tuple[str, ...] = ()
    words: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Deployment:
    name: str
    target: str
    image: str
    """As the engine knows it."""
    words: tuple[str, ...]
    """After the image; none: the image's own, which is `serve`."""
    volumes: tuple[Volume, ...]
    address: str
    port: int
    user: str
    """UID:GID in the container."""
    gpus: tuple[str, ...]
    """("all",), single ones, or none."""
    environment: Mapping[str, str | None] = field(default_factory=dict)
    """None: the value is the caller's environment's, and stands in no command, file or label."""
    shm: int
    """Bytes, as are memory and tmp."""
    memory: int | None
    """Of the host; None is without a limit. What is in /tmp and /dev/shm counts."""
    tmp: int
    pids: int = 4096
    stop_timeout: int = 8
    """Seconds that comfyrun takes for a stop: COMFY_STOP_TIMEOUT."""
    restart: str = "on-failure:5"
    log_size: int = 10 << 20
    log_files: int = 5
    health: Health = Health()

    @property
    def grace(self) -> int:
        """Seconds until the engine kills: a quarter more than comfyrun's own limit, and 2 s at least."""
        return self.stop_timeout + max(_LEAST_STOP, math.ceil(self.stop_timeout / 4))

    @property
    def serves(self) -> bool:
        """Whether it is a server, and not one of comfyrun's other verbs."""
        return not self.words or self.words[0] == "serve"

    @property
    def url(self) -> str:
        host = f"[{self.address}]" if ":" in self.address else self.address
        return f"http://{host}:{self.port}"

    @property
    def all_environment(self) -> dict[str, str | None]:
        return {**self.environment, "COMFY_STOP_TIMEOUT": str(self.stop_timeout)}

    @property
    def labels(self) -> dict[str, str]:
        return {LABEL: self.name, TARGET_LABEL: self.target}

    def as_label(self) -> str:
        """All of it as one line, from which `update` makes the next container."""
        return json.dumps(asdict(self), sort_keys=True, separators=(",", ":"))


def from_label(text: str) -> Deployment:
    """The deployment that `as_label` wrote. Raises ConfigError for anything else."""
    try:
        data: dict[str, Any] = json.loads(text)
        volumes = tuple(Volume(**v) for v in data.pop("volumes"))
        health = data.pop("health")
        health["command"] = tuple(health["command"])
        for name in ("words", "gpus"):
            data[name] = tuple(data[name])
        return Deployment(volumes=volumes, health=Health(**health), **data)
    except (ValueError, KeyError, TypeError, AttributeError) as e:
        raise ConfigError(f"the label {VALUE_LABEL} is not what this imgbuild writes: {e}") from None


def deploy(plan: Plan, wishes: Wishes | None = None) -> Deployment:
    """How this plan's image is run. Raises ConfigError for a wish that cannot be had."""
    w = wishes or Wishes()
    gpus = _gpus(plan, w.gpu)
    memory = _size("--memory", w.memory) if w.memory else None
    shm = _size("--shm", w.shm) if w.shm else _standard_shm(gpus, memory)
    if memory is not None and memory < _LEAST_MEMORY:
        raise ConfigError(f"--memory {w.memory}: ComfyUI needs at least 1g to start")
    if memory is not None and shm > memory:
        raise ConfigError(f"--shm {spell(shm)} is more than --memory {spell(memory)}, and counts against it")
    verb = [word for word in w.words[:1] if word in _VERBS and word != "serve"]  # beside what serves
    stop = 8 if w.stop_timeout is None else w.stop_timeout
    if stop < _LEAST_STOP:
        raise ConfigError(f"--stop-timeout {stop}: at least {_LEAST_STOP} s, or every stop is a kill")
    return Deployment(
        name=_name(w.name or "-".join(["comfyui", plan.name, *verb])),
        target=plan.name,
        image=w.image or plan.tags[-1],
        words=_words(plan, w.words, gpus, memory),
        volumes=(
            Volume(source=w.data or DATA_VOLUME, target="/data"),
            Volume(source=w.cache or CACHE_VOLUME, target="/cache"),
            *_models(w.models),
        ),
        address=w.address,
        port=_port(w.port),
        user=_user(w.user or "1000:1000"),
        gpus=gpus,
        environment=_environment(w),
        shm=shm,
        memory=memory,
        tmp=min(8 << 30, memory or 8 << 30),
        stop_timeout=stop,
        restart=_restart(w.restart or "on-failure:5"),
    )


def of_image(deployment: Deployment, image: str) -> Deployment:
    return replace(deployment, image=image)


def is_secret(name: str) -> bool:
    """Whether a variable's value is nothing for a command line, by its name."""
    return bool(_SECRET.search(name))


def spell(size: int) -> str:
    """Bytes as engines read them: 17179869184 → 16g."""
    for unit in ("t", "g", "m", "k"):
        if size and size % _UNITS[unit] == 0:
            return f"{size // _UNITS[unit]}{unit}"
    return f"{size}b"


# --- what each wish may be -----------------------------------------------------------------------


def _gpus(plan: Plan, text: str | None) -> tuple[str, ...]:
    if plan.compute_capability is None:
        if text not in (None, "none"):
            raise ConfigError(f"--gpu {text}: the image for {plan.name} has no GPU code", hint="--gpu none")
        return ()
    if text in (None, "all"):
        return ("all",)
    if text == "none":
        return ()
    found = tuple((text or "").split(","))
    for one in found:
        if not _GPU.fullmatch(one):
            raise ConfigError(
                f"--gpu {one}: neither all, none, an index, nor the UUID of a GPU or a MIG slice",
                hint="nvidia-smi -L lists them: GPU-8f0e…, MIG-3a1c…",
            )
    return found


def _standard_shm(gpus: tuple[str, ...], memory: int | None) -> int:
    wanted = (16 << 30) if gpus else (1 << 30)
    return min(wanted, memory // 2) if memory else wanted


def _words(plan: Plan, words: tuple[str, ...], gpus: tuple[str, ...], memory: int | None) -> tuple[str, ...]:
    """The command. A flag of ours comes first, so that one of the caller's wins."""
    if words and words[0] in _VERBS and words[0] != "serve":
        return words
    own: list[str] = []
    if plan.compute_capability is not None and not gpus:
        own.append("--cpu")
    elif memory is not None and gpus:
        # ComfyUI sizes its pinned memory by the host's RAM, whatever the container may take, and has no flag for
        # less, only one for none: without it, a container with a limit is killed for want of memory.
        own.append("--disable-pinned-memory")
    own = [flag for flag in own if flag not in words]
    rest = words[1:] if words[:1] == ("serve",) else words
    return ("serve", *own, *rest) if own or rest else ()


def _models(folders: Iterable[str]) -> tuple[Volume, ...]:
    return tuple(
        Volume(source=folder, target=f"/mnt/models-{n}" if n else "/mnt/models", read_only=True, shared=True)
        for n, folder in enumerate(folders)
    )


def _environment(w: Wishes) -> dict[str, str | None]:
    found: dict[str, str | None] = {}
    for text in w.environment:
        name, equals, value = text.partition("=")
        if not _VARIABLE.fullmatch(name):
            raise ConfigError(
                f"--env {text.partition('=')[0]}: not a variable's name", hint="--env NAME=value"
            )
        if name == "COMFY_PORT":
            raise ConfigError(
                "--env COMFY_PORT: the container's port is fixed", hint="--port is this machine's"
            )
        if name == "COMFY_STOP_TIMEOUT":
            raise ConfigError(
                "--env COMFY_STOP_TIMEOUT: the engine's limit has to follow it", hint="--stop-timeout"
            )
        if w.models and name == "COMFY_MODELS":
            raise ConfigError("--env COMFY_MODELS and --models exclude each other")
        found[name] = value if equals and not is_secret(name) else None
    if w.models:
        found["COMFY_MODELS"] = ":".join(v.target for v in _models(w.models))
    return dict(sorted(found.items()))


def secrets_of(environment: Iterable[str]) -> dict[str, str]:
    """The values that `--env NAME=value` gives to variables that are secrets: for the engine's environment."""
    pairs = (text.partition("=") for text in environment)
    return {name: value for name, equals, value in pairs if equals and is_secret(name)}


def _name(text: str) -> str:
    if not _NAME.fullmatch(text):
        raise ConfigError(f"--name {text}: letters, digits, _ . - and a letter or digit first, 63 at most")
    return text


def _port(number: int) -> int:
    if not 1 <= number <= 65535:  # noqa: PLR2004
        raise ConfigError(f"--port {number}: a port is 1 to 65535")
    return number


def _user(text: str) -> str:
    if not _USER.fullmatch(text):
        raise ConfigError(f"--user {text}: numbers, as UID or UID:GID", hint="--user $(id -u):$(id -g)")
    return text if ":" in text else f"{text}:{text}"


def _size(option: str, text: str) -> int:
    found = _SIZE.fullmatch(text)
    if not found or not int(found[1]):
        raise ConfigError(f"{option} {text}: not a size", hint=f"{option} 16g, or m, k, b")
    return int(found[1]) * _UNITS[(found[2] or "b").lower()]


def _restart(text: str) -> str:
    if not re.fullmatch(r"no|always|unless-stopped|on-failure(:[1-9][0-9]{0,3})?", text):
        raise ConfigError(
            f"--restart {text}: no, on-failure, on-failure:N, unless-stopped or always",
            hint="on-failure:5 is standard: exit codes 2, 76 and 77 stay until somebody changes something",
        )
    return text
