"""A copy of the project that a measurement may change, and the tool called on it as a user would."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import imgbuild
from imgbuild.errors import BuildError
from imgbuild.project import Project

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

_PARTS = ("images", "templates", "entrypoint", "kernels", "nodes", "LICENSE", "NOTICE")


def copy_project(project: Project, to: Path, *, image: str | None = None) -> Project:
    """Everything a build reads; `image` renames what it makes, so that nobody's own tags move."""
    to.mkdir(parents=True, exist_ok=True)
    for name in _PARTS:
        source = project.root / name
        if source.is_dir():
            shutil.copytree(source, to / name, ignore=shutil.ignore_patterns("__pycache__"))
        elif source.is_file():
            shutil.copy2(source, to / name)
    if image:
        replace_in(to / "images/comfyui.yaml", "\nimage: ", f"\nimage: {image} # ")
    return Project(root=to, writable=True)


def replace_in(path: Path, old: str, new: str) -> None:
    """A text that occurs once, so that a changed file cannot silently stay what it was."""
    text = path.read_text()
    if text.count(old) != 1:
        raise BuildError(f"{path.name} has {old.strip()!r} {text.count(old)} times, and once was expected")
    path.write_text(text.replace(old, new))


def tool_argv(*words: str | Path) -> list[str]:
    """`imgbuild …`, run by this interpreter."""
    return [sys.executable, "-m", "imgbuild", *map(str, words)]


def tool_env(env: Mapping[str, str] | None = None) -> dict[str, str]:
    """The environment in which `python -m imgbuild` finds the package that this process imported."""
    found = dict(os.environ if env is None else env)
    own = str(Path(imgbuild.__file__).parents[1])
    found["PYTHONPATH"] = os.pathsep.join(filter(None, [own, found.get("PYTHONPATH")]))
    return found


def call_tool(words: Sequence[str | Path], *, env: Mapping[str, str] | None = None) -> str:
    """Run the tool; BuildError with its last lines when it fails. Returns what it printed to stdout."""
    done = subprocess.run(tool_argv(*words), env=tool_env(env), capture_output=True, text=True, check=False)
    if done.returncode:
        last = "\n".join(done.stderr.strip().splitlines()[-20:])
        raise BuildError(f"imgbuild {' '.join(map(str, words))} ended with {done.returncode}:\n{last}")
    return done.stdout


_OUR_STEPS = ("/tmp/stages/", "/uv/bin/pip", "[runtime ", "[comfyui ", "[nodes ", "[comfyrun ", "[profile ")


@contextlib.contextmanager
def no_new_cache(client: Any, *also: str) -> Iterator[None]:
    """Take away what the builds inside add to BuildKit's cache: a build without cache doubles gigabytes.

    Only steps of our Dockerfiles, and those whose description holds a text of
    `also`. A build of somebody else's at the same time at most runs a step again.
    """
    had = {record["ID"] for record in _build_cache(client)}
    signs = (*_OUR_STEPS, *also)
    try:
        yield
    finally:
        for _ in range(2):  # a parent can only go when its children are gone
            for record in _build_cache(client):
                ours = any(sign in record["Description"] for sign in signs)
                if ours and record["ID"] not in had and not record["InUse"]:
                    client.api.prune_builds(filters={"id": record["ID"]}, all=True)


def _build_cache(client: Any) -> list[dict[str, Any]]:
    """BuildKit's records alone: the whole of `docker system df` fails while somebody's container is being removed."""
    api = client.api
    answer = api.get(f"{api.base_url}/v{api.api_version}/system/df", params={"type": "build-cache"})
    answer.raise_for_status()
    return answer.json()["BuildCache"] or []
