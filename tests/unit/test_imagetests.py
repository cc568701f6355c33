"""The runner of the image tests, its subject and its report: everything but the tests themselves."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from imgbuild import errors, imagetests, testreport
from imgbuild.cli import main
from imgbuild.engines import Image
from imgbuild.errors import SelectionError, VerificationError
from imgbuild.imagetests import Options, argv, count, raise_for, skips
from imgbuild.plan import make_plan
from imgbuild.project import Project
from imgbuild.subject import find_subject, plan_of

ROOT = Path(__file__).parents[2]
DIGEST = "sha256:" + "1" * 64


class Engine:
    name = "docker"

    def __init__(self, image):
        self.image = image

    def find(self, tag):
        return self.image if self.image and tag == self.image.tag else None


@pytest.fixture(scope="module")
def here():
    return Project(root=ROOT, writable=True)


@pytest.fixture(scope="module")
def plan(here, matrix):
    return make_plan(here, matrix, matrix.targets["cpu"])


@pytest.fixture
def image(plan):
    return Image(
        tag="comfyui:cpu", digest=DIGEST, platform=plan.platform, labels=dict(plan.labels), size=5_000_000
    )


# --- the subject -------------------------------------------------------------------------------------


def test_the_plan_comes_out_of_the_labels(here, matrix, plan):
    assert plan_of(here, matrix, plan.labels) == plan


@pytest.mark.parametrize("name", ["gb10", "h100"])
def test_the_plan_of_an_image_with_fallback_kernels(here, matrix, name):
    """A build that could not reach a kernel's source says so in the label, and its plan is found again."""
    from imgbuild.kernels import KernelSource

    fallback = matrix.common.kernels["sageattention"].source.fallback
    source = KernelSource(kind="fallback", identity=fallback.wheel)
    plan = make_plan(here, matrix, matrix.targets[name], kernel_sources={"sageattention": source})
    assert plan_of(here, matrix, plan.labels).key == plan.key


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"imgbuild.target": None}, "no label imgbuild.target"),
        ({"imgbuild.target": "b300"}, "no target 'b300'"),
        ({"imgbuild.comfyui.source": None}, "no label imgbuild.comfyui.source"),
    ],
)
def test_an_image_that_has_no_plan_can_be_tested_too(here, matrix, image, change, says):
    labels = {k: v for k, v in {**image.labels, **change}.items() if v is not None}
    with pytest.raises((VerificationError, SelectionError), match=says):
        plan_of(here, matrix, labels)
    strange = dataclasses.replace(image, labels=labels)
    subject = find_subject(Engine(strange), here, matrix, reference="comfyui:cpu")
    assert subject.plan is None
    assert says in subject.why_no_plan


def test_an_image_that_is_not_there(here, matrix):
    with pytest.raises(SelectionError, match="docker has no image comfyui:cpu"):
        find_subject(Engine(None), here, matrix, reference="comfyui:cpu")


def test_a_stale_image_is_known(here, matrix, image, tmp_path):
    fresh = find_subject(Engine(image), here, matrix, reference="comfyui:cpu", cache=tmp_path)
    assert (fresh.stale, fresh.emulated) == ("", False)
    old = dataclasses.replace(image, labels={**image.labels, "imgbuild.plan": "0" * 16})
    assert "imgbuild why cpu" in find_subject(Engine(old), here, matrix, reference="comfyui:cpu").stale


def test_an_image_that_the_last_build_did_not_give_is_stale(here, matrix, image, plan, tmp_path):
    from imgbuild import history

    line = {
        "format": 1,
        "when": "2026-08-13T00:00:00+00:00",
        "target": "cpu",
        "plan": plan.key,
        "tag": plan.tags[0],
        "digest": "sha256:" + "2" * 64,
        "state": "built",
        "engine": "docker",
        "base": "bootstrap",
        "seconds": 1.0,
        "components": {},
        "stages": {},
        "compiled": {},
        "bytes": {},
    }
    (tmp_path / "history").mkdir()
    (tmp_path / "history/cpu.jsonl").write_text(json.dumps(line) + "\n")
    assert history.records(tmp_path, "cpu")
    subject = find_subject(Engine(image), here, matrix, reference="comfyui:cpu", cache=tmp_path)
    assert "the last build here gave sha256:222" in subject.stale


