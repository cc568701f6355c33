"""`imgbuild ci matrix` on recorded changes: each a commit in a real repository, and the targets that it touches."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from imgbuild.cimatrix import NO_JOBS
from imgbuild.cli import main
from imgbuild.lock import lock_name, parse_lock

ROOT = Path(__file__).parents[2]
ALL = {"ada", "cpu", "gb10", "h100"}
CARRIED = ("images", "templates", "entrypoint", "kernels", "nodes", "docs", "LICENSE", "NOTICE", "README.md")
WHO = {
    "GIT_AUTHOR_NAME": "a",
    "GIT_AUTHOR_EMAIL": "a@b",
    "GIT_COMMITTER_NAME": "a",
    "GIT_COMMITTER_EMAIL": "a@b",
}


class Repository:
    def __init__(self, root: Path) -> None:
        self.root = root

    def git(self, *words: str) -> str:
        env = {**os.environ, **WHO, "GIT_CONFIG_GLOBAL": "/dev/null", "GIT_CONFIG_SYSTEM": "/dev/null"}
        done = subprocess.run(
            ["git", *words], cwd=self.root, env=env, capture_output=True, text=True, check=True
        )
        return done.stdout.strip()

    def commit(self) -> str:
        self.git("add", "--all")
        self.git("commit", "--quiet", "--allow-empty", "--message", "x")
        return self.git("rev-parse", "HEAD")

    def write(self, name: str, text: str = "x\n") -> None:
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)

    def replace(self, name: str, old: str, new: str) -> None:
        text = (self.root / name).read_text()
        assert old in text
        (self.root / name).write_text(text.replace(old, new, 1))


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    root = tmp_path_factory.mktemp("original")
    for name in CARRIED:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, root / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, root / name)
    shutil.copy(ROOT / ".gitignore", root)
    repository = Repository(root)
    repository.write("build/imgbuild/some.py")
    repository.write("tests/unit/test_some.py")
    repository.write("tests/image/test_some.py")
    repository.git("init", "--quiet", "--initial-branch", "main")
    repository.commit()
    return root


@pytest.fixture
def repository(original, tmp_path):
    shutil.copytree(original, tmp_path / "r", symlinks=True)
    return Repository(tmp_path / "r")


@pytest.fixture
def look(repository, monkeypatch, capsys):
    """The targets that a commit touches, and what is said of each."""

    def ask(since: str = "HEAD~1", *words: str) -> tuple[set[str], dict[str, str]]:
        monkeypatch.chdir(repository.root)
        capsys.readouterr()
        assert main(["ci", "matrix", "--changed-since", since, "--explain", *words]) == 0
        found = capsys.readouterr()
        (line,) = found.out.splitlines()
        said = dict(text.removeprefix("• ").split(": ", 1) for text in found.err.splitlines())
        return {row["target"] for row in json.loads(line)["include"]}, said

    return ask


def profile_of_h100(r):
    r.replace("images/targets/h100.yaml", '"4294967296"', '"8589934592"')


def title_of_gb10(r):
    r.replace("images/targets/gb10.yaml", "title: NVIDIA GB10 (DGX Spark)", "title: NVIDIA GB10")


def comment(r):
    r.replace("images/comfyui.yaml", "# What all targets share.", "# What every target shares.")


def base_of_three(r):
    r.replace("images/comfyui.yaml", "      - libxext6\n", "      - libxext6\n      - libsm6\n")


def base_of_one(r):
    text = (r.root / "images/comfyui.yaml").read_text()
    before, _, after = text.partition("  debian12:")
    r.write(
        "images/comfyui.yaml",
        before + "  debian12:" + after.replace("- libxext6\n", "- libxext6\n      - libsm6\n", 1),
    )


def common_profile(r):
    r.replace(
        "images/comfyui.yaml",
        'name: TOKENIZERS_PARALLELISM, value: "false"',
        'name: TOKENIZERS_PARALLELISM, value: "true"',
    )


def kernel_recipe(r):
    r.replace(
        "images/comfyui.yaml",
        "-DFLASHATTENTION_DISABLE_LOCAL\n",
        "-DFLASHATTENTION_DISABLE_LOCAL\n        - -DX\n",
    )


def budget(r):
    r.replace("images/comfyui.yaml", "gb_per_job: 5", "gb_per_job: 6")


def spelling_of_one(r):
    r.replace(
        "images/comfyui.yaml",
        '"12.1": { write: sm_121, code: [sm_121] }',
        '"12.1": { write: sm_120, code: [sm_120] }',
    )


def lock_of_one(r):
    path = r.root / "images/locks" / lock_name("ada", "0.33.0")
    lock = parse_lock(path.read_text(), name="x")
    shorter = type(lock)(inputs=lock.inputs, wheels=tuple(w for w in lock.wheels if w.name != "yarl"))
    path.write_text(shorter.text("less"))


def lock_of_the_fallback(r):
    path = r.root / "images/locks" / lock_name("cpu", "0.3.75")
    lock = parse_lock(path.read_text(), name="x")
    shorter = type(lock)(inputs=lock.inputs, wheels=tuple(w for w in lock.wheels if w.name != "yarl"))
    path.write_text(shorter.text("less"))


def entrypoint(r):
    r.write("entrypoint/comfyrun/health.py", (r.root / "entrypoint/comfyrun/health.py").read_text() + "\n")


def node_file_deleted(r):
    (r.root / "nodes/dgls/README.md").unlink()


def node_file_renamed(r):
    r.git("mv", "nodes/dgls/README.md", "nodes/dgls/MORE.md")


def template(r):
    r.replace("templates/runtime.Dockerfile.j2", "EXPOSE 8188", "EXPOSE 8189")


def documents(r):
    r.write("docs/new.md")
    r.write("README.md", "less\n")
    r.write("bench/some.py")


def document_renamed(r):
    r.git("mv", "docs/running.md", "docs/walking.md")


def only_tests(r):
    r.write("tests/unit/test_some.py", "y\n")


def image_tests(r):
    r.write("tests/image/test_some.py", "y\n")


def tool(r):
    r.write("build/imgbuild/some.py", "y\n")


def hidden_file(r):
    r.write("entrypoint/.dockerignore", "comfyrun/health.py\n")


def node_that_is_not_baked(r):
    r.write("nodes/other/__init__.py")


def unknown_file(r):
    r.write("something.new")


def target_removed(r):
    (r.root / "images/targets/cpu.yaml").unlink()


def gpu_target_removed(r):
    (r.root / "images/targets/ada.yaml").unlink()


def target_added(r):
    text = (r.root / "images/targets/cpu.yaml").read_text()
    r.write("images/targets/front.yaml", text.replace("name: cpu", "name: front"))
    for version in ("0.3.75", "0.33.0"):
        shutil.copy(r.root / f"images/locks/cpu-{version}.txt", r.root / f"images/locks/front-{version}.txt")


def runner(r):
    r.replace("images/comfyui.yaml", "linux/arm64: ubuntu-24.04-arm", "linux/arm64: big-arm")


GPU = ALL - {"cpu"}


@pytest.mark.parametrize(
    ("change", "touched", "because"),
    [
        (profile_of_h100, {"h100"}, "CUDA_CACHE_MAXSIZE 4294967296 → 8589934592"),
        (title_of_gb10, {"gb10"}, "title"),
        (comment, set(), None),
        (base_of_three, GPU, "libsm6"),
        (base_of_one, {"cpu"}, "libsm6"),
        (common_profile, ALL, "TOKENIZERS_PARALLELISM false → true"),
        (kernel_recipe, GPU, "kernel:flash-attn"),
        (budget, set(), None),
        (spelling_of_one, GPU, "probe"),
        (lock_of_one, {"ada"}, "yarl"),
        (lock_of_the_fallback, {"cpu"}, "yarl"),
        (entrypoint, ALL, "comfyrun: entrypoint"),
        (node_file_deleted, ALL, "nodes: dgls"),
        (node_file_renamed, ALL, "nodes: dgls"),
        (template, ALL, "image: stage scripts"),
        (documents, set(), None),
        (document_renamed, set(), None),
        (only_tests, set(), None),
        (image_tests, ALL, "tests/image/test_some.py makes or tests every image"),
        (tool, ALL, "build/imgbuild/some.py makes or tests every image"),
        (hidden_file, ALL, "nothing is known of entrypoint/.dockerignore"),
        (node_that_is_not_baked, set(), None),
        (unknown_file, ALL, "nothing is known of something.new"),
        (target_removed, set(), None),
        (gpu_target_removed, ALL - {"ada"}, "on 8.9 use"),
        (target_added, {"front"}, "HEAD~1 has no such target"),
        (runner, {"gb10"}, "runs on big-arm, no more on ubuntu-24.04-arm"),
    ],
    ids=lambda value: value.__name__ if callable(value) else None,
)  # fmt: skip
def test_change(repository, look, change, touched, because):
    change(repository)
    repository.commit()
    found, said = look()
    assert found == touched, said
    for target in touched:
        assert because in said[target]
    assert all(text.startswith("left out: ") for target, text in said.items() if target not in touched)


def test_nothing_has_changed(repository, look):
    found, said = look("HEAD")
    assert found == set()
    assert "nothing has changed" in said["cpu"]


def test_nothing_to_do_is_one_line_that_a_workflow_can_compare(repository, monkeypatch, capsys):
    monkeypatch.chdir(repository.root)
    assert main(["ci", "matrix", "--changed-since", "HEAD"]) == 0
    assert capsys.readouterr().out == f"{NO_JOBS}\n"


def test_several_commits_and_a_merge(repository, look):
    """Two trees are compared: what a branch brought and what was undone since is as if it had never been."""
    before = repository.git("rev-parse", "HEAD")
    repository.git("checkout", "--quiet", "-b", "side")
    title_of_gb10(repository)
    repository.commit()
    repository.git("checkout", "--quiet", "main")
    profile_of_h100(repository)
    repository.commit()
    repository.git("merge", "--quiet", "--no-edit", "side")
    assert look(before)[0] == {"gb10", "h100"}
    assert look("HEAD^1")[0] == {"gb10"}  # what the merge brought to main
    repository.git("revert", "--no-edit", "HEAD^1")
    assert look(before)[0] == {"gb10"}


def test_moved_and_put_back(repository, look):
    profile_of_h100(repository)
    repository.commit()
    repository.git("revert", "--no-edit", "HEAD")
    assert look("HEAD~2")[0] == set()


# --- every doubt touches everything ------------------------------------------------------------------------


def test_unknown_revision(repository, look):
    found, said = look("0000000000000000000000000000000000000000")
    assert found == ALL
    assert "there is no revision '0000" in said["cpu"]


def test_revision_that_looks_like_an_option(repository, look):
    assert look("--help")[0] == ALL
    assert look("HEAD; true")[0] == ALL


def test_revision_that_is_no_commit(repository, look):
    assert look(repository.git("rev-parse", "HEAD:README.md"))[0] == ALL


def test_shallow_clone(repository, look, tmp_path):
    documents(repository)
    repository.commit()
    repository.git("clone", "--quiet", "--depth", "1", f"file://{repository.root}", str(tmp_path / "shallow"))
    repository.root = tmp_path / "shallow"
    found, said = look()
    assert found == ALL
    assert "the clone is shallow (fetch the whole history)" in said["h100"]


def test_no_repository(repository, look):
    shutil.rmtree(repository.root / ".git")
    found, said = look()
    assert found == ALL
    assert "git ls-files failed" in said["cpu"]


def test_no_git(repository, monkeypatch, capsys):
    monkeypatch.chdir(repository.root)
    monkeypatch.setenv("PATH", "/nowhere")
    assert main(["ci", "matrix", "--changed-since", "HEAD", "--explain"]) == 0
    found = capsys.readouterr()
    assert {row["target"] for row in json.loads(found.out)["include"]} == ALL
    assert "the program 'git' is not installed" in found.err


@pytest.mark.parametrize("name", ["docs/new.md", "README.md"])
def test_dirty_tree(repository, look, name):
    repository.commit()
    repository.write(name)
    found, said = look()
    assert found == ALL
    assert f"{name} is not committed" in said["cpu"]


def test_project_that_git_does_not_know(repository, look, tmp_path):
    """An ignored copy in somebody else's repository: its history says nothing."""
    repository.write(".gitignore", "/inner/\n")
    repository.commit()
    inner = repository.root / "inner"
    shutil.copytree(repository.root, inner, ignore=shutil.ignore_patterns(".git", "inner"))
    repository.root = inner
    assert look("HEAD")[0] == ALL


