"""compose/workers.yaml and its neighbours: what docker compose makes of them, and what they must never do."""

from __future__ import annotations

import ast
import json
import os
import re
import shutil
import subprocess
import sys

import pytest
import yaml

from imgbuild.cli import main
from imgbuild.deploy import queue
from imgbuild.matrix import load_matrix

# As the document for GPU workers names them.
DOCUMENT = (
    *("REDIS_HOST", "REDIS_PORT", "REDIS_PASSWORD", "NUM_WORKERS", "WORKER_GPU_MEMORY_LIMIT"),
    *("WORKER_RESTART_POLICY", "WORKER_HEARTBEAT_TIMEOUT", "WORKER_POLL_INTERVAL"),
    *("MODELS_PATH", "OUTPUTS_PATH", "INPUTS_PATH", "WORKFLOWS_PATH", "LOG_LEVEL", "DEBUG", "VERBOSE_LOGS"),
)


@pytest.fixture(scope="module")
def folder(root, tmp_path_factory):
    """A copy of the committed files, with what they want beside them."""
    found = tmp_path_factory.mktemp("compose")
    for path in (root / "compose").glob("workers*"):
        shutil.copy(path, found)
    (found / "secrets").mkdir()
    (found / "tenants").mkdir()
    return found


@pytest.fixture(scope="module")
def config(folder):
    def config(*profiles, env=None, files=("workers.yaml",), check=True):
        version = shutil.which("docker") and subprocess.run(
            ["docker", "compose", "version"], capture_output=True, check=False
        )
        if not version or version.returncode:
            pytest.skip("no docker compose")
        argv = ["docker", "compose", *(word for f in files for word in ("--file", str(folder / f)))]
        argv += [word for profile in profiles for word in ("--profile", profile)]
        done = subprocess.run(
            [*argv, "config", "--format", "json"],
            capture_output=True,
            text=True,
            check=False,
            env={"PATH": os.environ["PATH"], "HOME": str(folder), **(env or {})},
        )
        assert not check or (done.returncode, done.stderr) == (0, ""), done.stderr
        return json.loads(done.stdout)

    return config


def test_profiles_separate_the_machines(config):
    def services(*profiles):
        return set(config(*profiles)["services"])

    assert services("queue") == {"redis", "api"}
    assert services("tls") == {"redis-tls", "api"}
    assert services("worker") == {"worker-1"}
    assert services("worker", "workers") == {"worker-1", "worker-2", "worker-3"}
    assert services("scaled") == {"worker"}
    assert services("dashboard") == {"dashboard"}
    assert services("front") == {"front"}


def test_nothing_of_a_gpu_is_left_in_the_overlay(config):
    gpu = config("*")["services"]
    cpu = config("*", files=("workers.yaml", "workers-cpu.yaml"))["services"]
    for name in ("worker", "worker-1", "worker-2", "worker-3"):
        assert gpu[name]["deploy"]["resources"]["reservations"]["devices"][0]["device_ids"] == ["0"]
        assert gpu[name]["image"] == "comfyui:h100"
        assert not cpu[name].get("deploy")
        assert cpu[name]["image"] == "comfyui:cpu"


def test_everything_is_confined_and_published_on_loopback(config):
    for name, service in config("*")["services"].items():
        assert service["read_only"] is True, name
        assert service["cap_drop"] == ["ALL"]
        assert service["security_opt"] == ["no-new-privileges"]
        assert service["pids_limit"]
        assert not service["user"].startswith("0"), name
        assert {p["host_ip"] for p in service.get("ports", ())} <= {"127.0.0.1"}
        if name.startswith("worker"):
            assert "ports" not in service, "outbound only"


def test_no_password_is_in_an_environment(config):
    for name, service in config("*", env={"S3_ACCESS_KEY": "k"})["services"].items():
        found = [n for n in service.get("environment", {}) if re.search("PASSWORD|SECRET|TOKEN", n)]
        assert all(n.endswith("_FILE") or n == "HF_TOKEN" for n in found), name


def test_every_worker_has_its_own_name_and_time_for_its_job(config):
    services = config("*")["services"]
    assert [services[f"worker-{n}"]["environment"]["WORKER_ID"] for n in (1, 2, 3)] == [
        "worker-1",
        "worker-2",
        "worker-3",
    ]
    assert "WORKER_ID" not in services["worker"]["environment"], "a container's own id, for --scale"
    worker = services["worker-1"]
    assert worker["stop_grace_period"] == "1m30s"
    assert int(worker["environment"]["WORKER_DRAIN_TIMEOUT"]) + 10 < 90
    assert worker["restart"] == "unless-stopped"


def test_redis_keeps_every_job(config):
    script = config("queue")["services"]["redis"]["entrypoint"][2]
    for line in ("appendonly yes", "appendfsync always", "maxmemory-policy noeviction"):
        assert line in script
    assert "requirepass" not in script, "the hash of the password alone is in its configuration"


def test_the_documents_settings_are_in_the_example(root):
    text = (root / "compose/workers.env").read_text()
    for name in DOCUMENT:
        assert re.search(rf"^#? ?{name}(_FILE)?\b", text, re.MULTILINE), name
    assert "hunter" not in text


def test_the_example_is_taken_as_it_is(folder, config):
    """Every default, written out, changes nothing."""
    plain = config("*")
    lines = (folder / "workers.env").read_text().splitlines()
    given = dict(line.split("=", 1) for line in lines if "=" in line and not line.startswith("#"))
    assert config("*", env=given) == plain


