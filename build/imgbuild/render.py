"""Plans → files. Pure but for reading the templates; writing, checking and diffing take the files as a value."""

from __future__ import annotations

import difflib
import io
import json
import traceback
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jinja2

from imgbuild.errors import ConfigError, ImgbuildError
from imgbuild.kernels import KERNEL_EPOCH
from imgbuild.locking import write_atomically
from imgbuild.plan import requirements_text
from imgbuild.textfile import read_text

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from imgbuild.matrix import Ci
    from imgbuild.plan import Plan

_WORKFLOW = "workflow.yml.j2"
_STAGE_SCRIPTS = ("code.py", "install.py", "settle.py", "work.py")
_COMPILE_SCRIPTS = ("compile.py", "gate.sh", "measure.py", "prove.py", "source.py", "toolchain.py")

Files = dict[str, str]
"""Path relative to the output folder → text."""


@dataclass(frozen=True, kw_only=True)
class Abilities:
    """What an engine's Dockerfile frontend can do."""

    link: bool = True
    """COPY --link: a layer that does not depend on what is below it."""
    overrides: bool = True
    """A named context takes the place of the stage of that name."""
    cross: bool = True
    """Stages of another platform than the target's, and BUILDPLATFORM to name the host's."""
    start_interval: bool = True
    """HEALTHCHECK --start-interval."""


BUILDKIT = Abilities()
PODMAN = Abilities(link=False, overrides=False, cross=False, start_interval=False)


@dataclass(frozen=True, kw_only=True)
class _View:
    """What the templates see of a plan: computed here, so that they hold no logic."""

    plan: Plan
    engine: Abilities
    link: str
    on_host: str
    machine: str
    """The target's architecture in ELF's and uname's spelling."""
    kernel_epoch: int
    contexts: tuple[str, ...]
    labels: Mapping[str, str]