def test_an_emulated_image_is_known(here, matrix, image):
    subject = find_subject(Engine(image), here, matrix, reference="comfyui:cpu", machine="aarch64")
    assert subject.emulated


# --- the runner ----------------------------------------------------------------------------------------


def row(test, ring, outcome, seconds=1.0, reason="", figures=None):
    return {"id": test, "name": test.rpartition(":")[2], "ring": ring, "proves": f"{test} <b>works</b>", "outcome": outcome, "seconds": seconds, "reason": reason, "figures": figures or {}}  # fmt: skip


ROWS = [
    row("test_a.py::test_x[1]", "ring1", "passed", figures={"seconds_to_ready": 9.5}),
    row("test_a.py::test_x[2]", "ring1", "failed", reason="assert 1 == 2\nE   <script>alert(1)</script>"),
    row("test_b.py::test_y", "ring2", "passed", 2.5),
    row("test_c.py::test_z", "ring3", "skipped", 0.1, "no GPU"),
    row("test_c.py::test_w", "ring3", "skipped", 0.1, "no GPU"),
]


@pytest.fixture
def subject(here, matrix, image):
    return find_subject(Engine(image), here, matrix, reference="comfyui:cpu")


def test_counts_and_skips():
    counts = count(ROWS)
    assert list(counts) == ["ring1", "ring2", "ring3"]
    assert (counts["ring1"].passed, counts["ring1"].failed, counts["ring1"].seconds) == (1, 1, 2.0)
    assert (counts["ring3"].skipped, counts["ring3"].ran) == (2, 0)
    assert skips(ROWS) == {"no GPU": 2}


def test_what_pytest_is_told(here, subject, tmp_path):
    options = Options(select="alive", rings=("ring1", "faults"), gpu="on", stop=True)
    words = argv(here, subject, options, results=tmp_path / "r", junit=tmp_path / "j.xml")
    text = " ".join(words)
    assert str(ROOT / "tests/image") in words
    for part in (
        "--image comfyui:cpu",
        "--target cpu",
        "--gpu on",
        "-k alive",
        "ring1 or faults",
        "-x",
        "--junit-xml",
    ):
        assert part in text
    bare = " ".join(argv(here, subject, Options(), results=tmp_path / "r", junit=None))
    assert not any(word in bare for word in (" -k ", " -m ring", " -x", "--junit-xml"))


def ended(subject, code, rows):
    return imagetests.Tested(subject=subject, code=code, results={"tests": rows}, log=Path("x.log"))


def test_how_it_ends(subject):
    raise_for([ended(subject, 0, ROWS[2:])], gpu="auto")
    with pytest.raises(errors.TestsFailedError, match=r"cpu: test_a.py::test_x\[2\]"):
        raise_for([ended(subject, 1, ROWS)], gpu="auto")
    with pytest.raises(errors.TestsFailedError, match="no test of ring 3 ran"):
        raise_for([ended(subject, 0, ROWS[2:])], gpu="on")
    with pytest.raises(SelectionError, match="no test was selected"):
        raise_for([ended(subject, 5, [])], gpu="auto")


@pytest.mark.parametrize(
    ("code", "error"),
    [
        (2, KeyboardInterrupt),
        (3, errors.EngineError),
        (4, errors.EngineError),
        (-9, errors.EngineError),
        (1, errors.EngineError),
    ],
)
def test_an_ending_without_results_is_no_result(here, subject, tmp_path, monkeypatch, code, error):
    """Killed, interrupted, or pytest's own fault: never "no test was selected"."""
    monkeypatch.setattr(imagetests.proc, "stream", lambda *_, **__: code)
    with pytest.raises(error):
        imagetests.test_image(here, subject, Options(output=tmp_path), env={})


