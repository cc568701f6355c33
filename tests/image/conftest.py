"""The image under test, its plan, and containers of it, started the way the documentation calls standard.

    imgbuild test --target cpu
    pytest tests/image --image REF            (or IMGBUILD_IMAGE=REF)

Without an image these tests are skipped, so that they may be part of any other pytest run.
"""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from imagecontainers import GPU, Engine, Recipe, new_name
from imageresults import RINGS, ImageResults
from runningimage import serving

from imgbuild.engines.docker import Docker
from imgbuild.engines.podman import Podman
from imgbuild.errors import ImgbuildError
from imgbuild.matrix import load_matrix
from imgbuild.project import cache_dir, find_project
from imgbuild.subject import Subject, find_subject

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterator

    from runningimage import Running

    from imgbuild.plan import Plan
    from imgbuild.project import Project

HERE = Path(__file__).parent
RESULTS = pytest.StashKey[ImageResults]()
FOUND = pytest.StashKey[Any]()
_MARKERS = {
    "engine": "needs a running container engine",
    "gpu": "needs an NVIDIA GPU",
    "ring1": "the image by itself: files, labels, packages, start and stop",
    "ring2": "end to end on the CPU: workflows, queue, uploads",
    "ring3": "on a GPU",
    "faults": "what goes wrong around it",
    "heavy": "hours under emulation, where it would prove nothing that is not proven without",
    "last": "ends the container that the others share",
}
_EMULATED = 12  # times slower, about, under QEMU


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("imgbuild image tests")
    group.addoption("--image", default=None, metavar="REF", help="the image to test (else IMGBUILD_IMAGE)")
    group.addoption("--target", default=None, help="the target to hold it against (else its label's)")
    group.addoption("--engine", default=None, help="docker or podman (else IMGBUILD_ENGINE, docker)")
    group.addoption("--gpu", default=None, help="auto, on, off (else IMGBUILD_GPU, auto)")
    group.addoption("--project-root", default=None, help="the folder with images/ (else found from here)")
    group.addoption("--results", default=None, metavar="FILE", help="write what was found, as JSON")
    group.addoption("--ready-timeout", default=None, metavar="SECONDS", help="for a start; default 600")


def pytest_configure(config: pytest.Config) -> None:
    # Also known where the project's pyproject.toml is not (tests run out of the wheel).
    for name, text in _MARKERS.items():
        config.addinivalue_line("markers", f"{name}: {text}")
    config.stash[RESULTS] = ImageResults()


def _option(config: pytest.Config, name: str) -> str | None:
    # Called from the repository's root, pytest reads this file too late for its options to exist.
    value = config.getoption(f"--{name}", default=None)
    return str(value) if value else os.environ.get(f"IMGBUILD_{name.upper().replace('-', '_')}") or None


# --- the subject ---------------------------------------------------------------------------------


def _found(config: pytest.Config) -> Subject | str:
    """The subject, or why there is none. Looked up once, when the tests are collected."""
    if FOUND not in config.stash:
        config.stash[FOUND] = _look_up(config)
    found: Subject | str = config.stash[FOUND]
    return found


def _look_up(config: pytest.Config) -> Subject | str:
    reference = _option(config, "image")
    if not reference:
        return "no image given: --image REF or IMGBUILD_IMAGE"
    try:
        own = _own_engine(config)
        project = _project(config)
        matrix = load_matrix(project.images)
        wanted = _option(config, "target")
        return find_subject(
            own,
            project,
            matrix,
            reference=reference,
            target=matrix.select([wanted])[0] if wanted else None,
            cache=cache_dir(os.environ),
            machine=platform.machine(),
        )
    except ImgbuildError as error:
        return f"error: {error.message}"


def _own_engine(config: pytest.Config) -> Docker | Podman:
    return Podman(os.environ) if _option(config, "engine") == "podman" else Docker(os.environ)


