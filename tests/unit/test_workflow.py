"""The workflow of the public CI: rendered, clean to its linters, and without a target's name."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from imgbuild.cimatrix import NO_JOBS
from imgbuild.cli import main
from imgbuild.projections import WORKFLOW
from imgbuild.render import Renderer

ROOT = Path(__file__).parents[2]
PATH = ROOT / WORKFLOW
BIN = Path(sys.executable).parent


@pytest.fixture(scope="module")
def workflow():
    return yaml.safe_load(PATH.read_text())


def test_it_is_what_is_rendered(matrix):
    made = Renderer(ROOT / "templates").workflow(matrix.common.ci, image=matrix.common.image, no_jobs=NO_JOBS)
    assert PATH.read_text() == made


def test_render_sees_a_change_by_hand(tmp_path, monkeypatch, capsys):
    left_out = shutil.ignore_patterns(".*", "__pycache__", "bench", "build", "tests", "test-results", "dist")
    shutil.copytree(ROOT, tmp_path, ignore=left_out, dirs_exist_ok=True)
    shutil.copytree(ROOT / ".github", tmp_path / ".github")
    monkeypatch.chdir(tmp_path)
    assert main(["render", "--check"]) == 0, capsys.readouterr().out
    path = tmp_path / WORKFLOW
    path.write_text(path.read_text().replace("contents: read", "contents: write"))
    assert main(["render", "--check"]) == 4
    assert "-  contents: write" in capsys.readouterr().out


def test_no_target_is_spelled_in_it(matrix):
    """So a target that is added is built, tested and published without anybody's hand in the workflow."""
    for text in (PATH.read_text(), (ROOT / "templates/workflow.yml.j2").read_text()):
        words = set(re.findall(r"[a-z0-9-]+", text.lower()))
        assert words.isdisjoint(matrix.targets)


def test_actions_are_pinned_by_commit(workflow):
    used = [step["uses"] for job in workflow["jobs"].values() for step in job["steps"] if "uses" in step]
    assert used
    assert all(re.fullmatch(r"[a-z-]+/[a-z-]+@[0-9a-f]{40}", name) for name in used)
    pinned = [line for line in PATH.read_text().splitlines() if "uses: " in line]
    assert all(re.search(r" # v[0-9.]+$", line) for line in pinned)


def test_the_token_may_only_read(workflow):
    assert workflow["permissions"] == {"contents": "read"}
    assert not any("permissions" in job for job in workflow["jobs"].values())
    assert "pull_request_target" not in workflow[True]  # YAML's `on`


def test_nothing_of_a_pull_request_is_published(workflow):
    job = workflow["jobs"]["image"]
    assert "github.event_name != 'pull_request'" in job["env"]["PUBLISH"]
    for step in job["steps"]:
        if "secrets." in json.dumps(step):
            assert step["if"] == "env.PUBLISH == 'true'", step["name"]


@pytest.mark.parametrize(
    "argv",
    [
        ["jactionlint", "--shellcheck", str(BIN / "shellcheck")],
        ["zizmor", "--offline", "--quiet", "--pedantic"],
    ],
    ids=lambda argv: argv[0],
)
def test_linter(argv, tmp_path):
    if not (BIN / argv[0]).is_file():
        pytest.skip(f"{argv[0]} is not installed: make .venv/.ready")
    # Online, zizmor would ask GitHub; with a home of its own it finds nobody's configuration.
    env = {"PATH": os.environ["PATH"], "HOME": str(tmp_path)}
    argv = [str(BIN / argv[0]), *argv[1:]]
    done = subprocess.run([*argv, str(PATH)], cwd=ROOT, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    broken = tmp_path / ".github/workflows/broken.yml"
    broken.parent.mkdir(parents=True)
    text = (
        PATH.read_text().replace("needs: plan", "needs: plans").replace("contents: read", "contents: write")
    )
    broken.write_text(re.sub(r"@[0-9a-f]{40} #", "@v1 #", text))
    done = subprocess.run([*argv, str(broken)], cwd=tmp_path, env=env, capture_output=True, check=False)
    assert done.returncode != 0  # it does look


@pytest.fixture
def plan_step(workflow, tmp_path):
    """The step that decides, run as the workflow runs it: what it writes for the next job."""
    (step,) = (s for s in workflow["jobs"]["plan"]["steps"] if s.get("id") == "matrix")
    program = tmp_path / ".venv/bin/imgbuild"
    program.parent.mkdir(parents=True)
    program.write_text(
        f'#!/bin/sh\nPYTHONPATH={ROOT}/build exec {sys.executable} -m imgbuild --project {ROOT} "$@"\n'
    )
    program.chmod(0o755)

    def run(targets: str = "", since: str = "") -> tuple[int, dict[str, str]]:
        output = tmp_path / "output"
        output.write_text("")
        env = {**os.environ, "TARGETS": targets, "SINCE": since, "GITHUB_OUTPUT": str(output)}
        argv = ["bash", "--noprofile", "--norc", "-eo", "pipefail", "-c", step["run"]]
        done = subprocess.run(argv, cwd=tmp_path, env=env, capture_output=True, text=True, check=False)
        lines = output.read_text().splitlines()
        return done.returncode, dict(line.split("=", 1) for line in lines)

    return run


def test_everything_is_built_by_hand_and_for_a_tag(plan_step, matrix):
    status, said = plan_step()
    assert status == 0
    assert {row["target"] for row in json.loads(said["matrix"])["include"]} == set(matrix.targets)
    assert said["has-jobs"] == "true"


def test_what_was_asked_for(plan_step):
    status, said = plan_step("  h100   cpu ")
    assert status == 0
    assert {row["target"] for row in json.loads(said["matrix"])["include"]} == {"h100", "cpu"}


def test_a_wrong_name_fails_and_no_option_gets_through(plan_step):
    assert plan_step("h10")[0] == 3
    assert plan_step("--help")[0] == 3
    assert plan_step('$(touch x) "; exit 0')[0] == 3


def test_nothing_to_do_starts_no_job(plan_step, workflow, tmp_path):
    """GitHub takes an empty matrix for an error; the next job is asked first."""
    program = tmp_path / ".venv/bin/imgbuild"
    program.write_text(f"#!/bin/sh\necho '{NO_JOBS}'\n")
    assert plan_step() == (0, {"matrix": NO_JOBS, "has-jobs": "false"})
    job = workflow["jobs"]["image"]
    assert job["if"] == "needs.plan.outputs.has-jobs == 'true'"
    assert workflow["jobs"]["plan"]["outputs"]["has-jobs"] == "${{ steps.matrix.outputs.has-jobs }}"


@pytest.mark.parametrize(
    ("plan", "images", "good"),
    [
        ("success", "success", True),
        ("success", "skipped", True),
        ("success", "failure", False),
        ("success", "cancelled", False),
        ("failure", "skipped", False),
    ],
)
def test_one_check_stands_for_all(workflow, plan, images, good):
    (step,) = workflow["jobs"]["all"]["steps"]
    env = {**os.environ, "PLAN": plan, "IMAGES": images}
    done = subprocess.run(["bash", "-e", "-c", step["run"]], env=env, capture_output=True, check=False)
    assert (done.returncode == 0) is good
    assert workflow["jobs"]["all"]["if"] == "always()"
