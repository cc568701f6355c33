"""What a change costs: seconds of `imgbuild build`, the layers that differ, and the bytes a push would move.

    python bench/rebuild.py cpu                    nothing, profile, node, comfyrun and ComfyUI changed
    python bench/rebuild.py cpu --debian --cold    also another base, and every stage run again

Works on a copy of the project under another image name; each change is made
to the copy, built, compared with the build before all changes, and undone.
The bytes are those of the changed layers, compressed with zstd as a push does:
a registry that holds the image of before already has the others.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import machine
import output
import yaml
from imagelayers import Measured, layered_image, measure
from scratch import call_tool, copy_project, no_new_cache

from imgbuild.engines.docker import Docker
from imgbuild.errors import ConfigError
from imgbuild.locking import read_plain_lock, source_lock_name
from imgbuild.matrix import load_matrix
from imgbuild.project import Project, cache_dir, find_project

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from imagelayers import LayeredImage

IMAGE = "imgbuild-bench"
_MARK = "\n# changed by bench/rebuild.py\n"
_ANOTHER_PACKAGE = "netbase"
"""Small (tens of kilobytes), data only, and in no base of ours."""


@dataclass(frozen=True, kw_only=True)
class Change:
    name: str
    what: str
    """For the reader of the table."""
    make: Callable[[Project, str], None] = lambda _project, _target: None
    """Change the project's copy, for a target."""
    touches: tuple[str | Path, ...] = ()
    """Files (of the copy, when relative) that are put back afterwards."""
    words: tuple[str, ...] = ()
    """More words for `imgbuild build`."""


@dataclass(kw_only=True)
class Bench:
    client: Any
    project: Project
    target: str
    tree: Path
    """The ComfyUI that goes in: a copy that may be changed."""
    work: Path
    progress: bool
    sizes: dict[str, Measured] = field(default_factory=dict)

    def build(self, *words: str | Path) -> tuple[LayeredImage, float, float]:
        """The image, seconds of the whole command, and those of them in BuildKit."""
        metadata = self.work / "metadata.json"
        call: list[str | Path] = [
            "--project",
            self.project.root,
            "build",
            "--target",
            self.target,
            "--metadata-file",
            metadata,
        ]
        # All rows from one tree: what upstream's host answers today is no part of the measurement.
        call += ["--source", f"comfyui={self.tree}"]
        begun = time.monotonic()
        call_tool([*call, *words])
        seconds = time.monotonic() - begun
        baked: float = json.loads(metadata.read_text())["targets"][self.target]["seconds"]
        matrix = load_matrix(self.project.images)
        image = layered_image(self.client, f"{IMAGE}:{self.target}", self.project, matrix)
        return image, seconds, baked

    def row(self, change: Change, before: LayeredImage) -> dict[str, Any]:
        self.say(f"{change.name} …")
        with self._kept(change.touches):
            change.make(self.project, self.target)
            image, seconds, baked = self.build(*change.words)
            had = {layer.digest for layer in before.layers}
            changed = [layer for layer in image.layers if layer.digest not in had]
            if changed:
                self.sizes = measure(self.client, image, self.sizes)
        return {
            "change": change.name,
            "what": change.what,
            "seconds": round(seconds, 1),
            "seconds_in_buildkit": round(baked, 1),
            "layers": len(image.layers),
            "changed": [layer.name for layer in changed],
            "push_bytes": sum(self.sizes[layer.digest].zstd for layer in changed),
            "unpacked_bytes": sum(self.sizes[layer.digest].unpacked for layer in changed),
        }

    def say(self, text: str) -> None:
        if self.progress:
            from imgbuild.report import say  # noqa: PLC0415

            say(text)

    @contextlib.contextmanager
    def _kept(self, names: tuple[str | Path, ...]) -> Iterator[None]:
        saved = {name: (self.project.root / name).read_text() for name in names}
        try:
            yield
        finally:
            for name, text in saved.items():
                (self.project.root / name).write_text(text)


# --- the changes -------------------------------------------------------------------------------


def changes(project: Project, target: str, tree: Path, *, debian: bool, cold: bool) -> list[Change]:
    matrix = load_matrix(project.images)
    node = matrix.common.nodes[0]
    base = matrix.targets[target].base
    wanted = [
        Change(name="nothing changed", what="the same command again"),
        Change(
            name="profile changed",
            what="one more flag in the target's file",
            make=_change_profile,
            touches=(f"images/targets/{target}.yaml",),
        ),
        Change(
            name="node changed",
            what=f"one line in nodes/{node}",
            make=lambda p, _: _append(p.nodes / node / "__init__.py"),
            touches=(f"nodes/{node}/__init__.py",),
        ),
        Change(
            name="comfyrun changed",
            what="one line in the entrypoint",
            make=lambda p, _: _append(p.entrypoint / "comfyrun/cli.py"),
            touches=("entrypoint/comfyrun/cli.py",),
        ),
        Change(
            name="ComfyUI changed",
            what="one line in its server.py",
            make=lambda _p, _t: _append(tree / "server.py"),
            touches=(tree / "server.py",),
        ),
    ]
    if debian:
        wanted.append(
            Change(
                name="Debian fixes",
                what=f"simulated: the base gets one more small package ({_ANOTHER_PACKAGE}) and is bootstrapped anew",
                make=lambda p, _: _change_base(p, base),
                touches=("images/comfyui.yaml",),
                words=("--base", "bootstrap"),
            )
        )
    if cold:
        wanted.append(
            Change(
                name="cold", what="--no-cache: every stage runs; the base is at hand", words=("--no-cache",)
            )
        )
    return wanted


