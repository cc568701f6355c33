"""The venv of `comfyrun worker`: what its lock names, as its wheels brought it, apart from ComfyUI's own."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from imagecontainers import Engine

    from imgbuild.plan import Plan

pytestmark = pytest.mark.ring1


def test_a_work_package_is_the_locked_one(work_package: str, work_hashes: dict[str, Any], plan: Plan) -> None:
    entry = work_hashes["packages"].get(work_package)
    assert entry is not None, "it is not installed"
    assert entry["version"] == plan.work_packages[work_package]


def test_a_work_package_can_be_imported(work_package: str, work_imports: dict[str, Any]) -> None:
    entry = work_imports.get(work_package)
    assert entry is not None, "it is not installed"
    assert entry["errors"] == []


def test_nothing_else_is_in_it(work_hashes: dict[str, Any], plan: Plan) -> None:
    assert sorted(work_hashes["packages"]) == sorted(plan.work_packages)


def test_every_work_package_is_what_its_wheel_brought(work_hashes: dict[str, Any]) -> None:
    packages = work_hashes["packages"].items()
    assert [(n, e["wrong"], e["missing"]) for n, e in packages if e["wrong"] or e["missing"]] == []


def test_a_workers_path_holds_no_package_of_comfyuis(engine: Engine, image: str) -> None:
    """Whatever PYTHONPATH says: it is meant for ComfyUI."""
    script = "/opt/comfyrun/bin/comfywork"
    code = (
        "import runpy, sys\n"
        "runpy.run_module = lambda *_, **__: print('\\n'.join(sys.path))\n"
        f"exec(compile(open({script!r}).read(), {script!r}, 'exec'), {{'__file__': {script!r}}})"
    )
    options = ("--env", "PYTHONPATH=/opt/venv/lib:/data/elsewhere")
    done = engine.run(image, "-I", "-c", code, entrypoint="/opt/work/bin/python", options=options)
    first, *rest = done.out.split()
    assert first == "/opt/comfyrun"
    assert [p for p in rest if p.endswith("-packages")] == [p for p in rest if p.startswith("/opt/work/lib/")]
    assert not [p for p in rest if p.startswith(("/opt/venv", "/data"))]
