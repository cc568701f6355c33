"""A list of models: which files, from where, into which of ComfyUI's folders, and what is claimed of their memory."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self
from urllib.parse import unquote, urlsplit

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from comfywork import quantities
from comfywork.errors import ConfigError, nearest
from comfywork.models import yamlfile

if TYPE_CHECKING:
    from collections.abc import Sequence

SHIPPED = Path(__file__).parent / "lists"

# ComfyUI's own names (folder_paths.py), less `custom_nodes` and `configs`, which hold no models.
FOLDERS = (
    "audio_encoders",
    "checkpoints",
    "classifiers",
    "clip_vision",
    "controlnet",
    "diffusers",
    "diffusion_models",
    "embeddings",
    "gligen",
    "hypernetworks",
    "latent_upscale_models",
    "loras",
    "model_patches",
    "photomaker",
    "style_models",
    "text_encoders",
    "upscale_models",
    "vae",
    "vae_approx",
)
_OLD_NAMES = {"clip": "text_encoders", "unet": "diffusion_models", "t2i_adapter": "controlnet"}

_LONGEST = 200
"""Bytes of a file's name: what is added while it is fetched has to fit into the 255 of a file system."""

_LONGEST_ADDRESS = 1000

_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")
_REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}")
_COMMIT = re.compile(r"[0-9a-f]{40}")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_LOOPBACK = ("127.0.0.1", "localhost", "::1")

_Text = Annotated[str, Field(min_length=1, max_length=500)]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class Vram(_Strict):
    """GPU memory that somebody says a model needs; nothing here is measured."""

    gb: Annotated[float, Field(gt=0, le=10_000)]
    """10⁹ bytes."""
    by: _Text
    """Who says so, and where."""


class LeftOut(_Strict):
    """What the source of a list names and the list does not hold."""

    name: _Text
    why: _Text


