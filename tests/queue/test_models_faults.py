"""Any sequence of faults: under the final name is the right file, or none; and kill -9 anywhere."""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest
from badserver import Fault, Server
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from models_fixtures import a_server  # noqa: F401  (fixture)
from modelskit import content, model_list, models_of, pull

SIZE = 120_000
OLD, NEW = content(SIZE, seed=1), content(SIZE, seed=2)
SHA = hashlib.sha256(OLD).hexdigest()
ROOT = Path(__file__).parents[2]

NUMBERED = st.builds(
    Fault, st.sampled_from(["truncate", "change", "corrupt"]), st.integers(min_value=0, max_value=SIZE)
)
PLAIN = st.sampled_from(
    ["none", "drop", "no-range", "wrong-range", "long-length", "short-length", "no-length", "extra", "gzip"]
).map(Fault)
REFUSED = st.sampled_from([404, 403, 408, 416, 429, 500, 502, 503]).map(lambda code: Fault("status", code))
FAULTS = st.lists(st.one_of(NUMBERED, PLAIN, REFUSED), max_size=12)


@pytest.fixture(scope="module")
def shared():
    found = Server()
    yield found
    found.stop()


def entry(server, path, *, sha, size):
    found = {"url": f"{server.url}{path}", "folder": "vae"}
    if sha:
        found["sha256"] = SHA
    if size:
        found["size"] = SIZE
    return found


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    runs=st.lists(FAULTS, min_size=1, max_size=3), sha=st.booleans(), size=st.booleans(), etag=st.booleans()
)
def test_right_or_absent(shared, runs, sha, size, etag):
    """Several runs of the command, one after the other, over one folder."""
    with tempfile.TemporaryDirectory() as folder:
        served = shared.add("/f.safetensors", OLD)
        served.after_change = NEW
        target = Path(folder) / "models" / "vae" / "f.safetensors"
        models = models_of(model_list(entry(shared, "/f.safetensors", sha=sha, size=size)), folder)
        for faults in runs:
            served.faults.clear()
            served.faults.extend(faults)
            if not etag:
                served.etag = ""
            else:
                served.etag = None
            found, _ = pull(Path(folder) / "models", models, unlocked=True)
            assert found[0].outcome in ("fetched", "already right", "left alone", "refused", "failed")
            if target.exists():
                there = target.read_bytes()
                if sha:
                    assert there == OLD
                elif not any(f.kind in ("corrupt", "short-length", "no-length") for run in runs for f in run):
                    # Nobody can tell a bit that flips where no hash is known; versions are never mixed.
                    assert there in (OLD, NEW)
            if found[0].exit_code == 0:
                assert target.exists()


@settings(max_examples=25, deadline=None)
@given(
    faults=st.lists(
        NUMBERED.filter(lambda f: f.kind == "truncate") | REFUSED.filter(lambda f: f.number > 416), max_size=6
    )
)
def test_what_passes_ends_well(shared, faults):
    """Only faults that pass, fewer in a row than the patience has: the file comes, at once."""
    with tempfile.TemporaryDirectory() as folder:
        shared.add("/f.safetensors", OLD).faults.extend(faults)
        models = models_of(model_list(entry(shared, "/f.safetensors", sha=True, size=True)), folder)
        found, _ = pull(Path(folder) / "models", models)
        assert found[0].outcome == "fetched", found[0].message
        assert (Path(folder) / "models" / "vae" / "f.safetensors").read_bytes() == OLD


def command(*arguments, folder, **environ):
    return subprocess.Popen(
        [sys.executable, "-m", "comfywork.models", *arguments],
        env={
            "PATH": os.environ["PATH"],
            "HOME": str(folder),
            "PYTHONPATH": str(ROOT / "entrypoint"),
            "MODELS_PATH": str(folder / "models"),
            **environ,
        },
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def begun(folder, least=1):
    """Wait until a part has some bytes."""
    part = folder / "models" / "vae" / "f.safetensors.part"
    for _ in range(1000):
        if part.exists() and part.stat().st_size >= least:
            return part
        time.sleep(0.01)
    raise AssertionError("nothing was fetched within ten seconds")


@pytest.mark.parametrize("least", [1, 400_000, 1_500_000])
def test_kill_9_then_go_on(tmp_path, server, least):
    big = content(2_000_000, seed=4)
    served = server.add("/f.safetensors", big)
    served.faults.append(Fault("throttle", 0.02))
    listed = {
        "url": f"{server.url}/f.safetensors",
        "folder": "vae",
        "size": len(big),
        "sha256": hashlib.sha256(big).hexdigest(),
    }
    (tmp_path / "l.yaml").write_text(model_list(listed))
    first = command("pull", str(tmp_path / "l.yaml"), folder=tmp_path)
    part = begun(tmp_path, least)
    first.send_signal(signal.SIGKILL)
    first.communicate(timeout=10)
    kept = part.stat().st_size
    assert least <= kept < len(big)
    server.log.clear()
    second = command("pull", str(tmp_path / "l.yaml"), folder=tmp_path)
    out, err = second.communicate(timeout=30)
    assert second.returncode == 0, err
    assert server.requests("GET")[0][1]["range"] == f"bytes={kept}-"
    assert (tmp_path / "models" / "vae" / "f.safetensors").read_bytes() == big
    assert sorted(p.name for p in (tmp_path / "models" / "vae").iterdir()) == ["f.safetensors"]
    assert "were here already" in out


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupted(tmp_path, server, number):
    served = server.add("/f.safetensors", OLD)
    served.faults.append(Fault("throttle", 0.2))
    listed = {"url": f"{server.url}/f.safetensors", "folder": "vae", "size": SIZE, "sha256": SHA}
    (tmp_path / "l.yaml").write_text(model_list(listed))
    running = command("pull", str(tmp_path / "l.yaml"), folder=tmp_path)
    begun(tmp_path)
    running.send_signal(number)
    _, err = running.communicate(timeout=10)
    assert running.returncode == 130
    assert "the same command goes on from here" in err
    assert "Traceback" not in err
    assert begun(tmp_path).stat().st_size > 0
    again = command("pull", str(tmp_path / "l.yaml"), folder=tmp_path)
    again.communicate(timeout=30)
    assert again.returncode == 0
    assert (tmp_path / "models" / "vae" / "f.safetensors").read_bytes() == OLD