class Renderer:
    """The templates, read once."""

    def __init__(self, templates: Path) -> None:
        self.folder = templates
        self.env = jinja2.Environment(
            loader=jinja2.FunctionLoader(self._source),
            undefined=jinja2.StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
            keep_trailing_newline=True,
            autoescape=False,  # noqa: S701  (Dockerfiles, not web pages)
        )
        self.env.filters["quote"] = quote
        # ${{ }} is GitHub's own.
        self.for_workflows = self.env.overlay(variable_start_string="<{", variable_end_string="}>")
        self.env.filters["yaml"] = as_yaml
        self.verbatim = {
            f"stages/{name}": self._read(folder=templates, name=f"stages/{name}") for name in _STAGE_SCRIPTS
        }
        self.compiling = {
            f"stages/{name}": self._read(folder=templates, name=f"stages/{name}") for name in _COMPILE_SCRIPTS
        }
        # The tool's own reader of GPU code: the same in a build stage as in `imgbuild verify`.
        self.compiling["stages/fatbin.py"] = self._read(folder=Path(__file__).parent, name="fatbin.py")
        self.verbatim |= {
            name: self._read(folder=templates.parent, name=name) for name in ("LICENSE", "NOTICE")
        }

    def _source(self, name: str) -> tuple[str, str, None] | None:
        path = self.folder / name
        return (read_text(path), str(path), None) if path.is_file() else None

    @staticmethod
    def _read(*, folder: Path, name: str) -> str:
        try:
            return read_text(folder / name).replace("\r\n", "\n")  # however it was checked out
        except OSError as e:
            raise ConfigError(f"{folder / name} cannot be read: {e.strerror}") from None

    def _template(self, name: str, **values: Any) -> str:
        try:
            env = self.for_workflows if name == _WORKFLOW else self.env
            return env.get_template(name).render(**values)
        except jinja2.TemplateNotFound as e:
            raise ConfigError(f"there is no template {self.folder / str(e.name)}") from None
        except (ImgbuildError, OSError):
            raise
        except Exception as e:  # noqa: BLE001  (a template is code: whatever it raises is its mistake)
            raise ConfigError(f"{self._place(name, e)}: {_what(e)}") from None

    def text(self, name: str, **values: Any) -> str:
        """One file that is no part of a build context."""
        return tidy(self._template(name, **values))

    def _place(self, name: str, error: Exception) -> str:
        """File and line of a mistake, which may be in an included file."""
        if isinstance(error, jinja2.TemplateSyntaxError):
            return f"{error.filename or self.folder / name}:{error.lineno}"
        # Jinja gives the frames of its templates their own files and lines.
        frames = [f for f in traceback.extract_tb(error.__traceback__) if f.filename.endswith(".j2")]
        return f"{frames[-1].filename}:{frames[-1].lineno}" if frames else str(self.folder / name)

    def context(self, plan: Plan, engine: Abilities = BUILDKIT) -> Files:
        """The build context of one target: its Dockerfile and the files that its stages mount."""
        view = _View(
            plan=plan,
            engine=engine,
            link="--link " if engine.link else "",
            on_host="--platform=$BUILDPLATFORM " if engine.cross else "",
            machine=plan.manylinux.partition("-")[0],
            kernel_epoch=KERNEL_EPOCH,
            contexts=("comfyui-src", "entrypoint", "nodes-src", *kernel_contexts(plan)),
            labels=plan.labels,
        )
        files = {
            "Dockerfile": tidy(self._template("Dockerfile.j2", v=view)),
            "base-setup.sh": tidy(self._template("base-setup.sh.j2", base=plan.base, epoch=plan.epoch)),
            **self.verbatim,
            "constraints.txt": plan.constraints(),
            "edits.json": pretty(plan.edits),
            "profile.json": pretty(plan.profile),
            "requirements/uv.txt": requirements_text(plan.tool),
        }
        files.update({f"requirements/{layer.name}.txt": layer.requirements() for layer in plan.layers})
        if plan.toolchain is not None:
            files.update(self.compiling)
            files["requirements/compiler.txt"] = requirements_text(plan.toolchain.compiler)
            files["requirements/tools.txt"] = requirements_text(plan.toolchain.tools)
        for kernel in plan.kernels:
            files[f"kernels/{kernel.name}.json"] = pretty(kernel.recipe())
            if kernel.wheels:
                files[f"kernels/{kernel.name}.txt"] = kernel.requirements()
        return files

    def workflow(self, ci: Ci, *, image: str, no_jobs: str) -> str:
        """The workflow of the public CI; `no_jobs` is what its matrix is when there is nothing to do."""
        uses = {name: f"{name}@{action.commit} # {action.version}" for name, action in ci.actions.items()}
        values = {"ci": ci, "uses": uses, "image": image, "no_jobs": no_jobs}
        return tidy(self._template(_WORKFLOW, **values))


def kernel_contexts(plan: Plan) -> tuple[str, ...]:
    """The named contexts that the kernels' sources come in as."""
    return tuple(f"{k.name}-src" for k in plan.kernels if k.kind in ("git", "path", "tree"))


def _what(error: Exception) -> str:
    if isinstance(error, jinja2.TemplateError):
        return error.message or type(error).__name__
    return f"{type(error).__name__}: {error}"


def quote(value: object) -> str:
    """A word in a Dockerfile's double quotes, taken as it is: no variable of the build is put in."""
    return json.dumps(str(value), ensure_ascii=False).replace("$", "\\$")


def as_yaml(value: object) -> str:
    """A value on one line of a compose file (JSON is YAML), in which nothing is a variable of compose."""
    return json.dumps(value, ensure_ascii=False).replace("$", "$$")


def tidy(text: str) -> str:
    """No trailing blanks, no runs of empty lines, one newline at the end."""
    lines: list[str] = []
    for line in text.split("\n"):
        bare = line.rstrip()
        if bare or (lines and lines[-1]):
            lines.append(bare)
    return "\n".join(lines).strip("\n") + "\n"


