"""What to tell of an image, as rows for a table. Pure."""

from __future__ import annotations

import itertools
import re
from typing import TYPE_CHECKING, Any

from imgbuild.choice import Verdict, candidate, judge
from imgbuild.imagediff import sizes
from imgbuild.report import human

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from imgbuild.hardware import Hardware
    from imgbuild.imageview import View

_SECRET = re.compile(r"(TOKEN|SECRET|PASSWORD|PASSWD|API_?KEY|CREDENTIAL)", re.IGNORECASE)
_USER = re.compile(r"(?<=://)[^/@\s]+@")


def facts(view: View) -> list[tuple[str, str]]:
    """(what, value)"""
    labels = view.labels
    attached = ", ".join(sorted({a.kind for a in view.attachments}))
    rows = [
        ("lies in", {"registry": "its registry", "archive": "a file"}.get(view.place, view.place)),
        ("digest", view.digest),
        ("platform", view.platform),
        ("made for", _made_for(view)),
    ]
    if view.ours:
        rows += [
            (
                "ComfyUI",
                f"{labels.get('imgbuild.comfyui', '–')} ({labels.get('imgbuild.comfyui.identity', '–')})",
            ),
            ("torch", f"{labels.get('imgbuild.torch', '–')}, CUDA {labels.get('imgbuild.cuda', '–')}"),
            ("plan", f"{labels.get('imgbuild.plan', '–')}, imgbuild {labels.get('imgbuild.version', '–')}"),
        ]
    rows += [
        ("starts", " ".join([*view.entrypoint, *view.command]) or "–"),
        ("user", view.user or "root"),
        ("ports", " ".join(view.ports) or "–"),
        ("volumes", " ".join(view.volumes) or "–"),
        ("healthcheck", "yes" if view.healthcheck else "no"),
        ("size", size_text(view)),
    ]
    if view.place == "registry":
        rows.append(("beside it", attached or "no SBOM, no signature, no provenance"))
    elif attached:
        rows.append(("with it", attached))
    return rows


def size_text(view: View) -> str:
    parts = []
    if view.stored is not None:
        parts.append(f"{human(view.stored)} {'compressed' if view.place == 'registry' else 'as stored'}")
    if view.unpacked is not None:
        parts.append(f"{human(view.unpacked)} unpacked")
    return f"{', '.join(parts) or 'not known'}, {len(view.layers)} layers"


def _made_for(view: View) -> str:
    if not view.ours:
        return "not known: it has no label imgbuild.target"
    capability = view.labels.get("imgbuild.compute-capability", "–")
    what = "no GPU" if capability == "none" else f"compute capability {capability}"
    return f"{view.labels['imgbuild.target']}: {what}"


def code_rows(view: View) -> list[list[str]]:
    """Each kernel with its code, of the label."""
    return [
        [k.name, k.version, ", ".join(k.code) or "nothing compiled (a fallback)", k.key or "–"]
        for k in view.kernels
    ]


def layer_columns(view: View, stored: str) -> tuple[list[str], list[list[str]]]:
    """Titles and rows; of sizes only what somebody knows."""
    columns = ["layer"]
    columns += [stored] if view.stored is not None else []
    columns += ["unpacked"] if any(x.unpacked is not None for x in view.layers) else []
    rows = []
    for layer in view.layers:
        row = [layer.name]
        row += [_amount(layer.stored)] if stored in columns else []
        row += [_amount(layer.unpacked)] if "unpacked" in columns else []
        rows.append([*row, layer.made_by, layer.diff[7:19]])
    return [*columns, "made by", "content"], rows


def _amount(size: int | None) -> str:
    return "–" if size is None else human(size)


def runs_here(view: View, hardware: Hardware, platform: str) -> Verdict:
    """Whether the image runs on this machine."""
    own = candidate(
        view.labels.get("imgbuild.target", ""), view.reference, view.labels, platform=view.platform
    )
    return judge(own, hardware, platform)


def secret_free(environment: Mapping[str, str]) -> list[tuple[str, str]]:
    """Names and values, without those that look like a password: what is shown ends in logs and bug reports."""
    return [
        (name, "***" if _SECRET.search(name) else _USER.sub("***@", value))
        for name, value in sorted(environment.items())
    ]


def shared_rows(views: Sequence[View]) -> list[dict[str, Any]]:
    """What each two images share; bytes are None where the size of a shared layer is not known."""
    rows = []
    for a, b in itertools.combinations(views, 2):
        common = {x.diff for x in a.layers} & {x.diff for x in b.layers}
        stored, unpacked = sizes(a, b, "stored"), sizes(a, b, "unpacked")
        rows.append(
            {
                "a": a.reference,
                "b": b.reference,
                "layers": len(common),
                "stored_bytes": stored.shared,
                "unpacked_bytes": unpacked.shared,
            }
        )
    return rows
