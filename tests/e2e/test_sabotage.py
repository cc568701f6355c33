"""Deliberate defects, one at a time: each is a tiny image on top of a good one, and a named test catches it.

This is what says that the tests of tests/image can fail. The list is a test itself: whoever adds a test there adds
the defect that it is for.
"""

from __future__ import annotations

import base64
import json
import os
import subprocess
import sys
import textwrap
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from kit import REFERENCE, ROOT
from scratch import no_new_cache, tool_env

if TYPE_CHECKING:
    from collections.abc import Iterator

TAG = "imgbuild-sabotage"
TESTS = ROOT / "tests/image"
_SITE = "/opt/venv/lib/python3.*/site-packages"
_WORK_SITE = "/opt/work/lib/python3.*/site-packages"
INDEX = "https://builder:hunter2-secret@index.invalid/simple"


@dataclass(frozen=True, kw_only=True)
class Sabotage:
    """One defect, and the test that has to see it."""

    name: str
    caught_by: str
    """module::test, with its parameter where it has one."""
    dockerfile: str
    """What comes after FROM; the user is root until it says otherwise."""
    files: dict[str, str | bytes] = field(default_factory=dict)
    """Of the build's context."""
    env: dict[str, str] = field(default_factory=dict)
    """Of the tests."""
    says: str = ""
    """What the failure has to name, where a test could fail for something else."""


# A package that claims to be the probe, with the fixture's code for sm_121a in it.
_PROBE_INFO = "Metadata-Version: 2.1\nName: imgbuild-probe\nVersion: 1.0.0\n"
_PROBE_RECORD = "imgbuild_probe/libimgbuild_probe.so,,\nimgbuild_probe-1.0.0.dist-info/METADATA,,\n"
_RAISES = 'raise RuntimeError("sabotage")\nNODE_CLASS_MAPPINGS = {}\n'