class ModelFile(_Strict):
    repository: str | None = None
    """OWNER/NAME on Hugging Face; with `file` and `revision`."""
    file: str | None = None
    revision: str | None = None
    """A branch or tag; 40 digits of a commit once locked."""
    url: str | None = None
    """In place of the three."""
    folder: str
    save_as: str | None = None
    about: str | None = None
    """The size as a page shows it (14.3 GB): an estimate until the file is locked."""
    size: Annotated[int, Field(gt=0)] | None = None
    """Bytes."""
    sha256: str | None = None

    @field_validator("repository")
    @classmethod
    def _is_repository(cls, value: str | None) -> str | None:
        if value is not None and (not _REPOSITORY.fullmatch(value) or ".." in value):
            raise ValueError("must be OWNER/NAME, as in the address of its page")
        return value

    @field_validator("file", "revision")
    @classmethod
    def _is_path(cls, value: str | None) -> str | None:
        if value is not None and (not _plain(value) or value.startswith("/") or ".." in value.split("/")):
            raise ValueError("must be a path inside the repository, or a branch, tag or commit")
        return value

    @field_validator("url")
    @classmethod
    def _is_url(cls, value: str | None) -> str | None:
        if value is None:
            return None
        try:
            parts = urlsplit(value)
            _ = parts.port
        except ValueError:
            raise ValueError("is not an address") from None
        if parts.username or parts.password:
            raise ValueError("must not hold a password: lists are shared")
        if not parts.hostname or not _plain(value.replace("?", "")):
            raise ValueError("must be https://HOST/PATH")
        if parts.scheme != "https" and not (parts.scheme == "http" and parts.hostname in _LOOPBACK):
            raise ValueError("must begin with https:// (http:// only on this machine's loopback)")
        return value

    @field_validator("folder")
    @classmethod
    def _is_folder(cls, value: str) -> str:
        first, *rest = value.split("/")
        if first in _OLD_NAMES:
            raise ValueError(f"{first!r} is ComfyUI's old name: write {_OLD_NAMES[first]!r}")
        if first not in FOLDERS:
            raise ValueError(f"{value!r} is none of ComfyUI's folders{nearest(first, FOLDERS)}")
        if not all(_safe_name(part) for part in rest):
            raise ValueError(f"{value!r} is no path of plain folder names")
        return value

    @field_validator("save_as")
    @classmethod
    def _is_name(cls, value: str | None) -> str | None:
        if value is not None and not _safe_name(value):
            raise ValueError("must be a plain file name")
        return value

    @field_validator("about")
    @classmethod
    def _is_size(cls, value: str | None) -> str | None:
        if value is not None:
            quantities.size(value)
        return value

    @field_validator("sha256")
    @classmethod
    def _is_sha256(cls, value: str | None) -> str | None:
        if value is not None and not _SHA256.fullmatch(value):
            raise ValueError("must be 64 hexadecimal digits, small letters")
        return value

    @model_validator(mode="after")
    def _has_one_source(self) -> Self:
        if self.url and (self.repository or self.file or self.revision):
            raise ValueError("has an url and a repository: which one?")
        if not self.url and not (self.repository and self.file):
            raise ValueError("needs a source: repository with file, or url")
        if not _safe_name(self.name):
            raise ValueError(f"would be saved as {self.name!r}: give save_as a plain file name")
        return self

    @property
    def name(self) -> str:
        path = self.file or unquote(urlsplit(self.url or "").path)
        return self.save_as or PurePosixPath(path).name

    @property
    def path(self) -> str:
        """Below MODELS_PATH, with slashes."""
        return f"{self.folder}/{self.name}"

    @property
    def source(self) -> str:
        """For people."""
        if self.url:
            return self.url.partition("?")[0]  # a token may stand in what follows
        return f"{self.repository}/{self.file}@{(self.revision or 'main')[:12]}"

    @property
    def lacks(self) -> tuple[str, ...]:
        """What a lock would fill in."""
        found = [name for name in ("size", "sha256") if getattr(self, name) is None]
        if self.repository and not _COMMIT.fullmatch(self.revision or ""):
            found.insert(0, "revision")
        return tuple(found)

    @property
    def locked(self) -> bool:
        return not self.lacks

    @property
    def estimate(self) -> int | None:
        """Bytes: exact when locked."""
        if self.size is not None:
            return self.size
        return quantities.size(self.about) if self.about else None


class Model(_Strict):
    name: str
    title: _Text
    licence: _Text
    gated: bool = False
    """The repository wants an account that has accepted the licence."""
    vram: Vram | None = None
    workloads: Annotated[list[_Text], Field(min_length=1)]
    note: str | None = None
    files: Annotated[list[ModelFile], Field(min_length=1)]

    @field_validator("name")
    @classmethod
    def _is_name(cls, value: str) -> str:
        if not _NAME.fullmatch(value):
            raise ValueError("must be small letters, digits, '.', '_' and '-'")
        return value

    @property
    def locked(self) -> bool:
        return all(file.locked for file in self.files)


class ModelList(_Strict):
    schema_: Annotated[Literal[1], Field(alias="schema")]
    title: _Text
    source: _Text
    """Which document or person the choice of models comes from."""
    models: Annotated[list[Model], Field(min_length=1)]
    left_out: list[LeftOut] = Field(default_factory=list)


@dataclass(frozen=True, kw_only=True)
class Loaded:
    """A list and where it was read."""

    name: str
    path: Path
    content: ModelList

    @property
    def models(self) -> Sequence[Model]:
        return self.content.models

    @property
    def locked(self) -> bool:
        return all(model.locked for model in self.models)

    @property
    def shipped(self) -> bool:
        return self.path.parent == SHIPPED


def shipped() -> tuple[str, ...]:
    return tuple(sorted(path.stem for path in SHIPPED.glob("*.yaml")))


