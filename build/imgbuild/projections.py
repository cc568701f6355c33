"""Everything committed that follows from the matrix: rendered/, the JSON Schemas, docs/profiles.md, README's table."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from imgbuild.cimatrix import NO_JOBS
from imgbuild.deploy.compose import FOLDER as COMPOSE
from imgbuild.deploy.compose import compose_files, leftovers
from imgbuild.deploy.deployment import deploy
from imgbuild.deploy.queue import standard_plan, worker_files
from imgbuild.errors import ConfigError
from imgbuild.matrix import Common, Matrix, Target
from imgbuild.render import BUILDKIT, Files, Renderer, bake_file, pretty
from imgbuild.textfile import read_text

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from imgbuild.plan import Plan
    from imgbuild.project import Project

BAKE_FILE = "rendered/docker-bake.json"
WORKFLOW = ".github/workflows/images.yml"
PROFILES_PAGE = "docs/profiles.md"
_BEGIN = "<!-- imgbuild targets: begin (rendered; imgbuild render) -->"
_END = "<!-- imgbuild targets: end -->"


def schemas() -> dict[str, dict[str, Any]]:
    """The JSON Schema of each kind of file under images/."""
    found = {}
    for name, model in (("comfyui", Common), ("target", Target)):
        schema = model.model_json_schema()
        found[name] = {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}
    return found


def target_files(plans: Sequence[Plan], renderer: Renderer) -> Files:
    return {
        f"rendered/{plan.name}/{name}": text
        for plan in plans
        for name, text in renderer.context(plan, BUILDKIT).items()
    }


def compose_projection(plans: Sequence[Plan], renderer: Renderer) -> Files:
    """compose/: what all targets share, a file a target, and the queue with its workers."""
    files: Files = {}
    for plan in plans:
        made = compose_files(
            renderer, deploy(plan), title=f"ComfyUI for {plan.title}", again="imgbuild render", folder=COMPOSE
        )
        files.update({f"{COMPOSE}/{name}": text for name, text in made.items()})
    if standard := standard_plan(plans):
        made = worker_files(renderer, standard, again="imgbuild render", folder=COMPOSE)
        files.update({f"{COMPOSE}/{name}": text for name, text in made.items()})
    return files


def owned_paths(root: Path, files: Files, names: Sequence[str] | None) -> tuple[str, ...]:
    """Where a file that is not among `files` is a leftover; `names` are targets, None is all of them."""
    if names is not None:
        return tuple(f"rendered/{name}" for name in names)
    return ("rendered", *leftovers(root, files))


def committed_bake_file(plans: Sequence[Plan]) -> dict[str, Any]:
    """Paths are relative to the project's root, from which plain `docker buildx bake` is called."""
    return bake_file(plans, folder="rendered", contexts={"entrypoint": "entrypoint", "nodes-src": "nodes"})


def shared_files(project: Project, matrix: Matrix, plans: Sequence[Plan], renderer: Renderer) -> Files:
    """What all targets together give; only right when `plans` are all of them."""
    files = {BAKE_FILE: pretty(committed_bake_file(plans))}
    files.update({f"images/schema/{name}.json": pretty(schema) for name, schema in schemas().items()})
    readme = project.root / "README.md"
    if readme.is_file():
        files["README.md"] = with_table(read_text(readme), plans)
        files[PROFILES_PAGE] = profiles_page(plans)
        if matrix.common.ci is not None:
            files[WORKFLOW] = renderer.workflow(matrix.common.ci, image=matrix.common.image, no_jobs=NO_JOBS)
    return files


def with_table(text: str, plans: Sequence[Plan]) -> str:
    """The README with its table of targets made anew."""
    before, begin, rest = text.partition(_BEGIN)
    _, end, after = rest.partition(_END)
    if not begin:
        return text
    if not end:
        raise ConfigError(f"README.md has {_BEGIN!r} and no {_END!r}")
    return f"{before}{_BEGIN}\n{targets_table(plans)}{_END}{after}"


def targets_table(plans: Sequence[Plan]) -> str:
    rows = [
        "| target | made for | platform | compute capability | kernels, and the code in them | CUDA | torch | starts with, and its [evidence](docs/profiles.md) |",
        "| --- " * 8 + "|",
    ]
    for plan in plans:
        flags = [row for row in plan.reasons["default"] if row["line"].startswith("--")]
        shown = "<br>".join(f"`{f['line']}` {f['evidence']}" for f in flags) or "ComfyUI's defaults"
        cells = [
            f"`{plan.name}`",
            plan.title,
            plan.platform,
            plan.compute_capability or "none",
            "<br>".join(f"{k.name} {k.version}: {', '.join(k.code)}" for k in plan.kernels) or "none",
            plan.cuda or "none",
            plan.torch,
            shown,
        ]
        rows.append(f"| {' | '.join(cells)} |")
    return "\n".join(rows) + "\n"


_PROFILES_HEAD = """\
# Profiles

<!-- rendered from images/; imgbuild render -->

What a target starts with: `default`, or `COMFY_PROFILE=classic`, which is the source document's environment and flags to
the letter, less the flags that no longer exist. It is kept so that the claims can be tested. How the evidence is
marked: **V** read in source or measured from a wheel, **M** measured by a third party who shows the method, **C** a
claim nobody verified, **TBM** to be measured on the hardware. `{cache}` is /cache, `{compiled}` a folder in it that
belongs to the target and its torch.
"""


def profiles_page(plans: Sequence[Plan]) -> str:
    """Every line of every profile, with its reason and evidence."""
    all_rows = [rows for plan in plans for name, rows in plan.reasons.items() if "," not in name]
    shared = [row for row in all_rows[0] if all(row in rows for rows in all_rows)] if all_rows else []
    parts = [_PROFILES_HEAD, "\n## Every profile\n\n", _reasons_table(shared)]
    for plan in plans:
        parts.append(f"\n## {plan.name}: {plan.title}\n")
        for name, rows in sorted(
            plan.reasons.items(), key=lambda item: (not item[0].startswith("default"), item[0])
        ):
            own = [row for row in rows if row not in shared]
            parts.append(f"\n{name}:\n\n{_reasons_table(own)}" if own else f"\n{name}: nothing more.\n")
    return "".join(parts)


def _reasons_table(rows: Sequence[dict[str, str]]) -> str:
    lines = [f"| `{row['line']}` | {row['why']} | {row['evidence']} |" for row in rows]
    return "\n".join(["| line | why | evidence |", "| --- | --- | --- |", *lines]) + "\n"