def _append(path: Path) -> None:
    path.write_text(path.read_text() + _MARK)


def _change_profile(project: Project, target: str) -> None:
    path = project.images / "targets" / f"{target}.yaml"
    data: Any = yaml.safe_load(path.read_text())
    flag = {"flag": "--preview-method", "value": "none", "why": "bench/rebuild.py", "evidence": "M"}
    data["profiles"]["default"].setdefault("flags", []).append(flag)
    path.write_text(yaml.safe_dump(data, sort_keys=False))


def _change_base(project: Project, base: str) -> None:
    path = project.images / "comfyui.yaml"
    data: Any = yaml.safe_load(path.read_text())
    if _ANOTHER_PACKAGE in data["bases"][base]["packages"]:
        raise ConfigError(
            f"{_ANOTHER_PACKAGE} is in the base {base} already: name another in bench/rebuild.py"
        )
    data["bases"][base]["packages"].append(_ANOTHER_PACKAGE)
    path.write_text(yaml.safe_dump(data, sort_keys=False))


# --- the run -----------------------------------------------------------------------------------


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("target", metavar="TARGET")
    parser.add_argument(
        "--debian", action="store_true", help="also a changed base (runs every venv stage again)"
    )
    parser.add_argument("--cold", action="store_true", help="also without cache")
    parser.add_argument("--comfyui", type=Path, help="ComfyUI tree to change (default: the fallback's)")
    parser.add_argument("--project", type=Path, help="folder with images/")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--keep", action="store_true", help="write the result to bench/results/ too")
    args = parser.parse_args()
    project = find_project(args.project, cwd=Path.cwd())
    target = load_matrix(project.images).select((args.target,), everything=False)[0].name
    client = Docker(os.environ).client
    with tempfile.TemporaryDirectory(prefix="imgbuild-rebuild-") as folder, _tidy(client):
        work = Path(folder)
        copy = copy_project(project, work / "project", image=IMAGE)
        tree = work / "ComfyUI"
        shutil.copytree(args.comfyui or fallback_tree(project), tree)
        bench = Bench(
            client=client, project=copy, target=target, tree=tree, work=work, progress=not args.json
        )
        bench.say("building what everything is compared with …")
        before, first, _ = bench.build()
        bench.say(f"{first:.0f} s; measuring its {len(before.layers)} layers …")
        bench.sizes = measure(client, before, {})
        with no_new_cache(client, f"[{target} "):
            rows = [
                bench.row(change, before)
                for change in changes(copy, target, tree, debian=args.debian, cold=args.cold)
            ]
    whole = {
        "push_bytes": sum(bench.sizes[layer.digest].zstd for layer in before.layers),
        "unpacked_bytes": sum(bench.sizes[layer.digest].unpacked for layer in before.layers),
    }
    data = {"target": target, "comfyui": before.plan.source.version, "whole": whole, "rows": rows}
    text = to_text(data)
    print(output.as_json(data) if args.json else text, end="")
    if args.keep:
        output.keep(
            f"rebuild-{target}",
            f"# What a change costs: {target}\n\n{machine.markdown()}\n{text}",
            {"machine": machine.describe(), **data},
        )


def fallback_tree(project: Project) -> Path:
    """The tree that a build unpacked for the fallback."""
    matrix = load_matrix(project.images)
    version = matrix.comfyui.fallback.version
    lock = read_plain_lock(project, source_lock_name(version))
    tree = cache_dir(os.environ) / "sources" / f"comfyui-{version}-{lock.wheels[0].sha256[:12]}"
    if not tree.is_dir():
        raise ConfigError(
            f"ComfyUI {version} is not unpacked yet", hint="--comfyui PATH, or build once without --source"
        )
    return tree


@contextlib.contextmanager
def _tidy(client: Any) -> Iterator[None]:
    """Takes away the tags and the bases that the run made."""
    folder = cache_dir(os.environ) / "bases"
    had = set(folder.glob("*"))
    try:
        yield
    finally:
        for path in set(folder.glob("*")) - had:
            shutil.rmtree(path)
        for image in client.images.list(name=IMAGE):
            for tag in image.tags:
                client.images.remove(tag)


def to_text(data: dict[str, Any]) -> str:
    shown = [
        [
            r["change"],
            r["what"],
            f"{r['seconds']:.1f}",
            f"{r['seconds_in_buildkit']:.1f}",
            f"{len(r['changed'])} of {r['layers']}"
            + (f": {', '.join(r['changed'])}" if r["changed"] else ""),
            output.megabytes(r["push_bytes"]),
            output.megabytes(r["unpacked_bytes"]),
        ]
        for r in data["rows"]
    ]
    columns = ["change", "what", "seconds", "in BuildKit", "layers that differ", "push MB", "unpacked MB"]
    return (
        output.table(columns, shown, right=(2, 3, 5, 6))
        + f"\nComfyUI {data['comfyui']} out of a local folder. Seconds: the whole `imgbuild build`, and of them those in BuildKit with "
        "loading into the local engine. Push: the layers that differ, zstd -3; the whole image is "
        f"{output.megabytes(data['whole']['push_bytes'])} MB, unpacked {output.megabytes(data['whole']['unpacked_bytes'])} MB.\n"
    )


if __name__ == "__main__":
    output.run(main)
