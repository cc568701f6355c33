"""A user's own image FROM ours, with more packages, as the documentation shows it."""

from __future__ import annotations

import os
import subprocess

import pytest
from kit import IMAGE, REFERENCE, run_python
from scratch import no_new_cache

from imgbuild.settings import read_settings

DERIVED = f"{IMAGE}-derived:cpu"
PACKAGE = "colorama"
"""Small, pure Python, needs nothing, and is in no image of ours."""

# The documentation's snippet: pip comes out of Debian's python3-venv, /opt/venv is first on PATH.
DOCKERFILE = """\
FROM {reference}
USER root
RUN --mount=type=secret,id=pip,target=/etc/pip.conf --mount=type=secret,id=ca \\
    python -m ensurepip && python -m pip install --constraint /etc/comfyrun/constraints.txt {package}
USER 1000:1000
"""


@pytest.fixture
def derive(client, cpu, tmp_path):
    """Build it with a package; the machine's settings as a pip.conf that is a secret."""
    settings = read_settings(os.environ)
    conf = [
        "[global]",
        "no-cache-dir = true",
        "disable-pip-version-check = true",
        "root-user-action = ignore",
    ]
    secrets = ["--secret", f"id=pip,src={tmp_path / 'pip.conf'}"]
    if settings.ca_bundle:
        conf.append("cert = /run/secrets/ca")
        secrets += ["--secret", f"id=ca,src={settings.ca_bundle}"]
    if settings.index:
        conf.append(f"index-url = {settings.index}")
    if settings.extra_indexes:
        conf.append(f"extra-index-url = {' '.join(settings.extra_indexes)}")
    if proxy := dict(settings.proxies).get("HTTPS_PROXY"):
        conf.append(f"proxy = {proxy}")
    (tmp_path / "pip.conf").write_text("\n".join(conf) + "\n")
    context = tmp_path / "context"
    context.mkdir()

    def build(package: str) -> subprocess.CompletedProcess[str]:
        (context / "Dockerfile").write_text(DOCKERFILE.format(reference=REFERENCE, package=package))
        argv = ["docker", "buildx", "build", "--progress", "plain", "--no-cache", *secrets]
        argv += ["--output", f"type=docker,name={DERIVED},compression=uncompressed", str(context)]
        return subprocess.run(argv, capture_output=True, text=True, check=False, timeout=600)

    with no_new_cache(client, "python -m ensurepip"):
        yield build


def test_a_package_on_top_leaves_ours_alone(client, cpu, derive):
    done = derive(PACKAGE)
    assert done.returncode == 0, done.stderr[-3000:]
    assert run_python(client, DERIVED, f"import {PACKAGE}; print({PACKAGE}.__file__)").startswith(
        "/opt/venv/"
    )
    installed = run_python(
        client,
        DERIVED,
        "import importlib.metadata as m, re\n"
        "for d in m.distributions(): print(re.sub('[-_.]+', '-', d.name).lower() + '==' + d.version)",
    ).splitlines()
    ours = cpu.image.plan.constraints().splitlines()
    assert set(ours) <= set(installed)
    assert {line.partition("==")[0] for line in set(installed) - set(ours)} <= {PACKAGE, "pip", "setuptools"}
    # Our layers stay below, byte for byte: a push moves the new one alone.
    layers = client.images.get(DERIVED).attrs["RootFS"]["Layers"]
    assert layers[:-1] == [layer.digest for layer in cpu.image.layers]


def test_another_torch_is_refused(client, derive):
    before = {image.id for image in client.images.list(name=DERIVED)}
    done = derive("torch==2.9.0")
    assert done.returncode != 0
    assert "The user requested torch==2.9.0" in done.stderr
    assert "The user requested (constraint) torch==2.13.0+cpu" in done.stderr
    assert {image.id for image in client.images.list(name=DERIVED)} == before