SABOTAGES = (
    Sabotage(
        name="root-user",
        caught_by="test_image_config.py::test_it_does_not_run_as_root",
        dockerfile="USER root",
    ),
    Sabotage(
        name="no-init",
        caught_by="test_image_config.py::test_it_starts_with_tini_and_comfyrun",
        dockerfile='ENTRYPOINT ["comfyrun"]\nCMD ["serve"]\nUSER 1000:1000',
    ),
    Sabotage(
        name="no-health-check",
        caught_by="test_image_config.py::test_it_has_a_health_check",
        dockerfile="HEALTHCHECK NONE\nUSER 1000:1000",
    ),
    Sabotage(
        name="killed-not-stopped",
        caught_by="test_image_config.py::test_it_is_stopped_with_sigterm",
        dockerfile="STOPSIGNAL SIGKILL\nUSER 1000:1000",
    ),
    Sabotage(
        name="one-more-volume",
        caught_by="test_image_config.py::test_its_data_are_volumes",
        dockerfile='VOLUME ["/opt/comfyui/models"]\nUSER 1000:1000',
    ),
    Sabotage(
        name="stale-plan-label",
        caught_by="test_image_config.py::test_it_was_built_from_the_project_as_it_is",
        dockerfile="LABEL imgbuild.plan=0123456789abcdef\nUSER 1000:1000",
    ),
    Sabotage(
        name="wrong-torch-label",
        caught_by="test_image_config.py::test_a_label_is_the_plans[imgbuild.torch]",
        dockerfile="LABEL imgbuild.torch=2.5.0\nUSER 1000:1000",
    ),
    Sabotage(
        name="leaked-certificate-path",
        caught_by="test_image_config.py::test_its_history_tells_nothing_of_the_machine",
        dockerfile="ENV SSL_CERT_FILE=/home/builder/company-ca.pem\nUSER 1000:1000",
    ),
    Sabotage(
        name="environment-of-the-builder",
        caught_by="test_image_config.py::test_its_environment_holds_nothing_more",
        dockerfile="ENV BUILD_HOST=builder-7\nUSER 1000:1000",
    ),
    Sabotage(
        name="writable-venv",
        caught_by="test_image_files.py::test_nothing_of_its_code_is_writable",
        dockerfile="RUN chmod a+w /opt/venv/bin\nUSER 1000:1000",
    ),
    Sabotage(
        name="code-of-the-user",
        caught_by="test_image_files.py::test_all_of_it_belongs_to_root",
        dockerfile="RUN chown 1000:1000 /opt/comfyui/main.py\nUSER 1000:1000",
    ),
    Sabotage(
        name="set-uid-program",
        caught_by="test_image_files.py::test_no_program_gives_more_rights",
        dockerfile="RUN chmod u+s /usr/bin/env\nUSER 1000:1000",
    ),
    Sabotage(
        name="compiler-left-behind",
        caught_by="test_image_files.py::test_no_cuda_compiler_is_left_behind",
        dockerfile="RUN mkdir -p /usr/local/cuda/bin && touch /usr/local/cuda/bin/nvcc\nUSER 1000:1000",
    ),
    Sabotage(
        name="no-gcc",
        caught_by="test_image_files.py::test_gcc_and_the_python_headers_stay",
        dockerfile="RUN rm /usr/bin/gcc\nUSER 1000:1000",
    ),
    Sabotage(
        name="checkout-left-behind",
        caught_by="test_image_files.py::test_nothing_of_the_build_is_left_behind",
        dockerfile="RUN mkdir -p /opt/comfyui/.git\nUSER 1000:1000",
    ),
    Sabotage(
        name="missing-node",
        caught_by="test_image_files.py::test_a_baked_node_is_there[dgls]",
        dockerfile="RUN rm -r /opt/nodes/dgls\nUSER 1000:1000",
    ),
    Sabotage(
        name="bad-flag",
        caught_by="test_image_files.py::test_the_profile_is_the_plans",
        dockerfile="""RUN sed -i 's/"--cpu"/"--no-such-flag"/' /etc/comfyrun/profile.json\nUSER 1000:1000""",
    ),
    Sabotage(
        name="bad-flag-when-started",
        caught_by="test_image_run.py::test_it_shows_what_it_would_run",
        dockerfile="""RUN sed -i 's/"--cpu"/"--no-such-flag"/' /etc/comfyrun/profile.json\nUSER 1000:1000""",
    ),
    Sabotage(
        name="other-version",
        caught_by="test_image_packages.py::test_a_package_is_the_locked_one[einops]",
        dockerfile=f"RUN sed -i 's/^Version: .*/Version: 0.0.1/' {_SITE}/einops-*.dist-info/METADATA\nUSER 1000:1000",
    ),
    Sabotage(
        name="one-more-package",
        caught_by="test_image_packages.py::test_nothing_else_is_installed",
        dockerfile="COPY METADATA /opt/venv/lib/python3.11/site-packages/onnxruntime-1.0.dist-info/METADATA\nUSER 1000:1000",
        files={"METADATA": "Metadata-Version: 2.1\nName: onnxruntime\nVersion: 1.0\n"},
    ),
    Sabotage(
        name="swapped-torch",
        caught_by="test_image_packages.py::test_torch_is_what_its_wheel_brought",
        dockerfile=f"RUN sed -i 's/2\\.13/2.5/' {_SITE}/torch/version.py\nUSER 1000:1000",
    ),
    Sabotage(
        name="edited-source-old-bytecode",
        caught_by="test_image_packages.py::test_bytecode_is_of_its_source",
        dockerfile="RUN echo '# patched by hand' >> /opt/comfyui/nodes.py\nUSER 1000:1000",
    ),
    Sabotage(
        name="weaker-constraints",
        caught_by="test_image_packages.py::test_its_constraints_are_the_plans",
        dockerfile="RUN sed -i '/^torch==/d' /etc/comfyrun/constraints.txt\nUSER 1000:1000",
    ),
    Sabotage(
        name="package-that-does-not-import",
        caught_by="test_image_packages.py::test_a_package_can_be_imported[einops]",
        # Without its bytecode, which would be loaded all the same.
        dockerfile=f"RUN cd {_SITE}/einops && echo 'import no_such_module' >> __init__.py && rm -r __pycache__\nUSER 1000:1000",
    ),
    Sabotage(
        name="other-queue-library",
        caught_by="test_image_work.py::test_a_work_package_is_the_locked_one[rq]",
        dockerfile=f"RUN sed -i 's/^Version: .*/Version: 0.0.1/' {_WORK_SITE}/rq-*.dist-info/METADATA\nUSER 1000:1000",
    ),
    Sabotage(
        name="queue-library-that-does-not-import",
        caught_by="test_image_work.py::test_a_work_package_can_be_imported[click]",
        dockerfile=f"RUN cd {_WORK_SITE}/click && echo 'import no_such_module' >> __init__.py && rm -r __pycache__\nUSER 1000:1000",
    ),
    Sabotage(
        name="one-more-queue-library",
        caught_by="test_image_work.py::test_nothing_else_is_in_it",
        dockerfile="COPY METADATA /opt/work/lib/python3.11/site-packages/celery-1.0.dist-info/METADATA\nUSER 1000:1000",
        files={"METADATA": "Metadata-Version: 2.1\nName: celery\nVersion: 1.0\n"},
    ),
    Sabotage(
        name="patched-queue-library",
        caught_by="test_image_work.py::test_every_work_package_is_what_its_wheel_brought",
        dockerfile=f"RUN cd {_WORK_SITE}/rq && echo '# patched by hand' >> job.py\nUSER 1000:1000",
        says="rq/job.py",
    ),
    Sabotage(
        name="worker-that-sees-comfyuis-packages",
        caught_by="test_image_work.py::test_a_workers_path_holds_no_package_of_comfyuis",
        dockerfile=f"RUN echo /opt/venv/lib > $(echo {_WORK_SITE})/more.pth\nUSER 1000:1000",
    ),
    Sabotage(
        name="wrong-arch-kernel",
        caught_by="test_image_code.py::test_verify_passes",
        dockerfile=textwrap.dedent("""\
            COPY exact.so /opt/venv/lib/python3.11/site-packages/imgbuild_probe/libimgbuild_probe.so
            COPY METADATA RECORD /opt/venv/lib/python3.11/site-packages/imgbuild_probe-1.0.0.dist-info/
            LABEL imgbuild.kernels=probe=1.0.0@0123456789abcdef:sm_90
            USER 1000:1000"""),
        says="sm_121a",
        files={
            "exact.so": (ROOT / "tests/unit/fatbins/exact.so").read_bytes(),
            "METADATA": _PROBE_INFO,
            "RECORD": _PROBE_RECORD,
        },
    ),
    Sabotage(
        name="secret-in-a-deleted-file",
        caught_by="test_image_secrets.py::test_no_layer_holds_a_secret",
        # The build's own network settings, as a Dockerfile of the usual kind leaves them behind.
        dockerfile="COPY pip.conf /etc/pip.conf\nRUN rm /etc/pip.conf\nUSER 1000:1000",
        files={"pip.conf": f"[global]\nindex-url = {INDEX}\n"},
        env={"PIP_INDEX_URL": INDEX},
        says="of this machine', '/etc/pip.conf'",
    ),
    Sabotage(
        name="node-that-raises",
        caught_by="test_image_run.py::test_its_start_says_no_error_and_no_warning",
        dockerfile="COPY __init__.py /opt/nodes/dgls/__init__.py\nRUN rm -rf /opt/nodes/dgls/__pycache__\nUSER 1000:1000",
        files={"__init__.py": _RAISES},
    ),
    Sabotage(
        name="for-one-user-only",
        caught_by="test_image_run.py::test_it_is_alive",
        dockerfile="RUN chown 1000:1000 /opt/comfyui && chmod 700 /opt/comfyui\nUSER 1000:1000",
    ),
)


