"""Everything committed that follows from the matrix: rendered/, the JSON Schemas, the README's table."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from imgbuild.errors import ConfigError
from imgbuild.matrix import Common, Target
from imgbuild.render import BUILDKIT, Files, Renderer, bake_file, pretty
from imgbuild.textfile import read_text

if TYPE_CHECKING:
    from collections.abc import Sequence

    from imgbuild.plan import Plan
    from imgbuild.project import Project

BAKE_FILE = "rendered/docker-bake.json"
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


def committed_bake_file(plans: Sequence[Plan]) -> dict[str, Any]:
    """Paths are relative to the project's root, from which plain `docker buildx bake` is called."""
    return bake_file(plans, folder="rendered", contexts={"entrypoint": "entrypoint", "nodes-src": "nodes"})


def shared_files(project: Project, plans: Sequence[Plan]) -> Files:
    """What all targets together give; only right when `plans` are all of them."""
    files = {BAKE_FILE: pretty(committed_bake_file(plans))}
    files.update({f"images/schema/{name}.json": pretty(schema) for name, schema in schemas().items()})
    readme = project.root / "README.md"
    if readme.is_file():
        files["README.md"] = with_table(read_text(readme), plans)
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
        "| target | made for | platform | compute capability | kernels, and the code in them | CUDA | torch | starts with |",
        "| --- " * 8 + "|",
    ]
    for plan in plans:
        flags = plan.profile["profiles"]["default"]["flags"]
        shown = "<br>".join(f"`{' '.join(words)}`" for words in flags) or "ComfyUI's defaults"
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