def test_the_tests_come_with_the_project(here):
    assert (here.image_tests / "conftest.py").is_file()


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        (["--target", "cpu", "--image", "x"], 2, "exclude one another"),
        (["--all", "--target", "cpu"], 2, "exclude one another"),
        (["--report", "pdf"], 2, "no report 'pdf'; there are: junit, html, json"),
        (["--target", "cqu"], 3, "cpu"),
    ],
)
def test_what_makes_no_sense_is_refused(capsys, words, code, says, monkeypatch):
    monkeypatch.chdir(ROOT)
    assert main(["test", *words]) == code
    assert says in capsys.readouterr().err


# --- the report ------------------------------------------------------------------------------------------


@pytest.fixture
def results(subject, plan):
    return {
        "format": 1,
        "begun": "2026-08-13T00:00:00Z",
        "seconds": 12.5,
        "subject": {
            "reference": "comfyui:cpu",
            "target": "cpu",
            "engine": "docker",
            "stale": "",
            "emulated": False,
            "why_no_plan": "",
            "image": dataclasses.asdict(subject.image),
            "plan": {"key": plan.key, "title": plan.title, "compute_capability": None, "kernels": [], "layers": ["base", "torch"]},
            "machine": {"platform": "linux/amd64", "cpus": 2, "memory": 24_000_000_000, "kernel": "6.1", "gpus": []},
        },
        "facts": {
            "size": {"store": 1, "unpacked": 4_000_000_000, "files": 60_000},
            "layers": [{"by": "ADD base.tar /", "bytes": 480_000_000}, {"by": "COPY /o/ /", "bytes": 800_000_000}],
            "memory_by_prompts": {"40": 900_000_000, "200": 901_000_000},
            "code": {
                "capability": "9.0",
                "machine": "x86_64",
                "objects": 120,
                "warnings": ["libcufftw holds <nothing>"],
                "files": [{"file": "/opt/x.so", "package": "torch 2.13.0", "runs": "yes", "code": [{"kind": "elf", "arch": "sm_90", "count": 7, "size": 1}]}],
            },
        },
        "tests": ROWS,
        "pictures": [{"name": "txt2img", "png": "iVBORw0KGgo=", "says": "seed 7"}],
    }  # fmt: skip


def test_the_page_needs_no_other_file(results):
    page = testreport.page(results, templates=ROOT / "templates", version="0.1.0")
    assert "not proven" in page
    for part in (
        "comfyui:cpu",
        "480.0 MB",
        "sm_90 × 7",
        "data:image/png;base64,iVBORw0KGgo=",
        "no GPU",
        "9.5 s",
        DIGEST,
    ):
        assert part in page, part
    for word in ("http://", "https://", 'src="/', "<script"):
        assert word not in page


def test_what_a_test_says_is_text(results):
    page = testreport.page(results, templates=ROOT / "templates", version="0.1.0")
    assert "&lt;b&gt;works&lt;/b&gt;" in page
    assert "&lt;script&gt;" in page


def test_a_page_of_little(results):
    """An image of somebody else's, of which only one test ran."""
    results["subject"].update(plan=None, why_no_plan="it is not one of ours")
    results["subject"]["image"]["labels"] = {}
    results.update(facts={}, tests=[ROWS[0]], pictures=[])
    page = testreport.page(results, templates=ROOT / "templates", version="0.1.0")
    assert "it is not one of ours" in page
    assert ">proven<" in page
    results["subject"]["selection"] = "test_x"
    assert ">proven in part<" in testreport.page(results, templates=ROOT / "templates", version="0.1.0")


def test_layers_keep_their_instructions_where_their_number_is_another(results):
    results["subject"]["plan"]["layers"] = ["base"]
    names = [layer["name"] for layer in testreport.view(results)["layers"]]
    assert names == ["ADD base.tar /", "COPY /o/ /"]


def test_rings_have_the_same_names_everywhere():
    import sys

    sys.path.append(str(ROOT / "tests/image"))
    import imageresults

    assert imageresults.RINGS == imagetests.RINGS