def test_the_list_is_long_enough_and_names_tests_that_exist():
    assert len(SABOTAGES) >= 15
    assert len({s.name for s in SABOTAGES}) == len(SABOTAGES)
    for sabotage in SABOTAGES:
        module, _, test = sabotage.caught_by.partition("::")
        assert f"def {test.partition('[')[0]}(" in (TESTS / module).read_text(), sabotage.caught_by


def test_every_module_of_ring_1_has_its_sabotage():
    """The volumes' module asks the host and not the image: what breaks it is an engine."""
    modules = {p.name for p in TESTS.glob("test_image_*.py") if "mark.ring1" in p.read_text()}
    assert modules - {s.caught_by.partition("::")[0] for s in SABOTAGES} == {"test_image_volumes.py"}


@pytest.fixture(scope="module")
def good(client: Any, request: pytest.FixtureRequest) -> tuple[str, Path]:
    """A good image, and the project it was built from: the one under test, or this suite's own."""
    given = os.environ.get("IMGBUILD_IMAGE")
    if given and client.images.get(given).labels.get("imgbuild.target") == "cpu":
        return given, ROOT
    request.getfixturevalue("cpu")
    return REFERENCE, request.getfixturevalue("copy").root


@pytest.fixture
def sabotaged(
    client: Any, good: tuple[str, Path], tmp_path: Path, request: pytest.FixtureRequest
) -> Iterator[str]:
    """The image with its defect, under a tag that is gone afterwards."""
    sabotage: Sabotage = request.param
    tag = f"{TAG}:{sabotage.name}"
    for name, content in sabotage.files.items():
        (tmp_path / name).write_bytes(content.encode() if isinstance(content, str) else content)
    (tmp_path / "Dockerfile").write_text(f"FROM {good[0]}\nUSER root\n{sabotage.dockerfile}\n")
    argv = ["docker", "buildx", "build", "--progress", "plain"]
    argv += ["--output", f"type=docker,name={tag},compression=uncompressed", str(tmp_path)]
    with no_new_cache(client, "chmod", "chown", "sed -i", "rm ", "COPY ", "mkdir -p", "echo "):
        done = subprocess.run(argv, capture_output=True, text=True, check=False, timeout=900)
        assert done.returncode == 0, done.stderr[-2000:]
        yield tag
        client.images.remove(tag, force=True)


