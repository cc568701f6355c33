"""What the image was built for, and the profiles it can start with."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from comfyrun import baked
from comfyrun.errors import ConfigError, nearest

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

SCHEMA = 1


@dataclass(frozen=True, kw_only=True)
class Profile:
    name: str
    environment: Mapping[str, str]  # values may hold {data} and {cache}
    flags: tuple[tuple[str, ...], ...]

    @property
    def tokens(self) -> tuple[str, ...]:
        return tuple(token for flag in self.flags for token in flag)


@dataclass(frozen=True, kw_only=True)
class Image:
    target: str
    comfyui: str
    torch: str
    cuda: str | None
    compute_capability: str | None
    memory: str | None
    profiles: Mapping[str, Profile]

    def profile(self, name: str, origin: str) -> Profile:
        if name in self.profiles:
            return self.profiles[name]
        raise ConfigError(
            f"{origin}: this image has no profile {name!r}{nearest(name, self.profiles)}; "
            f"it has {', '.join(sorted(self.profiles))}"
        )


def read(path: Path) -> Image:
    return parse(baked.read(path, SCHEMA), str(path))


def parse(value: Mapping[str, object], source: str) -> Image:
    """`value` as an Image; `source` names it in messages."""
    mistakes: list[str] = []

    def text(key: str) -> str:
        found = value.get(key)
        if isinstance(found, str) and found:
            return found
        mistakes.append(f"{source}: {key} must be a text")
        return ""

    def optional(key: str) -> str | None:
        return None if value.get(key) is None else text(key)

    profiles = value.get("profiles")
    if not isinstance(profiles, dict) or not profiles:
        mistakes.append(f"{source}: profiles must be an object with at least one profile")
        profiles = {}
    image = Image(
        target=text("target"),
        comfyui=text("comfyui"),
        torch=text("torch"),
        cuda=optional("cuda"),
        compute_capability=optional("compute_capability"),
        memory=optional("memory"),
        profiles={name: _profile(name, found, source, mistakes) for name, found in profiles.items()},
    )
    if mistakes:
        raise ConfigError(*mistakes)
    return image


def _profile(name: str, value: object, source: str, mistakes: list[str]) -> Profile:
    where = f"{source}: profiles.{name}"
    environment: object = {}
    flags: object = []
    if isinstance(value, dict):
        environment = value.get("environment", {})
        flags = value.get("flags", [])
    else:
        mistakes.append(f"{where} must be an object")
    if not isinstance(environment, dict) or not all(isinstance(v, str) for v in environment.values()):
        mistakes.append(f"{where}.environment must map names to texts")
        environment = {}
    if not isinstance(flags, list) or not all(_is_flag(flag) for flag in flags):
        mistakes.append(f"{where}.flags must be a list of lists of texts")
        flags = []
    return Profile(name=name, environment=environment, flags=tuple(tuple(flag) for flag in flags))


def _is_flag(value: object) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(token, str) for token in value)
