"""Two pictures in one SVG: speed by how much is offloaded, and the timeline of one pass."""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

_WIDTH, _LEFT, _TOP, _PLOT = 860, 60, 40, 260
_COLOURS = ("#1b6ca8", "#d1495b", "#66a182", "#edae49", "#5f4b8b")
_KINDS = {"copy": "#edae49", "compute": "#1b6ca8", "stall": "#d1495b"}


def picture(
    title: str, lines: Mapping[str, Sequence[tuple[float, float]]], spans: Sequence[Mapping[str, Any]]
) -> str:
    """`lines`: by label, (percent offloaded, percent of resident speed); `spans` as in the engine's report."""
    parts = [
        (
            f'<svg xmlns="http://www.w3.org/2000/svg" width="{_WIDTH}" height="{_TOP + _PLOT + 200}" '
            f'font-family="sans-serif" font-size="12">'
        ),
        f'<rect width="100%" height="100%" fill="white"/><text x="{_LEFT}" y="20" font-size="15">{escape(title)}</text>',
        *_speeds(lines),
        *_timeline(spans, _TOP + _PLOT + 70),
        "</svg>\n",
    ]
    return "\n".join(parts)


def _speeds(lines: Mapping[str, Sequence[tuple[float, float]]]) -> list[str]:
    width = _WIDTH - _LEFT - 190

    def at(x: float, y: float) -> tuple[float, float]:
        return _LEFT + x / 100 * width, _TOP + _PLOT - min(y, 110) / 110 * _PLOT

    parts = []
    for y in range(0, 101, 20):
        (left, height), (right, _) = at(0, y), at(100, y)
        parts.append(f'<line x1="{left}" x2="{right}" y1="{height}" y2="{height}" stroke="#ddd"/>')
        parts.append(f'<text x="{left - 8}" y="{height + 4}" text-anchor="end">{y} %</text>')
    for x in range(0, 101, 20):
        left, height = at(x, 0)
        parts.append(f'<text x="{left}" y="{height + 16}" text-anchor="middle">{x} %</text>')
    parts.append(
        f'<text x="{_LEFT + width / 2}" y="{_TOP + _PLOT + 34}" text-anchor="middle">'
        "bytes offloaded; speed in percent of everything resident</text>"
    )
    for n, (label, points) in enumerate(lines.items()):
        colour = _COLOURS[n % len(_COLOURS)]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in (at(*point) for point in sorted(points)))
        parts.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"/>')
        y = _TOP + 16 + 18 * n
        parts.append(f'<rect x="{_WIDTH - 180}" y="{y - 9}" width="12" height="9" fill="{colour}"/>')
        parts.append(f'<text x="{_WIDTH - 162}" y="{y}">{escape(label)}</text>')
    return parts


def _timeline(spans: Sequence[Mapping[str, Any]], top: int) -> list[str]:
    if not spans:
        return []
    end = max(span["end"] for span in spans)
    begin = min(0.0, *(span["start"] for span in spans))
    scale = (_WIDTH - _LEFT - 20) / max(end - begin, 1e-9)
    rows = {"copy": top, "compute": top + 34, "stall": top + 34}
    parts = [
        f'<text x="{_LEFT - 6}" y="{top + 17}" text-anchor="end">copy</text>',
        f'<text x="{_LEFT - 6}" y="{top + 51}" text-anchor="end">compute</text>',
        f'<text x="{_LEFT}" y="{top + 80}">one pass, {1000 * end:.2f} ms; red: the computes wait for a copy</text>',
    ]
    for span in spans:
        left = _LEFT + (span["start"] - begin) * scale
        width = max((span["end"] - span["start"]) * scale, 0.3)
        tip = f"{span['kind']} of layer {span['layer']}: {1000 * (span['end'] - span['start']):.3f} ms"
        parts.append(
            f'<rect x="{left:.2f}" y="{rows[span["kind"]]}" width="{width:.2f}" height="26" '
            f'fill="{_KINDS[span["kind"]]}" stroke="white" stroke-width="0.3"><title>{tip}</title></rect>'
        )
    return parts
