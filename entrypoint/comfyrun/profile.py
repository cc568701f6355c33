"""What the image was built for, and the profiles it can start with."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from comfyrun import baked
from comfyrun.errors import ConfigError, nearest

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

SCHEMA = 1

_MOST = 1e6  # GiB

Words = tuple[tuple[str, ...], ...]
"""Flags, each with its values."""


@dataclass(frozen=True, kw_only=True)
class Profile:
    name: str
    environment: Mapping[str, str]
    """Values may hold {data}, {cache} and {compiled}."""
    flags: Words

    @property
    def tokens(self) -> tuple[str, ...]:
        return _tokens(self.flags)


@dataclass(frozen=True, kw_only=True)
class Tier:
    """What the profile `default` gets on top, on a card with at least this much memory."""

    name: str
    at_least: float
    """GiB."""
    flags: Words = ()
    with_display: Words = ()

    def tokens(self, *, display: bool) -> tuple[str, ...]:
        return _tokens((*self.flags, *(self.with_display if display else ())))


@dataclass(frozen=True, kw_only=True)
class Kernel:
    """A compiled extension in the image."""

    name: str
    version: str
    key: str
    """Of everything that shaped it."""
    imports: tuple[str, ...]
    """What has to import, in this order."""


@dataclass(frozen=True, kw_only=True)
class Sibling:
    """The image for another kind of hardware."""

    target: str
    compute_capability: str
    platform: str
    tag: str


@dataclass(frozen=True, kw_only=True)
class Image:
    target: str
    comfyui: str
    torch: str
    cuda: str | None
    compute_capability: str | None
    memory: str | None
    profiles: Mapping[str, Profile]
    tiers: tuple[Tier, ...] = ()
    kernels: tuple[Kernel, ...] = ()
    nodes: tuple[str, ...] = ()
    """Folders of the baked nodes."""
    cautions: Mapping[str, str] = field(default_factory=dict)
    """Flags that this ComfyUI does wrongly, and what is wrong."""
    siblings: tuple[Sibling, ...] = ()

    def profile(self, name: str, origin: str) -> Profile:
        if name in self.profiles:
            return self.profiles[name]
        raise ConfigError(
            f"{origin}: this image has no profile {name!r}{nearest(name, self.profiles)}; "
            f"it has {', '.join(sorted(self.profiles))}"
        )

    def kernel(self, name: str) -> Kernel | None:
        return next((k for k in self.kernels if k.name == name), None)

    def tier(self, memory: float | None) -> Tier | None:
        """The largest that a card with so many GiB reaches."""
        fitting = [t for t in self.tiers if memory is not None and t.at_least <= memory]
        return max(fitting, key=lambda t: t.at_least, default=None)


def read(path: Path) -> Image:
    return parse(baked.read(path, SCHEMA), str(path))


def parse(value: Mapping[str, object], source: str) -> Image:
    """`value` as an Image; `source` names it in messages. Raises ConfigError with every mistake."""
    reader = _Reader(source, [])
    profiles = value.get("profiles")
    if not isinstance(profiles, dict) or not profiles:
        reader.wrong("profiles must be an object with at least one profile")
        profiles = {}
    tiers = value.get("tiers", [])
    if not isinstance(tiers, list):
        reader.wrong("tiers must be a list")
        tiers = []
    kernels = value.get("kernels", {})
    if not isinstance(kernels, dict):
        reader.wrong("kernels must be an object")
        kernels = {}
    image = Image(
        target=reader.text(value, "target"),
        comfyui=reader.text(value, "comfyui"),
        torch=reader.text(value, "torch"),
        cuda=reader.optional(value, "cuda"),
        compute_capability=reader.optional(value, "compute_capability"),
        memory=reader.optional(value, "memory"),
        profiles={name: reader.profile(name, found) for name, found in profiles.items()},
        tiers=tuple(reader.tier(i, found) for i, found in enumerate(tiers)),
        kernels=tuple(reader.kernel(name, found) for name, found in kernels.items()),
        nodes=reader.names("nodes", value.get("nodes", [])),
        cautions=reader.texts("cautions", value.get("cautions", {})),
        siblings=reader.siblings(value.get("siblings", [])),
    )
    if reader.mistakes:
        raise ConfigError(*reader.mistakes)
    return image


@dataclass(frozen=True)
class _Reader:
    """Takes values apart, and goes on after a mistake."""

    source: str
    mistakes: list[str]

    def wrong(self, message: str) -> None:
        self.mistakes.append(f"{self.source}: {message}")

    def text(self, value: Mapping[str, object], key: str, where: str = "") -> str:
        found = value.get(key)
        if isinstance(found, str) and found:
            return found
        self.wrong(f"{where}{key} must be a text")
        return ""

    def optional(self, value: Mapping[str, object], key: str) -> str | None:
        return None if value.get(key) is None else self.text(value, key)

    def texts(self, where: str, value: object) -> dict[str, str]:
        if isinstance(value, dict) and all(isinstance(v, str) for v in value.values()):
            return value
        self.wrong(f"{where} must map names to texts")
        return {}

    def siblings(self, value: object) -> tuple[Sibling, ...]:
        if not isinstance(value, list) or not all(isinstance(v, dict) for v in value):
            self.wrong("siblings must be a list of objects")
            return ()
        keys = ("target", "compute_capability", "platform", "tag")
        return tuple(
            Sibling(**{key: self.text(found, key, f"siblings[{i}].") for key in keys})
            for i, found in enumerate(value)
        )

    def names(self, where: str, value: object) -> tuple[str, ...]:
        if isinstance(value, list) and all(isinstance(v, str) for v in value):
            return tuple(value)
        self.wrong(f"{where} must be a list of texts")
        return ()

    def words(self, where: str, value: object) -> Words:
        if isinstance(value, list) and all(_is_flag(flag) for flag in value):
            return tuple(tuple(flag) for flag in value)
        self.wrong(f"{where} must be a list of lists of texts")
        return ()

    def profile(self, name: str, value: object) -> Profile:
        where = f"profiles.{name}"
        if not isinstance(value, dict):
            self.wrong(f"{where} must be an object")
            value = {}
        return Profile(
            name=name,
            environment=self.texts(f"{where}.environment", value.get("environment", {})),
            flags=self.words(f"{where}.flags", value.get("flags", [])),
        )

    def kernel(self, name: str, value: object) -> Kernel:
        where = f"kernels.{name}"
        if not isinstance(value, dict):
            self.wrong(f"{where} must be an object")
            value = {"version": "?", "key": "?"}
        return Kernel(
            name=name,
            version=self.text(value, "version", f"{where}."),
            key=self.text(value, "key", f"{where}."),
            imports=self.names(f"{where}.imports", value.get("imports", [])),
        )

    def tier(self, position: int, value: object) -> Tier:
        where = f"tiers[{position}]"
        if not isinstance(value, dict):
            self.wrong(f"{where} must be an object")
            return Tier(name="", at_least=0)
        least = value.get("at_least_gb")
        if isinstance(least, bool) or not isinstance(least, int | float) or not 0 < least < _MOST:
            self.wrong(f"{where}.at_least_gb must be a number of GiB")
            least = 0
        return Tier(
            name=self.text(value, "name", f"{where}."),
            at_least=least,
            flags=self.words(f"{where}.flags", value.get("flags", [])),
            with_display=self.words(f"{where}.with_display", value.get("with_display", [])),
        )


def _tokens(flags: Words) -> tuple[str, ...]:
    return tuple(token for flag in flags for token in flag)


def _is_flag(value: object) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(token, str) for token in value)
