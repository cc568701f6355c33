"""Which models of which lists are meant."""

from __future__ import annotations

from typing import TYPE_CHECKING

from comfywork.errors import ConfigError, nearest

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from comfywork.models.modellist import Loaded, Model, ModelFile


def choose(loaded: Sequence[Loaded], only: Sequence[str], workload: Sequence[str]) -> list[Model]:
    """The models that are meant, in the lists' order. ConfigError for a name that no list has."""
    everything = [model for one in loaded for model in one.models]
    _known(only, [model.name for model in everything], "model")
    _known(workload, sorted({word for model in everything for word in model.workloads}), "workload")
    return [
        model
        for model in everything
        if (not only or model.name in only) and (not workload or set(workload) & set(model.workloads))
    ]


def _known(words: Sequence[str], known: Sequence[str], what: str) -> None:
    for word in words:
        if word not in known:
            raise ConfigError(
                f"no {what} is called {word!r}{nearest(word, known)}", hint=f"there are {', '.join(known)}"
            )


def unique(models: Iterable[Model]) -> list[ModelFile]:
    """Each path once: models share text encoders. ConfigError when two lists want different files in one place."""
    found: dict[str, ModelFile] = {}
    for model in models:
        for file in model.files:
            other = found.setdefault(file.path, file)
            if (other.source, other.sha256) != (file.source, file.sha256):
                raise ConfigError(
                    f"{file.path} is wanted from {other.source} and from {file.source}: which one?"
                )
    return list(found.values())
