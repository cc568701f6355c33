"""`imgbuild build --on`: two engines, one registry, and one engine that is killed on the way.

The project is a copy of this one with its real templates and stages, and two targets of its own, one a platform:
`one` (linux/amd64) and `two` (linux/arm64), each with a single small wheel, no GPU and no kernel. Debian comes with a
third of its packages. The arm64 base is a stand-in of one file: a build runs nothing of the target's own platform
when its base is a bootstrapped one. So a machine needs half a gigabyte and not eight.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tarfile
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import yaml
from kit import ROOT, wait_for
from scratch import copy_project, tool_argv, tool_env
from twomachines import Index, Machine, Network, call, certificate, missing, registry

from imgbuild.bases import base_key
from imgbuild.lock import Lock, inputs_hash, lock_name, parse_lock, read_requirements
from imgbuild.matrix import load_matrix
from imgbuild.plan import make_plan
from imgbuild.project import Project, cache_dir
from imgbuild.render import Renderer
from imgbuild.settings import read_settings
from imgbuild.sources import fallback_source, fallback_tree

if TYPE_CHECKING:
    from collections.abc import Iterator

IMAGE = "imgbuild-machines"
WHEEL = "idna"
PLATFORMS = {"one": "linux/amd64", "two": "linux/arm64"}

pytestmark = pytest.mark.skipif(missing() is not None, reason=str(missing()))


def tiny_project(folder: Path) -> Project:
    project = copy_project(Project(root=ROOT, writable=False), folder, image=IMAGE)
    path = project.images / "comfyui.yaml"
    common = yaml.safe_load(path.read_text())
    version = common["comfyui"]["fallback"]["version"]
    common["torch"].append(
        {"version": "0.0.1", "cuda": None, "platforms": list(PLATFORMS.values()), "pythons": ["3.11"]}
    )
    common["bases"]["debian12"]["packages"] = ["ca-certificates", "python3", "python3-venv", "tini"]
    path.write_text(yaml.safe_dump(common, sort_keys=False))
    wheels = parse_lock((project.locks / lock_name("cpu", version)).read_text(), name="cpu").wheels
    wheel = next(w for w in wheels if w.name == WHEEL)
    for file in (project.images / "targets").glob("*.yaml"):
        file.unlink()
    for name, platform in PLATFORMS.items():
        target = {"name": name, "title": name, "platform": platform, "base": "debian12", "torch": "0.0.1"}
        flag = {"flag": "--cpu", "why": "there is nothing else", "evidence": "V"}
        target["profiles"] = {"default": {"flags": [flag]}}
        (project.images / f"targets/{name}.yaml").write_text(yaml.safe_dump(target))
    matrix = load_matrix(project.images)
    for name, target in matrix.targets.items():
        for locked in (version, matrix.comfyui.version):
            inputs = inputs_hash(read_requirements(project, matrix, locked), target, matrix)
            text = Lock(inputs=inputs, wheels=(wheel,)).text(name)
            (project.locks / lock_name(name, locked)).write_text(text)
    return project


def stand_in(project: Project, cache: Path) -> None:
    """An arm64 base of one file, in the place where a bootstrapped one would be kept."""
    matrix = load_matrix(project.images)
    plan = make_plan(project, matrix, matrix.targets["two"], source=fallback_source(matrix))
    setup = Renderer(project.templates).context(plan)["base-setup.sh"]
    folder = cache / "bases" / f"{plan.base.name}-{base_key(plan.base, setup)}"
    folder.mkdir(parents=True)
    with tarfile.open(folder / "arm64.tar", "w") as tar:
        tar.add(ROOT / "LICENSE", "./usr/share/stand-in")
    known = {"release": "none", "packages": "none", "seconds": 0, "emulated": True}
    (folder / "state.json").write_text(json.dumps({"digest": "", "platforms": {"arm64": known}}))


def fetch_wheels(project: Project, folder: Path) -> None:
    """What the builds install, from the index that this machine uses, in the form of an index."""
    lines = (project.locks / "tool-uv.txt").read_text() + (
        project.locks / lock_name("one", "0.3.75")
    ).read_text()
    requirements = folder / "requirements.txt"
    requirements.write_text("".join(f"{x}\n" for x in wanted(lines)))
    argv = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary", ":all:"]
    call(*argv, "--require-hashes", "--dest", folder / "files", "--requirement", requirements, timeout=300)
    for wheel in (folder / "files").iterdir():
        page = folder / "simple" / wheel.name.partition("-")[0]
        page.mkdir(parents=True)
        shutil.move(wheel, page / wheel.name)
        (page / "index.html").write_text(f'<a href="{wheel.name}">{wheel.name}</a>')


def wanted(lock: str) -> list[str]:
    """This machine's wheels of a lock: its own platform's, and those for all."""
    lines = [x.partition("  # ") for x in lock.splitlines() if not x.startswith("#")]
    return [pin for pin, _, name in lines if "aarch64" not in name]


@dataclass
class Running:
    process: subprocess.Popen[bytes]
    logs: Path

    def end(self) -> tuple[int, str, str]:
        """Its status, stdout and stderr."""
        status = self.process.wait(timeout=600)
        return status, (self.logs / "out").read_text(), (self.logs / "err").read_text()


@dataclass
class House:
    project: Project
    logs: Path
    machines: dict[str, Machine]
    index: Index
    registry: str
    source: Path
    env: dict[str, str]

    def argv(self, *words: str) -> list[str]:
        on = [w for name in PLATFORMS for w in ("--on", f"{name}={self.machines[name].name}")]
        more = ["--source", f"comfyui={self.source}", "--progress", "plain"]
        return tool_argv("--project", self.project.root, "build", *(words or on), *more)

    @contextlib.contextmanager
    def begin(self, *words: str) -> Iterator[Running]:
        """A build that goes on by itself; what it prints goes to files, so that it waits for nobody."""
        with (self.logs / "out").open("w") as out, (self.logs / "err").open("w") as err:
            process = subprocess.Popen(
                self.argv(*words), env=tool_env(self.env), stdout=out, stderr=err, start_new_session=True
            )
        try:
            yield Running(process, self.logs)
        finally:
            process.kill()
            process.wait()

    @contextlib.contextmanager
    def held(self, machine: Machine) -> Iterator[None]:
        """A machine whose next wheel does not come to its end: it is in the middle of a build."""
        self.index.waits.clear()
        self.index.go_on.clear()
        self.index.keep_waiting = machine.address
        try:
            yield
        finally:
            self.index.keep_waiting = None
            self.index.go_on.set()

    def build(self, *words: str) -> tuple[int, str, str]:
        with self.begin(*words) as building:
            return building.end()

    @property
    def on(self) -> list[str]:
        return [w for name in PLATFORMS for w in ("--on", f"{name}={self.machines[name].name}")]

    def manifest(self, reference: str) -> Any:
        argv = ["docker", "buildx", "imagetools", "inspect", "--format", "{{json .Manifest}}", reference]
        done = subprocess.run(argv, env=self.env, capture_output=True, text=True, check=False)
        return json.loads(done.stdout) if done.returncode == 0 else None


@pytest.fixture(scope="module")
def house(client, tmp_path_factory):
    folder = tmp_path_factory.mktemp("machines")
    project = tiny_project(folder / "project")
    cache = folder / "cache"
    stand_in(project, cache)
    matrix = load_matrix(project.images)
    settings = read_settings(os.environ)
    source = fallback_tree(project, matrix, cache=cache_dir(os.environ), settings=settings, env=os.environ)
    (folder / "wheels").mkdir()
    fetch_wheels(project, folder / "wheels")
    config = folder / "docker"
    config.mkdir()
    with Network() as network:
        address = network.address(1)
        trusted = settings.ca_bundle or Path("/etc/ssl/certs/ca-certificates.crt")
        pem, bundle = certificate(folder, address, beside=trusted if trusted.is_file() else None)
        index = Index(address, folder / "wheels", pem)
        threading.Thread(target=index.serve_forever, daemon=True).start()
        env = {k: v for k, v in os.environ.items() if not k.startswith(("PIP_", "UV_", "DOCKER_"))}
        env |= dict.fromkeys(
            ("SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "PIP_CERT", "CURL_CA_BUNDLE"), str(bundle)
        )
        env |= {"IMGBUILD_CACHE": str(cache), "DOCKER_CONFIG": str(config), "PIP_INDEX_URL": index.address}
        env["NO_PROXY"] = env["no_proxy"] = ",".join(filter(None, (os.environ.get("NO_PROXY"), address)))
        try:
            with (
                registry(address, folder / "registry", pem) as where,
                Machine(network, 2, folder / "m2", bundle) as first,
                Machine(network, 3, folder / "m3", bundle) as second,
            ):
                machines = {"one": first, "two": second}
                for machine in machines.values():
                    argv = ["docker", "context", "create", machine.name, "--docker", f"host={machine.socket}"]
                    subprocess.run(argv, env=env, check=True, capture_output=True)
                yield House(project, folder, machines, index, where, source, env)
        finally:
            index.go_on.set()
            index.shutdown()
            index.server_close()


def test_engine_killed_on_the_way(house):
    """The other's image is kept, the message says what is missing, and the command it names builds only that."""
    one, two = house.machines["one"], house.machines["two"]
    with house.held(two), house.begin() as building:
        assert house.index.waits.wait(600)
        assert wait_for(lambda: one.image(f"{IMAGE}:one"), 600)
        two.kill()
        status, out, err = building.end()
    assert status == 5, err[-3000:]
    assert "Traceback" not in err
    told = err[err.rindex("error:") :]
    assert "1 of 2 targets is missing" in told
    assert f"two, on {two.name}: its engine was lost" in told
    assert f"one, on {one.name}: built and kept, {IMAGE}:one" in told
    assert re.search(rf"^│ one +│ {one.name} +│ built", out, re.MULTILINE)
    assert re.search(rf"^│ two +│ {two.name} +│ stopped", out, re.MULTILINE)
    # Progress: each line of BuildKit's names its target.
    assert re.search(r"^one \| #\d+ \[comfyui", err, re.MULTILINE)
    assert re.search(r"^two \| #\d+ \[uv", err, re.MULTILINE)
    kept = one.image(f"{IMAGE}:one")

    two.start()
    again = told[told.index("imgbuild ") :].strip()
    assert f"--target two --on two={two.name}" in again
    assert "one=" not in again
    assert f"docker --context {two.name} info" in told
    words = shlex.split(again.splitlines()[0])[2:]
    given = len(house.index.given)
    argv = tool_argv("--project", house.project.root, "build", *words)
    done = subprocess.run(
        argv, env=tool_env(house.env), capture_output=True, text=True, check=False, timeout=600
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert "one" not in done.stdout
    assert {where for where, _ in house.index.given[given:]} == {two.address}
    assert two.image(f"{IMAGE}:two")["Architecture"] == "arm64"
    assert one.image(f"{IMAGE}:one") == kept
    assert one.image(f"{IMAGE}:two") is None
    assert two.image(f"{IMAGE}:one") is None


def test_index_over_two_machines(house):
    """Each engine pushes its own, out of what it has; the index holds both by digest, and moves only as a whole."""
    given = len(house.index.given)
    words = [*house.on, "--push", f"{house.registry}/team", "--index", "both"]
    status, _, err = house.build(*words)
    assert status == 0, err[-3000:]
    assert house.index.given[given:] == []  # nothing was built anew
    index = house.manifest(f"{house.registry}/team/{IMAGE}:both")
    images = {
        f"{m['platform']['os']}/{m['platform']['architecture']}": m["digest"]
        for m in index["manifests"]
        if m["platform"]["os"] != "unknown"
    }
    assert set(images) == set(PLATFORMS.values())
    for name, platform in PLATFORMS.items():
        alone = house.manifest(f"{house.registry}/team/{IMAGE}:{name}")
        assert images[platform] in {m["digest"] for m in alone["manifests"]}
    assert index["digest"] in err

    # A machine that is away: nothing starts, and the index stays what it was.
    two = house.machines["two"]
    two.kill()
    try:
        status, _, err = house.build(*words)
        assert status == 5
        assert f"the Docker engine of context {two.name} cannot be reached" in err
        assert f"docker --context {two.name} info" in err
    finally:
        two.start()
    assert house.manifest(f"{house.registry}/team/{IMAGE}:both")["digest"] == index["digest"]


def test_engine_lost_before_an_index(house):
    """The hint names every target then: what is there comes out of the cache, and the index wants all digests."""
    two = house.machines["two"]
    before = house.manifest(f"{house.registry}/team/{IMAGE}:one")
    words = [*house.on, "--push", f"{house.registry}/team", "--index", "late", "--no-cache"]
    with house.held(two), house.begin(*words) as building:
        assert house.index.waits.wait(600)
        assert wait_for(lambda: house.manifest(f"{house.registry}/team/{IMAGE}:one") != before, 600)
        two.kill()
        status, _, err = building.end()
    two.start()
    assert status == 5, err[-3000:]
    assert f"{house.registry}/team/{IMAGE}:late was not made or moved" in err
    assert "--target one --on one=" in err
    assert "--target two --on two=" in err
    assert house.manifest(f"{house.registry}/team/{IMAGE}:late") is None


def test_interrupt(house):
    """SIGTERM, as a CI that cancels sends it: both builds end, no program is left, and the engines live."""
    with house.held(house.machines["two"]), house.begin(*house.on, "--no-cache") as building:
        assert house.index.waits.wait(600)
        building.process.terminate()
        status, _, err = building.end()
    assert status == 130, err[-3000:]
    group = str(building.process.pid)
    ended = wait_for(lambda: not call("pgrep", "--pgroup", group, check=False), 30)
    assert ended, call("ps", "-o", "pid,stat,args", "--pgroup", group, check=False)
    assert all(machine.docker("version", check=False) for machine in house.machines.values())


def test_build_cache_in_a_registry(house):
    """What one machine built, another takes from the registry: it asks the index for nothing."""
    one, two = house.machines["one"], house.machines["two"]
    place = f"{house.registry}/team"
    status, _, err = house.build("--on", f"one={one.name}", "--cache-to", place)
    assert status == 0, err[-3000:]
    two.docker("builder", "prune", "--all", "--force")
    given = len(house.index.given)
    status, _, err = house.build("--on", f"one={two.name}", "--cache-from", place)
    assert status == 0, err[-3000:]
    assert house.index.given[given:] == []
    assert "CACHED" in err
    layers = [m.image(f"{IMAGE}:one")["RootFS"]["Layers"] for m in (one, two)]
    assert layers[0] == layers[1]


def test_a_cache_that_cannot_be_read_or_written_costs_only_time(house):
    one = house.machines["one"]
    nowhere = f"{house.machines['two'].address}:1/team"
    status, _, err = house.build("--on", f"one={one.name}", "--cache-from", nowhere, "--cache-to", nowhere)
    assert status == 0, err[-3000:]