def test_a_changed_setting_reaches_who_reads_it(config):
    env = {s.name: "x1" for s in (*queue.WORKER, *queue.LIMITS) if s.name != "NUM_WORKERS"}
    found = config("*", env={**env, "REDIS_HOST": "10.0.0.1"})["services"]
    for setting in queue.WORKER:
        if setting.name in env:
            assert found["worker-1"]["environment"][setting.name] == "x1"
    assert found["api"]["environment"]["QUEUE_DEPTH_PER_TENANT"] == "x1"
    assert found["worker-2"]["environment"]["REDIS_HOST"] == "10.0.0.1"


def test_the_tool_writes_them_without_a_checkout(tmp_path, root, capsys):
    assert main(["--project", str(root), "compose", "workers", "-o", str(tmp_path / "c")]) == 0
    assert {p.name for p in (tmp_path / "c").iterdir()} == {
        "workers.yaml",
        "workers-cpu.yaml",
        "workers.env",
        "kubernetes",
    }
    assert "--profile queue up" in capsys.readouterr().err
    assert main(["--project", str(root), "compose", "workers", "--port", "9000"]) == 2
    assert "takes none of these options: --port 9000" in capsys.readouterr().err


def test_no_target_takes_the_name_of_a_file(project, capsys):
    (project.root / "images/targets/cpu.yaml").rename(project.root / "images/targets/workers.yaml")
    path = project.root / "images/targets/workers.yaml"
    path.write_text(path.read_text().replace("name: cpu", "name: workers", 1))
    assert main(["--project", str(project.root), "targets"]) == 2
    assert "'workers' is taken" in capsys.readouterr().err


# --- Kubernetes ------------------------------------------------------------------------------------


def documents(root, *names):
    for name in names or queue.KUBERNETES:
        yield from yaml.safe_load_all((root / f"compose/kubernetes/{name}.yaml").read_text())


def test_manifests_fit_their_schemas(root):
    validate = pytest.importorskip("kubernetes_validate", reason="kubernetes-validate is not installed")
    for document in documents(root, "redis", "api", "worker", "network"):
        for version in ("1.29", "1.31", "1.34"):
            validate.validate(document, version, strict=True)


def test_pods_are_restricted_and_see_no_service_links(root):
    pods = [
        d["spec"]["template"]["spec"] for d in documents(root) if d["kind"] in ("Deployment", "StatefulSet")
    ]
    assert len(pods) == 3
    for pod in pods:
        assert pod["enableServiceLinks"] is False, "a Service called redis would set REDIS_PORT=tcp://…"
        assert pod["automountServiceAccountToken"] is False
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        for container in pod["containers"]:
            assert container["securityContext"] == {
                "allowPrivilegeEscalation": False,
                "readOnlyRootFilesystem": True,
                "capabilities": {"drop": ["ALL"]},
            }


def test_a_worker_pod_has_time_for_its_job_and_the_probes_of_comfyrun(root):
    (worker,) = (
        d["spec"]["template"]["spec"] for d in documents(root, "worker") if d["kind"] == "Deployment"
    )
    (container,) = worker["containers"]
    environment = {e["name"]: e.get("value") for e in container["env"]}
    assert worker["terminationGracePeriodSeconds"] > int(environment["WORKER_DRAIN_TIMEOUT"]) + 10
    assert container["livenessProbe"]["exec"]["command"] == ["comfyrun", "health"]
    assert container["resources"]["limits"]["nvidia.com/gpu"] == 1
    assert "lifecycle" not in container


def test_what_is_scaled_is_there(root):
    (scaled,) = documents(root, "scaling")
    names = {d["metadata"]["name"] for d in documents(root, "worker") if d["kind"] == "Deployment"}
    assert scaled["spec"]["scaleTargetRef"]["name"] in names
    # The fields and types of KEDA's own CRD; it takes text alone in a trigger's metadata.
    numbers = {"minReplicaCount", "maxReplicaCount", "pollingInterval", "cooldownPeriod"}
    assert set(scaled["spec"]) == {"scaleTargetRef", "triggers", *numbers}
    assert all(isinstance(scaled["spec"][name], int) for name in numbers)
    (trigger,) = scaled["spec"]["triggers"]
    assert all(isinstance(value, str) for value in trigger["metadata"].values())
    query = trigger["metadata"]["query"]
    metrics = (root / "entrypoint/comfywork/metrics.py").read_text()
    assert all(f'"{name}"' in metrics for name in re.findall(r"comfywork_\w+", query))


# --- what the image has to hold for it ---------------------------------------------------------------


def test_what_comfywork_imports_is_asked_for(root):
    """Every library by its own name in images/comfyui.yaml, not by luck through another one."""
    known = {"yaml": "pyyaml", "ruamel": "ruamel-yaml", "flask": "rq-dashboard", "werkzeug": "rq-dashboard"}
    known |= {"starlette": "fastapi", "anyio": "fastapi", "botocore": "boto3", "urllib3": "boto3"}
    wanted = {
        re.split("[<>=]", w)[0].lower().replace("_", "-").replace(".", "-")
        for w in load_matrix(root / "images").common.work
    }
    found = set()
    for path in (root / "entrypoint/comfywork").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) and not node.level else []
            found |= {name.split(".")[0] for name in names}
    found -= {*sys.stdlib_module_names, "comfywork", "comfyrun", "_typeshed", ""}
    lacking = {n for n in found if known.get(n, n.replace("_", "-")) not in wanted}
    assert not lacking