def _project(config: pytest.Config) -> Project:
    root = _option(config, "project-root")
    return find_project(Path(root) if root else None, cwd=HERE)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Parameters out of the plan: a new target, label, package or profile brings its tests along."""
    kinds: dict[str, Callable[[Plan], list[Any]]] = {
        "label": lambda plan: sorted(plan.labels),
        "package": lambda plan: list(plan.packages),
        "work_package": lambda plan: list(plan.work_packages),
        "kernel": lambda plan: [k.name for k in plan.kernels],
        "baked_node": lambda plan: list(plan.nodes),
        "profile_name": lambda plan: sorted(plan.profile["profiles"]),
    }
    for name, of in kinds.items():
        if name not in metafunc.fixturenames:
            continue
        found = _found(metafunc.config)
        plan = found.plan if isinstance(found, Subject) else None
        why = found if isinstance(found, str) else found.why_no_plan or f"the plan has no {name}"
        values = sorted(set(of(plan))) if plan else []
        nothing = pytest.param("none", marks=pytest.mark.skip(reason=why))
        metafunc.parametrize(name, values or [nothing])


@pytest.fixture(scope="session")
def subject(pytestconfig: pytest.Config) -> Subject:
    found = _found(pytestconfig)
    if isinstance(found, Subject):
        return found
    if found.startswith("error: "):
        pytest.fail(found.removeprefix("error: "))
    pytest.skip(found)


@pytest.fixture(scope="session")
def plan(subject: Subject) -> Plan:
    if subject.plan is None:
        pytest.skip(f"no plan to hold it against: {subject.why_no_plan}")
    return subject.plan


@pytest.fixture(scope="session")
def project(subject: Subject, pytestconfig: pytest.Config) -> Project:
    return _project(pytestconfig)


@pytest.fixture(scope="session")
def own_engine(subject: Subject, pytestconfig: pytest.Config) -> Docker | Podman:
    """The tool's own view of the engine."""
    return _own_engine(pytestconfig)


@pytest.fixture(scope="session")
def image(subject: Subject) -> str:
    """Its digest, so that a tag that moves meanwhile moves nothing here."""
    return (
        subject.image.digest.removeprefix("sha256:")
        if subject.image.tag.startswith("localhost/")
        else subject.image.digest
    )


@pytest.fixture(scope="session")
def config(engine: Engine, image: str) -> dict[str, Any]:
    """The image's configuration: user, entrypoint, labels, …"""
    found: dict[str, Any] = engine.inspect("image", image)
    return found


@pytest.fixture(scope="session")
def engine(subject: Subject, own_engine: Docker | Podman) -> Engine:
    if shutil.which(own_engine.command[0]) is None:
        pytest.fail(f"there is no {own_engine.command[0]} command")
    # The platform is named, or an engine looks for its own one.
    return Engine(
        name=own_engine.name,
        command=own_engine.command,
        limits=(*own_engine.limits, "--platform", subject.image.platform),
        patience=_EMULATED if subject.emulated else 1,
    )


# --- containers ------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def ready_timeout(pytestconfig: pytest.Config) -> float:
    return float(_option(pytestconfig, "ready-timeout") or 600)


@pytest.fixture(scope="session")
def look_inside(engine: Engine, image: str) -> dict[str, Any]:
    """The image's file system, as root sees it from inside."""
    return _inspect(engine, image, "tree")


@pytest.fixture(scope="session")
def hashes(engine: Engine, image: str) -> dict[str, Any]:
    """Of every package, the files that are not what its wheel brought; and bytecode that is not its source's."""
    return _inspect(engine, image, "hashes")


def _inspect(engine: Engine, image: str, *words: str, python: str = "python") -> dict[str, Any]:
    options = ("--user", "0", "--cap-add", "DAC_OVERRIDE")
    text = (HERE / "inspector.py").read_text(encoding="utf-8")
    done = engine.script(image, text, *words, options=options, timeout=1800, python=python)
    assert done.code == 0, done.err[-3000:]
    found: dict[str, Any] = json.loads(done.out)
    return found


@pytest.fixture(scope="session")
def work_hashes(engine: Engine, image: str) -> dict[str, Any]:
    """The same of the venv of `comfyrun worker`, as its own Python sees it."""
    return _inspect(engine, image, "hashes", python="/opt/work/bin/python")


@pytest.fixture(scope="session")
def imports(engine: Engine, image: str) -> dict[str, Any]:
    """What importing each package gave."""
    return _import_all(engine, image, "python")


@pytest.fixture(scope="session")
def work_imports(engine: Engine, image: str) -> dict[str, Any]:
    """The same in the venv of `comfyrun worker`."""
    return _import_all(engine, image, "/opt/work/bin/python")


def _import_all(engine: Engine, image: str, python: str) -> dict[str, Any]:
    text = (HERE / "importer.py").read_text(encoding="utf-8")
    done = engine.script(image, text, timeout=1800, python=python)
    assert done.code == 0, done.text[-3000:]
    found: dict[str, Any] = json.loads(done.out.partition("=== imports ===")[2])
    return found


@pytest.fixture(scope="session")
def test_nodes() -> dict[str, bytes]:
    """The custom nodes that ring 2 needs, as files of /data."""
    return {"custom_nodes/imgbuild-testnodes/__init__.py": (HERE / "testnodes.py").read_bytes()}


@pytest.fixture(scope="session")
def running(
    engine: Engine, image: str, ready_timeout: float, test_nodes: dict[str, bytes]
) -> Iterator[Running]:
    """The server that most tests share."""
    recipe = Recipe()
    with engine.volume(new_name("data")) as data, engine.volume(new_name("cache")) as cache:
        engine.fill(image, f"{data}:/data", test_nodes, user=recipe.user)
        mounts = (f"{data}:/data", f"{cache}:/cache")
        with serving(engine, image, recipe, mounts=mounts, timeout=ready_timeout) as found:
            yield found