def find(reference: str) -> Path:
    """The file of a shipped list's name, or of a path. ConfigError when there is none."""
    if reference in shipped():
        return SHIPPED / f"{reference}.yaml"
    if "/" not in reference and not reference.endswith((".yaml", ".yml")):
        raise ConfigError(
            f"no list is called {reference!r}{nearest(reference, shipped())}",
            hint=f"lists in the image: {', '.join(shipped())}; a file of yours needs its path, such as ./{reference}.yaml",
        )
    return Path(reference)


def load(reference: str) -> Loaded:
    """A shipped list by name, or a file. ConfigError with every mistake, its line and the nearest valid key."""
    path = find(reference)
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror or error}") from None
    return parse(raw, path)


def parse(raw: bytes, path: Path) -> Loaded:
    try:
        file = yamlfile.parse(raw, str(path))
    except yamlfile.YamlError as error:
        raise ConfigError(*error.problems) from None
    try:
        found = ModelList.model_validate(file.data)
    except ValidationError as error:
        raise ConfigError(*_problems(file, error)) from None
    if problems := _clashes(file, found):
        raise ConfigError(*problems)
    return Loaded(name=path.stem, path=path, content=found)


def _problems(file: yamlfile.YamlFile, error: ValidationError) -> list[str]:
    found = []
    for mistake in error.errors():
        loc = mistake["loc"]
        match mistake["type"]:
            case "extra_forbidden":
                what = f"is not known{nearest(str(loc[-1]), _keys(loc[:-1]))}"
            case "missing":
                loc, what = loc[:-1], f"{loc[-1]} is missing"
            case "value_error":
                what = str(mistake["ctx"]["error"])
            case "string_type":
                what = "must be a text: put it in quotes"
            case "model_type" | "model_attributes_type" | "dict_type":
                what = "must be keys with values"
            case _:
                what = mistake["msg"][:1].lower() + mistake["msg"][1:]
        found.append((file.line(loc), file.problem(loc, what)))
    return [text for _, text in sorted(found)]


def _keys(loc: tuple[str | int, ...]) -> list[str]:
    """The keys that may stand at a place."""
    here: Any = ModelList
    for part in loc:
        match part:
            case "models":
                here = Model
            case "files":
                here = ModelFile
            case "vram":
                here = Vram
            case "left_out":
                here = LeftOut
    return [field.alias or name for name, field in here.model_fields.items()]


def _clashes(file: yamlfile.YamlFile, found: ModelList) -> list[str]:
    """Two models of one name, and two sources for one path. One file in several models is as it should be."""
    problems = []
    names: dict[str, int] = {}
    paths: dict[str, tuple[ModelFile, yamlfile.Loc]] = {}
    for i, model in enumerate(found.models):
        if model.name in names:
            first = file.line(("models", names[model.name], "name"))
            problems.append(
                file.problem(
                    ("models", i, "name"), f"{model.name!r} stands here twice; first on line {first}"
                )
            )
        names.setdefault(model.name, i)
        for j, one in enumerate(model.files):
            loc = ("models", i, "files", j)
            # Folded, since some file systems do not tell capitals apart.
            other, first_loc = paths.setdefault(one.path.casefold(), (one, loc))
            if other != one:
                problems.append(
                    file.problem(
                        loc,
                        f"{one.path} is another file than the one of that path on line {file.line(first_loc)}; "
                        "give one of them save_as",
                    )
                )
    return problems


def _plain(text: str) -> bool:
    return (
        bool(text)
        and text.isprintable()
        and len(text) <= _LONGEST_ADDRESS
        and not any(c in text for c in " \\?#\"'<>|*")
    )


def _safe_name(text: str) -> bool:
    return (
        bool(text)
        and text.isprintable()
        and len(text.encode()) <= _LONGEST
        and not text.startswith((".", "-", " "))
        and not text.endswith((".", " ", ".part", ".part.json"))
        and not any(c in text for c in '/\\:*?"<>|')
    )
