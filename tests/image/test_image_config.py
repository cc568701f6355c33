"""The image's configuration: labels, user, entrypoint, health check, volumes, and what its history tells."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import pytest

from imgbuild.settings import read_settings

if TYPE_CHECKING:
    from imgbuild.plan import Plan
    from imgbuild.subject import Subject

pytestmark = pytest.mark.ring1

# What a Dockerfile of ours sets; comfyrun sets the rest when it starts.
_ENVIRONMENT = {"PATH", "PYTHONDONTWRITEBYTECODE", "NVIDIA_DRIVER_CAPABILITIES", "container"}
_MACHINES_OWN = re.compile(
    r"\b((?:HTTP|HTTPS|ALL|NO)_PROXY|(?:PIP|UV)_[A-Z_]+|SSL_CERT_FILE|REQUESTS_CA_BUNDLE|CURL_CA_BUNDLE|GIT_SSL_CAINFO)=",
    re.IGNORECASE,
)


def environment(config: dict[str, Any]) -> dict[str, str]:
    return dict(line.partition("=")[::2] for line in config["Config"].get("Env") or ())


def test_a_label_is_the_plans(label: str, subject: Subject, plan: Plan) -> None:
    """The label says what the project would build now."""
    if label == "org.opencontainers.image.base.name":
        assert subject.image.labels[label].startswith(plan.labels[label])  # and how it was come by
        return
    assert subject.image.labels.get(label) == plan.labels[label]


def test_it_was_built_from_the_project_as_it_is(subject: Subject, plan: Plan) -> None:
    """The image is what the last build gave, and no change of the matrix came since."""
    assert not subject.stale, f"{subject.stale}: imgbuild build --target {plan.name}"


def test_its_platform_is_the_targets(subject: Subject, plan: Plan) -> None:
    assert subject.image.platform == plan.platform


def test_it_does_not_run_as_root(config: dict[str, Any]) -> None:
    user = str(config["Config"].get("User") or "0").partition(":")[0]
    assert user not in ("", "0", "root")


def test_it_starts_with_tini_and_comfyrun(config: dict[str, Any]) -> None:
    assert config["Config"]["Entrypoint"] == ["/usr/bin/tini", "--", "comfyrun"]
    assert config["Config"]["Cmd"] == ["serve"]


def test_it_is_stopped_with_sigterm(config: dict[str, Any]) -> None:
    assert config["Config"].get("StopSignal") in ("SIGTERM", "15")


def test_it_has_a_health_check(config: dict[str, Any]) -> None:
    check = config["Config"].get("Healthcheck") or config.get("Healthcheck")
    if not check and config.get("ManifestType", "").startswith("application/vnd.oci"):
        pytest.skip("the OCI format has no health check")
    assert check
    assert check["Test"] == ["CMD", "comfyrun", "health"]


def test_its_data_are_volumes(config: dict[str, Any]) -> None:
    assert set(config["Config"].get("Volumes") or ()) == {"/data", "/cache"}
    assert set(config["Config"].get("ExposedPorts") or ()) == {"8188/tcp"}


def test_its_environment_holds_nothing_more(config: dict[str, Any]) -> None:
    assert sorted(environment(config).keys() - _ENVIRONMENT) == []
    assert environment(config)["PATH"].startswith("/opt/venv/bin:")


def test_its_history_tells_nothing_of_the_machine(config: dict[str, Any], engine: Any, image: str) -> None:
    """No proxy, package index or certificate path among environment, labels and build steps."""
    history = engine.history(image, "--format", "{{.CreatedBy}}")
    texts = [*(config["Config"].get("Env") or ()), *history.splitlines()]
    texts += [f"{k}={v}" for k, v in (config["Config"].get("Labels") or {}).items()]
    assert [t for t in texts if _MACHINES_OWN.search(t)] == []
    import os

    words = [w for w in read_settings(os.environ).words() if len(w) > 7]
    assert [t for t in texts for w in words if w in t] == []
