"""What differs between two images: layers, packages, kernels, environment, labels, sizes. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from collections.abc import Mapping

    from imgbuild.contents import Contents
    from imgbuild.imageview import Layer, View

Side = Literal["both", "a", "b"]


@dataclass(frozen=True, kw_only=True)
class Change:
    """One name whose value differs; None where a side has no such name."""

    name: str
    a: str | None
    b: str | None

    @property
    def sign(self) -> str:
        """+ only in B, - only in A, ~ another value."""
        return "+" if self.a is None else "-" if self.b is None else "~"

    def as_json(self) -> dict[str, Any]:
        return {"name": self.name, "a": self.a, "b": self.b}


@dataclass(frozen=True, kw_only=True)
class LayerPair:
    """A layer that both have, or one of one side, or two that take the same place."""

    a: Layer | None
    b: Layer | None

    @property
    def same(self) -> bool:
        return self.a is not None and self.b is not None and self.a.diff == self.b.diff

    @property
    def name(self) -> str:
        one = self.a or self.b
        return one.name if one else ""


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """Bytes; None where a side does not know the size of each layer."""

    a: int | None
    b: int | None
    shared: int | None
    """Of layers that both have."""

    def as_json(self) -> dict[str, Any]:
        return {"a": self.a, "b": self.b, "shared": self.shared}


@dataclass(frozen=True, kw_only=True)
class Difference:
    a: View
    b: View
    layers: tuple[LayerPair, ...]
    labels: tuple[Change, ...]
    environment: tuple[Change, ...]
    settings: tuple[Change, ...]
    """Platform, user, entrypoint, command, ports, volumes, healthcheck."""
    kernels: tuple[Change, ...]
    python: tuple[Change, ...] | None
    """None where the packages of a side are not known."""
    debian: tuple[Change, ...] | None
    work: tuple[Change, ...] | None
    """Python packages of `comfyrun worker`'s own venv."""
    stored: Sizes
    unpacked: Sizes
    sources: tuple[str, str]
    """Where the packages of A and of B were read, or why they are not known."""

    @property
    def empty(self) -> bool:
        """Whether the two are the same in all that was compared."""
        changes = (
            self.labels,
            self.environment,
            self.settings,
            self.kernels,
            self.python or (),
            self.debian or (),
            self.work or (),
        )
        return not any(changes) and all(pair.same for pair in self.layers)

    def as_json(self) -> dict[str, Any]:
        def rows(changes: tuple[Change, ...] | None) -> list[dict[str, Any]] | None:
            return None if changes is None else [c.as_json() for c in changes]

        return {
            "a": {"reference": self.a.reference, "digest": self.a.digest, "packages_from": self.sources[0]},
            "b": {"reference": self.b.reference, "digest": self.b.digest, "packages_from": self.sources[1]},
            "same": self.empty,
            "stored_bytes": self.stored.as_json(),
            "unpacked_bytes": self.unpacked.as_json(),
            "layers": [
                {
                    "name": pair.name,
                    "same": pair.same,
                    **{
                        side: None
                        if one is None
                        else {
                            "diff_id": one.diff,
                            "stored_bytes": one.stored,
                            "unpacked_bytes": one.unpacked,
                        }
                        for side, one in (("a", pair.a), ("b", pair.b))
                    },
                }
                for pair in self.layers
            ],
            "kernels": rows(self.kernels),
            "python": rows(self.python),
            "debian": rows(self.debian),
            "work": rows(self.work),
            "environment": rows(self.environment),
            "settings": rows(self.settings),
            "labels": rows(self.labels),
        }


def difference(a: View, b: View, contents_a: Contents | str, contents_b: Contents | str) -> Difference:
    """Compare two images; in the place of contents that are not known stands why."""
    known = not isinstance(contents_a, str) and not isinstance(contents_b, str)
    return Difference(
        a=a,
        b=b,
        layers=pair_layers(a.layers, b.layers),
        labels=changes(a.labels, b.labels),
        environment=changes(a.environment, b.environment),
        settings=changes(_settings(a), _settings(b)),
        kernels=changes(_kernels(a), _kernels(b)),
        python=changes(contents_a.python, contents_b.python) if known else None,  # type: ignore[union-attr]
        debian=changes(contents_a.debian, contents_b.debian) if known else None,  # type: ignore[union-attr]
        work=changes(contents_a.work, contents_b.work) if known else None,  # type: ignore[union-attr]
        stored=sizes(a, b, "stored"),
        unpacked=sizes(a, b, "unpacked"),
        sources=(_source(contents_a), _source(contents_b)),
    )


def changes(a: Mapping[str, str], b: Mapping[str, str]) -> tuple[Change, ...]:
    """Names whose values differ, in alphabetical order."""
    return tuple(
        Change(name=name, a=a.get(name), b=b.get(name))
        for name in sorted({*a, *b})
        if a.get(name) != b.get(name)
    )


def pair_layers(a: tuple[Layer, ...], b: tuple[Layer, ...]) -> tuple[LayerPair, ...]:
    """Both rows of layers as one, from the bottom to the top: equal ones, then those of one name, then the rest."""
    import difflib  # noqa: PLC0415

    pairs: list[LayerPair] = []
    matcher = difflib.SequenceMatcher(None, [x.diff for x in a], [x.diff for x in b], autojunk=False)
    for tag, a_from, a_to, b_from, b_to in matcher.get_opcodes():
        if tag == "equal":
            pairs += [LayerPair(a=x, b=y) for x, y in zip(a[a_from:a_to], b[b_from:b_to], strict=True)]
        else:
            pairs += _by_name(a[a_from:a_to], b[b_from:b_to])
    return tuple(pairs)


def _by_name(a: tuple[Layer, ...], b: tuple[Layer, ...]) -> list[LayerPair]:
    import difflib  # noqa: PLC0415

    pairs: list[LayerPair] = []
    matcher = difflib.SequenceMatcher(None, [x.name for x in a], [x.name for x in b], autojunk=False)
    for tag, a_from, a_to, b_from, b_to in matcher.get_opcodes():
        if tag == "equal":
            pairs += [LayerPair(a=x, b=y) for x, y in zip(a[a_from:a_to], b[b_from:b_to], strict=True)]
        else:
            pairs += [LayerPair(a=x, b=None) for x in a[a_from:a_to]]
            pairs += [LayerPair(a=None, b=y) for y in b[b_from:b_to]]
    return pairs


def sizes(a: View, b: View, which: Literal["stored", "unpacked"]) -> Sizes:
    """What both have is counted as A has it: a registry may compress the same layer otherwise."""
    common = {x.diff for x in b.layers}
    shared = {(x.diff, getattr(x, which)) for x in a.layers if x.diff in common}
    known = all(size is not None for _, size in shared)
    return Sizes(
        a=getattr(a, which), b=getattr(b, which), shared=sum(size for _, size in shared) if known else None
    )


def _kernels(view: View) -> dict[str, str]:
    return {
        k.name: f"{k.version} {'+'.join(k.code) if k.compiled else 'fallback, nothing compiled'}"
        + (f" ({k.key})" if k.key else "")
        for k in view.kernels
    }


def _settings(view: View) -> dict[str, str]:
    return {
        "platform": view.platform,
        "user": view.user,
        "entrypoint": " ".join(view.entrypoint),
        "command": " ".join(view.command),
        "ports": " ".join(view.ports),
        "volumes": " ".join(view.volumes),
        "healthcheck": "yes" if view.healthcheck else "no",
    }


def _source(contents: Contents | str) -> str:
    return contents if isinstance(contents, str) else contents.source
