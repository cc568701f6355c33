from __future__ import annotations

import re

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from malformed import CASES, Case

from imgbuild import report
from imgbuild.cli import main
from imgbuild.errors import SelectionError
from imgbuild.matrix import MatrixError, load_matrix
from imgbuild.project import Project

RTX50 = """\
name: rtx50
title: NVIDIA RTX 50 (Blackwell)
platform: linux/amd64
base: debian13
torch: "2.13.0"
gpu: { compute_capability: "12.0", cuda: "13.0", memory: discrete }
kernels: [sageattention, flash-attn]
profiles: { default: {} }
"""


def test_own_matrix_has_no_mistake(root):
    assert set(load_matrix(root / "images").targets) >= {"ada", "cpu", "gb10", "h100"}


def test_there_are_at_least_40_malformed_matrices():
    assert len(CASES) >= 40
    assert len({c.name for c in CASES}) == len(CASES)


@pytest.mark.parametrize("case", CASES, ids=lambda c: c.name)
def test_malformed(case: Case, project: Project, capsys, monkeypatch):
    path = project.root / case.file
    text = path.read_text(encoding="utf-8")
    assert case.old in text, "the case changes nothing"
    path.write_text(text.replace(case.old, case.new, 1), encoding="utf-8")
    with pytest.raises(MatrixError) as caught:
        load_matrix(project.images)
    message = str(caught.value)
    for words in case.says:
        assert words in message
    assert re.search(r"images/\S+:\d+: ", message)
    # The same through the command line: one message, exit code 2, no traceback.
    assert main(["--project", str(project.root), "targets"]) == 2
    err = capsys.readouterr().err
    assert err.startswith("error: the matrix has ")
    assert "Traceback" not in err


def test_all_mistakes_of_all_files_at_once(project: Project):
    for path, old, new in (
        ("targets/h100.yaml", "base: debian13", "base: debian31"),
        ("targets/h100.yaml", "linux/amd64", "linux/x86"),
        ("targets/gb10.yaml", '"12.1"', '"12.9"'),
        ("targets/gb10.yaml", "title:", "titel:"),
        ("comfyui.yaml", "image: comfyui", "image: Comfy UI"),
    ):
        file = project.images / path
        file.write_text(file.read_text().replace(old, new, 1))
    with pytest.raises(MatrixError) as caught:
        load_matrix(project.images)
    found = {(p.file, p.key) for p in caught.value.problems}
    assert found >= {
        ("images/comfyui.yaml", "image"),
        ("images/targets/gb10.yaml", "gpu.compute_capability"),
        ("images/targets/gb10.yaml", "titel"),
        ("images/targets/h100.yaml", "base"),
        ("images/targets/h100.yaml", "platform"),
    }


def test_no_targets(project: Project):
    for path in (project.images / "targets").iterdir():
        path.unlink()
    with pytest.raises(MatrixError, match="there is no target"):
        load_matrix(project.images)


def test_bytes_that_are_no_text(project: Project):
    (project.images / "targets" / "cpu.yaml").write_bytes(b"name: cpu\ntitle: \xff\xfe\n")
    with pytest.raises(MatrixError, match=r"cpu\.yaml:2: is not UTF-8 text"):
        load_matrix(project.images)


def test_a_target_file_of_another_ending_is_not_passed_over(project: Project):
    (project.images / "targets" / "ada.yaml").rename(project.images / "targets" / "ada.yml")
    with pytest.raises(MatrixError, match=r"images/targets/ada\.yml:1: must end in \.yaml"):
        load_matrix(project.images)


def test_a_title_is_not_markup(project: Project, capsys):
    path = project.images / "targets" / "ada.yaml"
    path.write_text(path.read_text().replace("title: NVIDIA Ada", 'title: "NVIDIA [/x] [bold]" #'))
    assert main(["--project", str(project.root), "targets"]) == 0
    assert "NVIDIA [/x] [bold]" in capsys.readouterr().out


def test_a_tables_own_title_is_not_markup(capsys):
    report.table("of [/x]", ["a"], [["[red]"]])
    out = capsys.readouterr().out
    assert "of [/x]" in out
    assert "[red]" in out


def test_deep_nesting(project: Project):
    (project.images / "targets" / "cpu.yaml").write_text("[" * 5000 + "]" * 5000)
    with pytest.raises(MatrixError, match=r"nested too deeply|is not YAML"):
        load_matrix(project.images)


@pytest.mark.parametrize(("asked", "near"), [("gb01", "gb10"), ("h10", "h100"), ("ADA", "ada")])
def test_unknown_target_names_the_nearest(root, asked, near):
    with pytest.raises(SelectionError, match=f"did you mean '{near}'"):
        load_matrix(root / "images").select([asked])


def test_a_target_is_one_file(project: Project, capsys):
    """Adding hardware is adding a file: it plans and renders without a change of code."""
    (project.images / "targets" / "rtx50.yaml").write_text(RTX50)
    matrix = load_matrix(project.images)
    for version in ("0.33.0", "0.3.75"):  # the same platform, Python and torch as h100: the same lock
        lock = (project.locks / f"h100-{version}.txt").read_text()
        (project.locks / f"rtx50-{version}.txt").write_text(lock)
    assert matrix.targets["rtx50"].gpu.compute_capability == "12.0"
    call = ["--project", str(project.root)]
    assert main([*call, "plan", "rtx50"]) == 0
    assert main([*call, "render", "rtx50"]) == 0
    text = (project.rendered / "rtx50" / "Dockerfile").read_text()
    assert 'imgbuild.compute-capability="12.0"' in text
    assert main([*call, "render", "rtx50", "--check"]) == 0
    assert main([*call, "lock", "--check", "rtx50"]) == 0


def _paths(data, loc=()):
    yield loc
    items = data.items() if isinstance(data, dict) else enumerate(data) if isinstance(data, list) else ()
    for key, value in items:
        yield from _paths(value, (*loc, key))


VALUES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(allow_nan=True),
    st.text(max_size=20),
    st.lists(st.integers(), max_size=3),
    st.dictionaries(st.text(max_size=5), st.integers(), max_size=3),
    st.dates(),
)


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_fuzz_values(project: Project, data):
    """Whatever stands at a place of the matrix: either it is valid, or there is a message with file and line."""
    files = sorted([project.images / "comfyui.yaml", *(project.images / "targets").glob("*.yaml")])
    path = data.draw(st.sampled_from(files))
    old = path.read_text()
    tree = yaml.safe_load(old)
    loc = data.draw(st.sampled_from([p for p in _paths(tree) if p]))
    node = tree
    for key in loc[:-1]:
        node = node[key]
    if data.draw(st.booleans()):
        node[loc[-1]] = data.draw(VALUES)
    else:
        del node[loc[-1]]
    _loads_or_says(project, path, old, yaml.safe_dump(tree).encode())


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_fuzz_bytes(project: Project, data):
    """The same for broken text: cut, doubled, with bytes put in."""
    path = data.draw(st.sampled_from(sorted((project.images / "targets").glob("*.yaml"))))
    old = path.read_text()
    raw = old.encode()
    at = data.draw(st.integers(0, len(raw)))
    to = data.draw(st.integers(at, len(raw)))
    _loads_or_says(project, path, old, raw[:at] + data.draw(st.binary(max_size=12)) + raw[to:])


def _loads_or_says(project, path, old, new):
    path.write_bytes(new)
    try:
        load_matrix(project.images)
    except MatrixError as e:
        assert e.problems
        assert all(p.line >= 1 and p.file.startswith("images/") for p in e.problems)
    finally:
        path.write_text(old)
