"""Results of the image tests → one HTML page: what was proven, on what, with sizes, code, timings and pictures. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import jinja2

from imgbuild.imagetests import count, skips
from imgbuild.report import human
from imgbuild.textfile import read_text

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

TEMPLATE = "report.html.j2"
TITLES = {
    "ring1": ("Ring 1", "the image by itself"),
    "ring2": ("Ring 2", "end to end on the CPU"),
    "ring3": ("Ring 3", "on a GPU"),
    "faults": ("Faults", "what goes wrong around it"),
    "other": ("Other", ""),
}


def page(results: Mapping[str, Any], *, templates: Path, version: str) -> str:
    """The whole page; it needs no other file."""
    # HTML, unlike the Dockerfiles: what a test says is text and never markup.
    env = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    env.filters["human"] = human
    template = env.from_string(read_text(templates / TEMPLATE))
    return template.render(v=view(results), version=version) + "\n"


def view(results: Mapping[str, Any]) -> dict[str, Any]:
    """What the template sees: computed here, so that it holds no logic."""
    tests = list(results["tests"])
    subject, facts = results["subject"], results["facts"]
    counts = count(tests)
    failed = [t for t in tests if t["outcome"] == "failed"]
    return {
        "name": subject["target"],
        "reference": subject["reference"],
        "passed": not failed and any(t["outcome"] == "passed" for t in tests),
        "counts": [
            {"title": TITLES.get(ring, (ring, ""))[0], "says": TITLES.get(ring, (ring, ""))[1], "count": c}
            for ring, c in counts.items()
        ],
        "totals": {o: sum(t["outcome"] == o for t in tests) for o in ("passed", "failed", "skipped")},
        "seconds": results["seconds"],
        "begun": results["begun"],
        "facts": _facts(subject, facts),
        "machine": _machine(subject),
        "selection": subject.get("selection", ""),
        "stale": subject["stale"],
        "failed": failed,
        "skips": skips(tests),
        "layers": _layers(subject, facts),
        "code": facts.get("code"),
        "code_rows": _code_rows(facts.get("code") or {}),
        "figures": _figures(tests, facts),
        "pictures": results["pictures"],
        "rings": [
            {
                "title": TITLES.get(ring, (ring, ""))[0],
                "says": TITLES.get(ring, (ring, ""))[1],
                "groups": _groups([t for t in tests if t["ring"] == ring]),
            }
            for ring in counts
        ],
    }


def _facts(subject: Mapping[str, Any], facts: Mapping[str, Any]) -> list[tuple[str, str]]:
    image, plan = subject["image"], subject["plan"] or {}
    labels = image["labels"]
    size = facts.get("size") or {}
    rows = [
        ("image", subject["reference"]),
        ("digest", image["digest"]),
        ("made for", plan.get("title") or labels.get("imgbuild.target", "–")),
        ("platform", image["platform"] + (" (emulated)" if subject["emulated"] else "")),
        ("compute capability", plan.get("compute_capability") or "none"),
        ("ComfyUI", f"{labels.get('imgbuild.comfyui', '–')} ({labels.get('imgbuild.comfyui.source', '–')})"),
        ("torch", f"{labels.get('imgbuild.torch', '–')}, CUDA {labels.get('imgbuild.cuda', '–')}"),
        ("kernels", ", ".join(plan.get("kernels") or ()) or labels.get("imgbuild.kernels", "none")),
        ("plan", plan.get("key") or f"– ({subject['why_no_plan']})"),
        ("in the store", human(int(image["size"]))),
    ]
    if size:
        rows.append(("unpacked", f"{human(int(size['unpacked']))}, {size['files']} files"))
    return rows


def _machine(subject: Mapping[str, Any]) -> list[tuple[str, str]]:
    machine = subject["machine"]
    return [
        ("engine", subject["engine"]),
        ("platform", machine["platform"]),
        ("cores", str(machine["cpus"])),
        ("memory", human(int(machine["memory"]))),
        ("kernel", machine["kernel"]),
        ("GPU", ", ".join(machine["gpus"]) or "none"),
    ]


def _layers(subject: Mapping[str, Any], facts: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Layers with the names of their stages, where their number says that they are the plan's."""
    rows = list(facts.get("layers") or ())
    names = (subject["plan"] or {}).get("layers") or []
    largest = max([int(r["bytes"]) for r in rows], default=0) or 1
    named = names if len(names) == len(rows) else [r["by"] for r in rows]
    return [
        {"name": name, "bytes": int(row["bytes"]), "share": round(100 * int(row["bytes"]) / largest, 1)}
        for name, row in zip(named, rows, strict=True)
    ]


def _code_rows(code: Mapping[str, Any]) -> list[dict[str, str]]:
    words = {
        "yes": "yes",
        "jit": "by JIT",
        "no": "no",
        "unasked": "–",
        "unreadable": "unreadable",
        "none": "–",
    }
    return [
        {
            "file": f["file"],
            "package": f["package"] or "–",
            "code": ", ".join(f"{c['kind']} {c['arch']} × {c['count']}" for c in f["code"]),
            "runs": words.get(f["runs"], f["runs"]),
        }
        for f in code.get("files") or ()
    ]


def _figures(tests: Sequence[Mapping[str, Any]], facts: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What was measured on the way."""
    rows = []
    for test in tests:
        for name, value in test["figures"].items():
            shown = human(int(value)) if name.startswith("bytes_") else str(value)
            shown += " s" if name.startswith("seconds_") else ""
            rows.append((name.removeprefix("seconds_").removeprefix("bytes_").replace("_", " "), shown))
    if "seconds_to_make_models" in facts:
        rows.append(("to make the tiny models", f"{facts['seconds_to_make_models']} s"))
    marks = facts.get("memory_by_prompts") or {}
    rows += [(f"memory after {n} prompts", human(int(value))) for n, value in marks.items()]
    return rows


def _groups(tests: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Tests of one function as one row: a hundred packages are one thing proven a hundred times."""
    found: dict[str, dict[str, Any]] = {}
    for test in tests:
        key = str(test["id"]).partition("[")[0]
        group = found.setdefault(
            key,
            {
                "id": key,
                "proves": test["proves"],
                "passed": 0,
                "failed": 0,
                "skipped": 0,
                "seconds": 0.0,
                "reason": "",
            },
        )
        group[test["outcome"]] += 1
        group["seconds"] = round(group["seconds"] + float(test["seconds"]), 2)
        if test["outcome"] != "passed" and not group["reason"]:
            group["reason"] = str(test["reason"]).strip().splitlines()[-1] if test["reason"] else ""
    for group in found.values():
        group["state"] = "failed" if group["failed"] else "passed" if group["passed"] else "skipped"
    return list(found.values())