def test_project_in_a_folder_of_a_repository(repository, look):
    folder = repository.root / "deep/er"
    folder.mkdir(parents=True)
    for name in CARRIED:
        repository.git("mv", name, f"deep/er/{name}")
    repository.commit()
    profile_of_h100(Repository(folder))
    repository.write("elsewhere.c")
    repository.commit()
    repository.root = folder
    assert look()[0] == {"h100"}


def test_older_data_that_cannot_be_read(repository, look):
    good = (repository.root / "images/targets/cpu.yaml").read_text()
    repository.write("images/targets/cpu.yaml", "name: cpu\nwhat: is this\n")
    repository.commit()
    repository.write("images/targets/cpu.yaml", good)
    repository.commit()
    found, said = look()
    assert found == ALL
    assert "images/ of HEAD~1 cannot be read" in said["gb10"]


def test_older_data_that_cannot_be_resolved(repository, look):
    lock = repository.root / "images/locks/cpu-0.33.0.txt"
    good = lock.read_text()
    lock.unlink()
    repository.commit()
    lock.write_text(good)
    repository.commit()
    found, said = look()
    assert found == ALL
    assert "cpu of HEAD~1 cannot be resolved" in said["h100"]


# --- the form --------------------------------------------------------------------------------------------


def test_the_matrix_is_one_line_and_each_target_runs_natively(matrix, monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    for words in ([], ["--json"], ["--changed-since", ""]):
        assert main(["ci", "matrix", *words]) == 0
        (line,) = capsys.readouterr().out.splitlines()
        assert " " not in line
        rows = {row["target"]: row for row in json.loads(line)["include"]}
        assert rows.keys() == matrix.targets.keys()
        for name, target in matrix.targets.items():
            assert rows[name]["platform"] == target.platform
            assert rows[name]["runner"].endswith("-arm") == (target.platform == "linux/arm64")


def test_named_targets_only(repository, look):
    profile_of_h100(repository)
    repository.commit()
    assert look("HEAD~1", "gb10", "h100")[0] == {"h100"}


def test_unknown_target(monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    assert main(["ci", "matrix", "h10"]) == 3
    assert "did you mean 'h100'?" in capsys.readouterr().err


def test_no_ci(project, monkeypatch, capsys):
    path = project.images / "comfyui.yaml"
    path.write_text(path.read_text().partition("\n# The public CI")[0] + "\n")
    monkeypatch.chdir(project.root)
    assert main(["ci", "matrix"]) == 2
    assert "images/comfyui.yaml has no `ci`" in capsys.readouterr().err


def test_platform_without_a_runner(project, monkeypatch, capsys):
    path = project.images / "comfyui.yaml"
    path.write_text(path.read_text().replace("    linux/arm64: ubuntu-24.04-arm\n", ""))
    monkeypatch.chdir(project.root)
    assert main(["ci", "matrix"]) == 2
    assert "gb10.yaml" in (said := capsys.readouterr().err)
    assert "ci.runners in images/comfyui.yaml has no machine for linux/arm64" in said
