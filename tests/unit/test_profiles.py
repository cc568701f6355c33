"""Profiles in the matrix: every line with a reason, for the image, for people, and less what a fallback does wrongly."""

from __future__ import annotations

import pytest

from imgbuild.matrix import MatrixError, load_matrix
from imgbuild.plan import Plan, make_plan, make_plans
from imgbuild.project import Project
from imgbuild.projections import profiles_page, targets_table
from imgbuild.sources import fallback_source


@pytest.fixture
def plans(project: Project) -> dict[str, Plan]:
    matrix = load_matrix(project.images)
    return {plan.name: plan for plan in make_plans(project, matrix, list(matrix.targets.values()))}


def lines(plan: Plan, profile: str) -> list[str]:
    return [row["line"] for row in plan.reasons[profile]]


def test_every_line_has_a_reason_and_evidence(plans: dict[str, Plan]) -> None:
    for plan in plans.values():
        for rows in plan.reasons.values():
            assert all(row["why"] and row["evidence"] in ("V", "M", "C", "TBM") for row in rows)
        for name, profile in plan.profile["profiles"].items():
            baked = [f"{k}={v}" for k, v in profile["environment"].items()]
            assert lines(plan, name) == [*baked, *(" ".join(words) for words in profile["flags"])]


def test_what_is_compiled_is_kept_by_target_and_torch(plans: dict[str, Plan]) -> None:
    for plan in plans.values():
        for profile in plan.profile["profiles"].values():
            for name in ("TRITON_CACHE_DIR", "TORCHINDUCTOR_CACHE_DIR"):
                assert profile["environment"][name].startswith("{compiled}/")
            assert profile["environment"]["HF_HOME"].startswith("{cache}/"), "a download is the same for all"


def test_tiers_are_shown_with_their_reason(plans: dict[str, Plan]) -> None:
    assert lines(plans["ada"], "default, from 0.5 GB") == ["--reserve-vram 1 (with a display)"]
    tier = plans["ada"].profile["tiers"][0]
    assert (tier["flags"], tier["with_display"]) == ([], [["--reserve-vram", "1"]])


def test_the_fallback_leaves_out_what_it_does_wrongly(project: Project) -> None:
    matrix = load_matrix(project.images)
    plan = make_plan(project, matrix, matrix.targets["gb10"], source=fallback_source(matrix))
    for name, profile in plan.profile["profiles"].items():
        assert ["--use-sage-attention"] not in profile["flags"]
        assert "without --use-sage-attention" in lines(plan, name)
    assert "ignores them without a word" in plan.profile["cautions"]["--use-sage-attention"]
    assert make_plan(project, matrix, matrix.targets["gb10"]).profile["cautions"] == {}


def test_pages(plans: dict[str, Plan]) -> None:
    page = profiles_page(list(plans.values()))
    assert page.count("`PYTHONUNBUFFERED=1`") == 1
    assert "\n## gb10: NVIDIA GB10 (DGX Spark)\n\ndefault:\n" in page
    assert "| `CUBLAS_WORKSPACE_CONFIG=:0:0` |" in page
    assert "classic: nothing more." in page
    assert "`--reserve-vram 8` TBM" in targets_table(list(plans.values()))


@pytest.mark.parametrize(
    ("file", "old", "new", "where"),
    [
        ("comfyui.yaml", "{compiled}/triton", "{compield}/triton", "profile.environment[5].value"),
        ("targets/gb10.yaml", "{compiled}/cuda", "{target}/cuda", "profiles.default.environment[0].value"),
    ],
)
def test_an_unknown_placeholder(project: Project, file: str, old: str, new: str, where: str) -> None:
    path = project.images / file
    path.write_text(path.read_text().replace(old, new))
    with pytest.raises(MatrixError) as caught:
        load_matrix(project.images)
    assert where in str(caught.value)
    assert "no placeholder" in str(caught.value)
