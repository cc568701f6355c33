"""The report to look at: which layers stay, and when what was copied and computed."""

from __future__ import annotations

import uuid
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from PIL import Image, ImageDraw, ImageFont

from . import report as words

if TYPE_CHECKING:
    from collections.abc import Sequence

    from .engine import Report, Span

WIDTH = 1280
MARGIN = 24
ROW = 26
LINE = 150
"""Letters of the headline that fit."""
HEADLINES = 5
TICKS = 5
GAP = 4
LABELLED = 18
"""Pixels from which on a bar has room for its layer's number."""
COLUMNS = 40

# Distinguishable without colour vision: they differ in lightness too.
PAPER = (250, 250, 248)
INK = (32, 36, 42)
FAINT = (208, 211, 214)
RESIDENT = (23, 78, 121)
STREAMED = (130, 190, 225)
UNPACKED = (238, 182, 74)
COMPUTE = (46, 125, 90)
COPY = STREAMED
STALL = (200, 60, 50)


def render(report: Report) -> Image.Image:
    """A picture of WIDTH pixels, as high as it needs. The same report gives the same picture."""
    lanes = _lanes(report.timeline)
    head = _headline(report)
    map_rows = -(-len(report.layers) // COLUMNS) if report.layers else 0
    timeline = (len(lanes) + 2) * ROW if lanes else 2 * ROW
    height = MARGIN * 3 + (len(head) + 1) * ROW + map_rows * (ROW + 4) + timeline + ROW
    image = Image.new("RGB", (WIDTH, height), PAPER)
    draw = ImageDraw.Draw(image)
    y = MARGIN
    for i, line in enumerate(head):
        draw.text((MARGIN, y), line, fill=INK, font=_font(18 if i == 0 else 14))
        y += ROW
    y = _residency(draw, report, y + MARGIN // 2)
    _timeline(draw, report, lanes, y + MARGIN)
    return image


def tensor(image: Image.Image) -> torch.Tensor:
    """As ComfyUI's IMAGE: one picture, height, width, RGB, 0 to 1."""
    flat = torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8)
    return flat.reshape(1, image.height, image.width, 3).to(torch.float32) / 255.0


def preview(image: Image.Image) -> dict[str, str]:
    """Written to ComfyUI's temporary folder, for the node's own face; what the interface wants to know of it."""
    import folder_paths  # noqa: PLC0415

    folder = Path(folder_paths.get_temp_directory())
    folder.mkdir(parents=True, exist_ok=True)
    name = f"dgls-{uuid.uuid4().hex[:12]}.png"
    image.save(folder / name, compress_level=1)
    return {"filename": name, "subfolder": "", "type": "temp"}


def _font(size: int) -> ImageFont.ImageFont | ImageFont.FreeTypeFont:
    return ImageFont.load_default(size)


def _headline(report: Report) -> list[str]:
    stay = sum(layer.resident for layer in report.layers)
    first = f"DGLS, {report.mode}: {stay} of {len(report.layers)} layers stay on {report.device}"
    lines = [f"{first} ({words.size(report.resident_bytes)} + {words.size(report.slot_bytes)} for copies)"]
    m = report.metrics
    if m is not None:
        lines.append(
            f"one pass {words.seconds(m.seconds)}, resident {words.seconds(m.resident_seconds)}, "
            f"waited {words.seconds(m.stall)}, copying hidden {m.eta:.0%} (at best {m.eta_max:.0%})"
        )
    why = report.why
    while why and len(lines) < HEADLINES:
        cut = len(why) if len(why) <= LINE else why.rfind(" ", 0, LINE)
        lines.append(why[:cut])
        why = why[cut:].strip()
    return lines


def _residency(draw: ImageDraw.ImageDraw, report: Report, y: int) -> int:
    draw.text((MARGIN, y), "layers", fill=INK, font=_font(14))
    x = MARGIN + 90
    for label, colour in (("stays", RESIDENT), ("copied", STREAMED), ("copied, not packed", UNPACKED)):
        draw.rectangle((x, y + 3, x + 14, y + 15), fill=colour)
        draw.text((x + 20, y), label, fill=INK, font=_font(13))
        x += 120
    y += ROW
    step = (WIDTH - 2 * MARGIN) / COLUMNS
    for i, layer in enumerate(report.layers):
        left = MARGIN + (i % COLUMNS) * step
        top = y + (i // COLUMNS) * (ROW + 4)
        swapped = STREAMED if layer.packed or not layer.note else UNPACKED
        colour = RESIDENT if layer.resident else swapped
        draw.rectangle((left, top, left + step - 4, top + ROW - 2), fill=colour)
        ink = PAPER if layer.resident else INK
        draw.text((left + 4, top + 4), str(layer.index), fill=ink, font=_font(12))
    return y + (-(-len(report.layers) // COLUMNS)) * (ROW + 4)


def _lanes(timeline: Sequence[Span]) -> list[str]:
    if not timeline:
        return []
    slots = sorted({span.slot for span in timeline if span.kind == "copy" and span.slot is not None})
    return ["compute", *(f"copy {slot}" for slot in slots)]


def _timeline(draw: ImageDraw.ImageDraw, report: Report, lanes: list[str], y: int) -> None:
    draw.text((MARGIN, y), "time", fill=INK, font=_font(14))
    if not lanes:
        draw.text((MARGIN + 90, y), _why_no_timeline(report), fill=INK, font=_font(14))
        return
    x = MARGIN + 90
    for label, colour in (("compute", COMPUTE), ("copy", COPY), ("waiting", STALL)):
        draw.rectangle((x, y + 3, x + 14, y + 15), fill=colour)
        draw.text((x + 20, y), label, fill=INK, font=_font(13))
        x += 120
    y += ROW
    begin = min(span.start for span in report.timeline)
    end = max(begin + 1e-9, *(span.end for span in report.timeline))
    left, right = MARGIN + 90, WIDTH - MARGIN
    scale = (right - left) / (end - begin)
    for row, lane in enumerate(lanes):
        top = y + row * ROW
        draw.text((MARGIN, top + 3), lane, fill=INK, font=_font(13))
        draw.line((left, top + ROW - 2, right, top + ROW - 2), fill=FAINT)
    for span in report.timeline:
        lane = f"copy {span.slot}" if span.kind == "copy" else "compute"
        if lane not in lanes:
            continue
        top = y + lanes.index(lane) * ROW + 2
        x0 = left + (span.start - begin) * scale
        x1 = max(left + (span.end - begin) * scale, x0 + 1)
        colour = {"compute": COMPUTE, "copy": COPY, "stall": STALL}[span.kind]
        # A gap of one pixel, so that neighbours can be told apart; not where it would be all there is.
        draw.rectangle((x0, top, x1 - (1 if x1 - x0 > GAP else 0), top + ROW - 6), fill=colour)
        if x1 - x0 > LABELLED:
            ink = INK if span.kind == "copy" else PAPER
            draw.text((x0 + 3, top + 2), str(span.layer), fill=ink, font=_font(11))
    y += len(lanes) * ROW + 2
    for tick in range(TICKS + 1):
        at = begin + (end - begin) * tick / TICKS
        place = left + (right - left) * tick / TICKS
        anchor = "la" if tick == 0 else "ra" if tick == TICKS else "ma"
        draw.text((place, y), f"{at * 1e3:.1f} ms", fill=INK, font=_font(11), anchor=anchor)


def _why_no_timeline(report: Report) -> str:
    if report.mode in ("unified", "off"):
        return "nothing is copied while sampling"
    return "no run was traced yet"