@pytest.fixture(scope="session")
def gpu(subject: Subject, engine: Engine, image: str, pytestconfig: pytest.Config) -> tuple[str, ...]:
    """The options that give a container the GPU; without one the test is skipped, or fails under --gpu on."""
    mode = _option(pytestconfig, "gpu") or "auto"
    if mode == "off":
        pytest.skip("no GPU wanted: --gpu off")
    why = ""
    if subject.plan is not None and subject.plan.compute_capability is None:
        why = "this target has no GPU"
    else:
        done = engine.run(image, entrypoint="true", options=GPU[engine.name], check=False)
        said = [line for line in done.err.splitlines() if line.strip() and "--help" not in line]
        why = f"the engine gives no GPU: {said[-1] if said else done.code}" if done.code else ""
    if why and mode == "on":
        pytest.fail(f"--gpu on: {why}")
    if why:
        pytest.skip(why)
    return GPU[engine.name]


# --- what was found --------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def results(pytestconfig: pytest.Config) -> ImageResults:
    return pytestconfig.stash[RESULTS]


def pytest_itemcollected(item: pytest.Item) -> None:
    item.add_marker(pytest.mark.engine)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """The cheap rings first; what ends the shared container last. Tests of other folders keep their places."""
    places = [i for i, item in enumerate(items) if HERE in item.path.parents]
    ours = [items[i] for i in places]
    for item in ours:
        found = _found(config) if item.get_closest_marker("heavy") else None
        if isinstance(found, Subject) and found.emulated:
            item.add_marker(
                pytest.mark.skip(reason=f"emulated ({found.image.platform}): {_MARKERS['heavy']}")
            )
    for place, item in zip(places, sorted(ours, key=_order), strict=True):
        items[place] = item


def _order(item: pytest.Item) -> tuple[bool, int]:
    ring = next((i for i, name in enumerate(RINGS) if item.get_closest_marker(name)), len(RINGS))
    return item.get_closest_marker("last") is not None, ring


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if HERE in item.path.parents:
        item.config.stash[RESULTS].add(item, report)
    return report


def pytest_sessionfinish(session: pytest.Session) -> None:
    path = _option(session.config, "results")
    found = session.config.stash.get(FOUND, None)
    if not path or not isinstance(found, Subject):
        return
    results = session.config.stash[RESULTS]
    results.subject = describe(found, _option(session.config, "engine") or "docker")
    chosen = (session.config.option.keyword, session.config.option.markexpr)
    results.subject["selection"] = " and ".join(filter(None, chosen))
    results.write(Path(path))


def describe(found: Subject, engine: str) -> dict[str, Any]:
    """The image, its plan and the machine, for the report."""
    plan = found.plan
    return {
        "reference": found.reference,
        "target": found.target,
        "engine": engine,
        "stale": found.stale,
        "emulated": found.emulated,
        "why_no_plan": found.why_no_plan,
        "image": {**asdict(found.image), "labels": dict(found.image.labels)},
        "plan": None
        if plan is None
        else {
            "key": plan.key,
            "title": plan.title,
            "platform": plan.platform,
            "compute_capability": plan.compute_capability,
            "torch": plan.torch,
            "cuda": plan.cuda,
            "comfyui": plan.source.version,
            "source": plan.source.kind,
            "kernels": [k.label for k in plan.kernels],
            "layers": [
                "base",
                *(layer.name for layer in plan.layers),
                *(f"kernel {k.name}" for k in plan.kernels),
                *("comfyui", "nodes", "comfyrun", "profile"),
            ],
        },
        "machine": {
            "platform": found.machine,
            "cpus": os.cpu_count(),
            "memory": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
            "kernel": platform.release(),
            "gpus": _gpus(),
        },
    }


def _gpus() -> list[str]:
    if shutil.which("nvidia-smi") is None:
        return []
    words = ["nvidia-smi", "--query-gpu=name,driver_version,memory.total", "--format=csv,noheader"]
    try:
        done = subprocess.run(words, capture_output=True, text=True, timeout=30, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return []
    return done.stdout.strip().splitlines() if done.returncode == 0 else []


@pytest.hookimpl(trylast=True)
def pytest_terminal_summary(terminalreporter: Any) -> None:
    """The figures that acceptance notes quote."""
    for report in terminalreporter.stats.get("passed", []):
        for name, value in report.user_properties if report.when == "call" else ():
            if name.startswith(("seconds_", "exit_code", "bytes_")):
                terminalreporter.write_line(f"{name.replace('_', ' ')}: {value}")
