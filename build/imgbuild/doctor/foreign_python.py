"""Does a foreign Python run in a container? Asked where the engine already has an image to try it with."""

from __future__ import annotations

import json
import os
import shlex
from dataclasses import dataclass
from typing import TYPE_CHECKING

from imgbuild.doctor.finding import Finding, error, info, ok
from imgbuild.doctor.platforms import Platform, foreign
from imgbuild.doctor.probe import NOT_FOUND, TIMED_OUT

if TYPE_CHECKING:
    from imgbuild.doctor.probe import Probe
    from imgbuild.doctor.situation import Situation

SECONDS = 60
ENGINE_REFUSED = 125
AT_MOST = 3
"""Images tried until one has a Python of the platform in it."""
PROGRAM = "import platform; print(platform.machine(), 6 * 7)"


@dataclass(frozen=True)
class ForeignPython:
    id: str = "foreign python"

    def __call__(self, s: Situation) -> list[Finding]:
        if s.docker.server is None or not s.docker.is_local:
            return []
        return [self._one(s.probe, p) for p in foreign(s.platforms, s.probe.arch)]

    def _one(self, probe: Probe, p: Platform) -> Finding:
        for image in images_for(probe, p)[:AT_MOST]:
            name = f"imgbuild-doctor-{p.debian}-{os.getpid()}"
            argv = (
                *("docker", "run", "--rm", "--name", name, "--platform", p.name),
                *("--network", "none", "--read-only", "--cap-drop", "ALL", "--pull", "never"),
                *("--entrypoint", "python3", image.id, "-I", "-c", PROGRAM),
            )
            ran = probe.run(*argv, timeout=SECONDS)
            if ran.returncode == TIMED_OUT:
                probe.run("docker", "rm", "--force", name)
                return error(
                    self.id,
                    f"{p.name}: Python of {image.name} did not end within {SECONDS} s: the emulator hangs",
                    "imgbuild doctor --fix, or a newer QEMU",
                )
            if ran.returncode == 0 and ran.stdout.split() == [p.uname, "42"]:
                return ok(self.id, f"{p.name}: Python of {image.name} runs")
            # 127: that image has no python3. 125: the engine cannot start that image, which says nothing of QEMU.
            # A Python of another machine: a stage of a cross build, which has its target's platform and our tools.
            another = ran.returncode == 0 and ran.stdout.split()[1:] == ["42"]
            if not another and ran.returncode not in (NOT_FOUND, ENGINE_REFUSED):
                why = (ran.stderr.strip().splitlines() or [f"status {ran.returncode}"])[-1]
                return error(
                    self.id,
                    f"{p.name}: Python of {image.name} does not run: {why}",
                    f"try: {shlex.join(argv)}",
                )
        return info(
            self.id, f"{p.name}: not tested, the engine has no image of that platform with Python yet"
        )


@dataclass(frozen=True, kw_only=True)
class Image:
    id: str
    name: str


def images_for(probe: Probe, platform: Platform) -> list[Image]:
    """The engine's images for a platform: those with a name first, then newest first."""
    listed = probe.run("docker", "image", "ls", "--no-trunc", "--quiet")
    ids = list(dict.fromkeys(listed.stdout.split()))
    if not ids:
        return []
    try:
        images = json.loads(probe.run("docker", "image", "inspect", *ids).stdout or "[]")
    except ValueError:
        return []
    return [
        Image(id=i["Id"], name=next(iter(i.get("RepoTags") or ()), i["Id"].removeprefix("sha256:")[:12]))
        for i in sorted(images, key=lambda i: not i.get("RepoTags"))
        if i.get("Architecture") == platform.debian and i.get("Os") == "linux"
    ]
