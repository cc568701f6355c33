"""Two images side by side, as one HTML page that needs no other file. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import jinja2

from imgbuild.imageinfo import secret_free
from imgbuild.report import human
from imgbuild.textfile import read_text

if TYPE_CHECKING:
    from pathlib import Path

    from imgbuild.imagediff import Change, Difference, LayerPair
    from imgbuild.imageview import Layer, View

TEMPLATE = "diff.html.j2"
_LINE = 3.5
"""Percent of the picture's height in which a line of text fits."""
_THINNEST = 0.35
"""Percent of the picture's height: a layer of some kilobytes is to be seen too."""


def page(found: Difference, *, templates: Path, version: str) -> str:
    env = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    env.filters["human"] = human
    template = env.from_string(read_text(templates / TEMPLATE))
    return template.render(v=view(found), version=version) + "\n"


def view(found: Difference) -> dict[str, Any]:
    """What the template sees."""
    known = _common_size(found)
    return {
        "a": _image(found.a, found.sources[0]),
        "b": _image(found.b, found.sources[1]),
        "same": found.empty,
        "cards": _cards(found),
        "measure": {"unpacked": "unpacked", "stored": "compressed"}.get(known, "as far as it is known"),
        "pictures": _pictures(found, known),
        "layers": [_row(pair) for pair in found.layers],
        "sections": [
            {
                "title": title,
                "rows": None
                if rows is None
                else [{"sign": c.sign, "name": c.name, "a": c.a, "b": c.b} for c in rows],
            }
            for title, rows in sections(found)
        ],
    }


def sections(found: Difference) -> list[tuple[str, tuple[Change, ...] | None]]:
    """Every kind of difference with its title; None where a side is not known."""
    return [
        ("Kernels", found.kernels),
        ("Python packages", found.python),
        ("Python packages of the worker", found.work),
        ("Debian packages", found.debian),
        ("Environment", _hidden(found.environment)),
        ("Settings", found.settings),
        ("Labels", found.labels),
    ]


def _hidden(changes: tuple[Change, ...]) -> tuple[Change, ...]:
    from imgbuild.imagediff import Change  # noqa: PLC0415  (its own constructor)

    def shown(name: str, value: str | None) -> str | None:
        return None if value is None else secret_free({name: value})[0][1]

    return tuple(Change(name=c.name, a=shown(c.name, c.a), b=shown(c.name, c.b)) for c in changes)


def _image(image: View, source: str) -> dict[str, str]:
    return {
        "reference": image.reference,
        "digest": image.digest,
        "platform": image.platform,
        "target": image.labels.get("imgbuild.target", "–"),
        "capability": image.labels.get("imgbuild.compute-capability", "–"),
        "comfyui": image.labels.get("imgbuild.comfyui", "–"),
        "torch": image.labels.get("imgbuild.torch", "–"),
        "source": source,
    }


def _cards(found: Difference) -> list[dict[str, str]]:
    same = sum(pair.same for pair in found.layers)
    cards = [{"title": "layers in both", "value": f"{same} of {len(found.layers)}"}]
    for title, sizes in (("compressed or as stored", found.stored), ("unpacked", found.unpacked)):
        if sizes.a is not None and sizes.b is not None:
            cards.append({"title": f"A, {title}", "value": human(sizes.a)})
            cards.append({"title": f"B, {title}", "value": human(sizes.b)})
            if sizes.shared is not None:
                cards.append({"title": f"in both, {title}", "value": human(sizes.shared)})
            break
    if found.python is not None and found.debian is not None:
        count = len(found.python) + len(found.debian) + len(found.work or ())
        cards.append({"title": "packages that differ", "value": str(count)})
    return cards


def _common_size(found: Difference) -> str:
    """What both sides know of each of their layers."""
    if found.unpacked.a is not None and found.unpacked.b is not None:
        return "unpacked"
    return "stored" if found.stored.a is not None and found.stored.b is not None else ""


def _size(layer: Layer, known: str) -> int:
    return int(getattr(layer, known) or 0) if known else layer.size


def _pictures(found: Difference, known: str) -> list[dict[str, Any]]:
    """All layers; and where both share some, the others once more, large enough to be seen."""
    pictures = [{"title": "Layers, to one scale", "height": 560, "bars": _bars(found, found.layers, known)}]
    other = tuple(pair for pair in found.layers if not pair.same)
    if other and len(other) < len(found.layers):
        bars = _bars(found, other, known)
        pictures.append({"title": "Only what differs, to a scale of its own", "height": 220, "bars": bars})
    return pictures


def _bars(found: Difference, layers: tuple[LayerPair, ...], known: str) -> list[dict[str, Any]]:
    """Both images as columns of layers, to one scale, the bottom layer at the bottom."""
    sides = [
        ("A", found.a, [p for p in layers if p.a is not None]),
        ("B", found.b, [p for p in layers if p.b is not None]),
    ]
    totals = [sum(_size(_of(p, side), known) for p in pairs) for side, _, pairs in sides]
    largest = max([*totals, 1])
    bars = []
    for (side, image, pairs), total in zip(sides, totals, strict=True):
        blocks = []
        for pair in reversed(pairs):
            size = _size(_of(pair, side), known)
            share = 100 * size / largest
            blocks.append(
                {
                    "name": pair.name,
                    "size": size,
                    "height": round(max(share, _THINNEST), 2),
                    "labelled": share >= (_LINE if len(layers) == len(found.layers) else 2 * _LINE),
                    "kind": "same" if pair.same else "other" if pair.a and pair.b else "only",
                }
            )
        bars.append({"side": side, "reference": image.reference, "total": total, "blocks": blocks})
    return bars


def _of(pair: LayerPair, side: str) -> Layer:
    layer = pair.a if side == "A" else pair.b
    assert layer is not None
    return layer


def _row(pair: LayerPair) -> dict[str, Any]:
    def told(layer: Layer | None) -> dict[str, str] | None:
        if layer is None:
            return None
        parts = [human(size) for size in (layer.unpacked, layer.stored) if size is not None]
        return {"size": " / ".join(parts) or "–", "diff": layer.diff[7:19]}

    return {
        "name": pair.name,
        "sign": "=" if pair.same else "+" if pair.a is None else "-" if pair.b is None else "~",
        "a": told(pair.a),
        "b": told(pair.b),
    }