@pytest.mark.parametrize(
    ("sabotaged", "sabotage"),
    [(s, s) for s in SABOTAGES],
    indirect=["sabotaged"],
    ids=[s.name for s in SABOTAGES],
)
def test_it_is_caught(sabotaged: str, sabotage: Sabotage, good: tuple[str, Path], tmp_path: Path) -> None:
    module, _, test = sabotage.caught_by.partition("::")
    results = tmp_path / "results.json"
    argv = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-q", f"{TESTS / module}::{test}"]
    argv += [
        "--image",
        sabotaged,
        "--project-root",
        str(good[1]),
        "--results",
        str(results),
        "--ready-timeout",
        "240",
    ]
    env = tool_env({**os.environ, **sabotage.env, "IMGBUILD_IMAGE": sabotaged})
    done = subprocess.run(argv, env=env, cwd=ROOT, capture_output=True, text=True, check=False, timeout=1800)
    assert done.returncode == 1, done.stdout[-3000:] + done.stderr[-1000:]
    tests = json.loads(results.read_text())["tests"]
    assert [(t["id"], t["outcome"]) for t in tests] == [(sabotage.caught_by, "failed")]
    assert sabotage.says in tests[0]["reason"]
    if sabotage.env:  # what it found is told, and what it is, is not
        assert base64.b64encode(INDEX.encode()).decode() not in done.stdout
        assert "hunter2" not in done.stdout