def pretty(data: Any) -> str:
    return json.dumps(data, indent=2, sort_keys=True) + "\n"


def bake_file(
    plans: Sequence[Plan],
    *,
    folder: str,
    contexts: Mapping[str, str],
    base_contexts: Mapping[str, str] | None = None,
    sources: Mapping[str, str] | None = None,
    outputs: Sequence[str] = (),
    secrets: Sequence[str] = (),
) -> dict[str, Any]:
    """A bake file for `plans`.

    `folder` holds one context a target; `contexts` are named contexts of all
    targets; `base_contexts` and `sources` are by base name and by target and
    override what the plan says.
    """
    targets: dict[str, Any] = {}
    for plan in plans:
        named = dict(contexts)
        source = (sources or {}).get(plan.name) or f"{plan.source.git}#{plan.source.commit}"
        named["comfyui-src"] = source
        for kernel in plan.kernels:
            context = f"{kernel.name}-src"
            if context in kernel_contexts(plan) and context not in named:
                named[context] = kernel.path or f"{kernel.git}#{kernel.identity}"
        if base_contexts and plan.base.name in base_contexts:
            named["base"] = named["host"] = base_contexts[plan.base.name]
        targets[plan.name] = {
            "args": {"SOURCE_DATE_EPOCH": str(plan.epoch)},
            "context": f"{folder}/{plan.name}",
            "contexts": dict(sorted(named.items())),
            "dockerfile": "Dockerfile",
            "platforms": [plan.platform],
            "tags": list(plan.tags),
            "target": "runtime",
            **({"output": list(outputs)} if outputs else {}),
            **({"secret": list(secrets)} if secrets else {}),
        }
    return {"group": {"default": {"targets": sorted(targets)}}, "target": dict(sorted(targets.items()))}


# --- writing and checking ----------------------------------------------------------------------


def write(files: Files, folder: Path) -> tuple[str, ...]:
    """Write what differs, each file whole; return the names that changed."""
    changed = []
    for name, text in sorted(files.items()):
        path = folder / name
        if not path.is_file() or path.read_bytes() != text.encode():
            write_atomically(path, text)
            changed.append(name)
    return tuple(changed)


def difference(files: Files, folder: Path, *, owned: Sequence[str] = ()) -> str:
    """A unified diff from what stands in `folder` to `files`; empty when nothing has drifted.

    `owned` are folders in which a file that is not among `files` is a leftover, or such files.
    """
    lines: list[str] = []
    names = set(files)
    for root in owned:
        names.update(p.relative_to(folder).as_posix() for p in _below(folder / root) if p.is_file())
    for name in sorted(names):
        path = folder / name
        # As they are: a CRLF, and what is no UTF-8, is drift as well.
        old = _lines(path.read_bytes().decode(errors="replace")) if path.is_file() else []
        new = _lines(files.get(name, ""))
        lines += difflib.unified_diff(
            old, new, fromfile=f"a/{name}", tofile=f"b/{name}" if name in files else "/dev/null"
        )
    return "".join(line if line.endswith("\n") else f"{line}\n" for line in lines)


def _below(path: Path) -> list[Path]:
    return [path] if path.is_file() else list(path.rglob("*"))


def _lines(text: str) -> list[str]:
    return list(io.StringIO(text, newline="\n"))


def remove_leftovers(files: Files, folder: Path, *, owned: Sequence[str]) -> tuple[str, ...]:
    """Delete the files in `owned` folders, or of these names, that no plan renders any more."""
    gone = []
    for root in owned:
        for path in sorted(_below(folder / root), reverse=True):
            name = path.relative_to(folder).as_posix()
            if path.is_file() and name not in files:
                path.unlink()
                gone.append(name)
            elif path.is_dir() and not any(path.iterdir()):
                path.rmdir()
    return tuple(gone)


def load_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file; empty when the file is not there."""
    return dict(json.loads(read_text(path))) if path.is_file() else {}
