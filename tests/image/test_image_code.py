"""`imgbuild verify`: every shared object is opened and held against the GPU that the image is for."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from imgbuild.errors import VerificationError
from imgbuild.matrix import load_matrix
from imgbuild.verify import Report, verify_image

if TYPE_CHECKING:
    from imageresults import ImageResults

    from imgbuild.project import Project
    from imgbuild.subject import Subject

pytestmark = pytest.mark.ring1


@pytest.fixture(scope="module")
def verified(subject: Subject, project: Project, own_engine: Any, results: ImageResults) -> Report:
    reference = subject.image.tag.removeprefix("localhost/")
    try:
        report = verify_image(
            own_engine,
            reference,
            matrix=load_matrix(project.images),
            target=None,
            capability=None,
            say=lambda _: None,
        )
    except VerificationError as error:
        pytest.fail(error.message)
    rows = report.as_json()["files"]
    results.facts["code"] = {
        "capability": report.capability,
        "machine": report.machine,
        "objects": len(rows),
        "warnings": list(report.warnings),
        "files": [r for r in rows if r["code"]],
    }
    return report


def test_verify_passes(verified: Report) -> None:
    """Every kernel holds exactly the code that its label says, torch runs on the GPU, no library is for another machine."""
    assert list(verified.problems) == []


def test_it_has_shared_objects(verified: Report) -> None:
    """Otherwise nothing above proves anything."""
    assert len(verified.rows) > 100
