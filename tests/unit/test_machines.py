"""Which target goes to which machine, and what is said when one is missing."""

from __future__ import annotations

import gc
import os
import subprocess
import time
import warnings
from concurrent.futures import ThreadPoolExecutor

import pytest

from imgbuild import machines, proc
from imgbuild.build import Options, Outcome, Report
from imgbuild.engines.docker import Docker
from imgbuild.errors import BuildError, ConfigError, EngineError, SelectionError
from imgbuild.index import reference
from imgbuild.machines import Assignment, assign, raise_for


@pytest.fixture
def env(tmp_path, monkeypatch):
    """Contexts named spark and rack, in a configuration of their own; a docker command is all that is needed."""
    config = {"DOCKER_CONFIG": str(tmp_path / "docker"), "PATH": os.environ["PATH"]}
    try:
        for name in ("spark", "rack"):
            argv = ["docker", "context", "create", name, "--docker", f"host=unix://{tmp_path}/{name}"]
            subprocess.run(argv, env=config, check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("no docker command: imgbuild doctor --fix")
    return config


@pytest.fixture
def ask(matrix, env):
    def ask(*on, targets=(), everything=False):
        selected, where = assign(on, matrix, targets, everything=everything, env=env)
        assert {t.name for t in selected} == set(where.context)
        return dict(where.context)

    return ask


def test_targets_are_those_that_are_named(ask):
    assert ask("gb10=spark", "h100=rack") == {"gb10": "spark", "h100": "rack"}


def test_a_platform_stands_for_its_targets(ask):
    found = ask("linux/amd64=rack")
    assert found == {"ada": "rack", "cpu": "rack", "h100": "rack"}


def test_a_targets_own_word_wins(ask):
    assert ask("linux/amd64=rack", "cpu=spark", targets=("cpu", "ada")) == {"ada": "rack", "cpu": "spark"}


def test_the_rest_is_built_here(ask):
    assert ask("gb10=spark", everything=True) == {"gb10": "spark", "ada": None, "cpu": None, "h100": None}


@pytest.mark.parametrize(
    ("on", "targets", "says"),
    [
        (["gb10"], (), "write it as TARGET=CONTEXT"),
        (["=spark"], (), "write it as TARGET=CONTEXT"),
        (["gb11=spark"], (), "'gb11' is no target and no platform of one; did you mean 'gb10'?"),
        (["linux/arm46=spark"], (), "did you mean 'linux/arm64'?"),
        (["gb10=sparc"], (), "there is no Docker context 'sparc'; did you mean 'spark'?"),
        (["gb10=spark", "gb10=rack"], (), "gb10 is given to spark and to rack"),
        (["gb10=spark"], ("cpu",), "nothing that is built is gb10"),
        (["linux/arm64=spark"], ("cpu",), "nothing that is built is linux/arm64"),
    ],
)
def test_bad_words(ask, on, targets, says):
    with pytest.raises(ConfigError) as error:
        ask(*on, targets=targets)
    assert says in error.value.message


def test_unknown_target_beside(ask):
    with pytest.raises(SelectionError):
        ask("gb10=spark", targets=("gb11",))


def test_engine_that_nobody_serves(env):
    engine = Docker(env, context="spark")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)  # the SDK leaves its socket open when nobody answers
        with pytest.raises(EngineError) as error:
            engine.check()
        said, hint = error.value.message, error.value.hint
        del error
        gc.collect()
    assert said == "the Docker engine of context spark cannot be reached: its socket is not there"
    assert hint == "docker --context spark info"


def test_context_wins_over_an_address(env):
    """DOCKER_HOST would send the docker command somewhere else than the target was named for."""
    engine = Docker({**env, "DOCKER_HOST": "tcp://192.0.2.1:1"}, context="spark")
    assert "DOCKER_HOST" not in engine.env
    assert engine.env["DOCKER_CONTEXT"] == "spark"
    assert engine.command == ("docker", "--context", "spark")


def outcome(target, state, machine, **more):
    return Outcome(target=target, state=state, tags=(f"comfyui:{target}",), machine=machine, **more)


LOST = outcome("gb10", "stopped", "spark", stage="engine", lines=("the engine (docker) died",))
BUILT = outcome("h100", "built", "rack")
WHERE = Assignment(context={"gb10": "spark", "h100": "rack", "cpu": None})


def tell(*outcomes, index=None):
    report = Report(outcomes=outcomes, log=None, seconds=1, metadata={})
    raise_for(report, WHERE, command="imgbuild build --push R/p", index=index)


def test_nothing_is_missing():
    tell(BUILT, outcome("cpu", "cached", None))


def test_an_engine_that_was_lost():
    with pytest.raises(EngineError) as error:
        tell(LOST, BUILT, outcome("cpu", "cached", None))
    assert error.value.message.splitlines() == [
        "1 of 3 targets is missing",
        "gb10, on spark: its engine was lost",
        "    the engine (docker) died",
        "h100, on rack: built and kept, comfyui:h100",
        "cpu: cached and kept, comfyui:cpu",
    ]
    assert error.value.hint == (
        "docker --context spark info says when the engine is back; then: "
        "imgbuild build --push R/p --target gb10 --on gb10=spark"
    )


def test_a_stage_that_failed():
    with pytest.raises(BuildError) as error:
        tell(outcome("cpu", "failed", None, stage="cpu venv-torch 1/1", lines=("no",)), BUILT)
    assert "cpu: stage cpu venv-torch 1/1 failed" in error.value.message
    assert error.value.hint == "imgbuild build --push R/p --target cpu"


def test_an_index_takes_every_target():
    with pytest.raises(EngineError) as error:
        tell(LOST, BUILT, index="R/p/comfyui:latest")
    assert "R/p/comfyui:latest was not made or moved" in error.value.message
    assert error.value.hint.endswith("--target gb10 --on gb10=spark --target h100 --on h100=rack")


# --- the index ------------------------------------------------------------------------------------------


def test_name_of_an_index(matrix):
    targets = matrix.select(["gb10", "h100"])
    assert (
        reference("v1", matrix, targets, Options(push="r.example:5000/p/")) == "r.example:5000/p/comfyui:v1"
    )


@pytest.mark.parametrize(
    ("tag", "names", "push", "says"),
    [
        ("v1", ["ada", "h100"], "r.example/p", "ada, h100 are all linux/amd64"),
        ("v1", ["gb10", "h100"], None, "--index is made of pushed images"),
        ("a/b", ["gb10", "h100"], "r.example/p", "'a/b' is no tag"),
        ("h100", ["gb10", "h100"], "r.example/p", "that tag is the target's own"),
    ],
)
def test_what_cannot_be_an_index(matrix, tag, names, push, says):
    with pytest.raises(ConfigError) as error:
        reference(tag, matrix, matrix.select(names), Options(push=push))
    assert says in error.value.message


def test_no_local_engine_is_asked_for_a_machines_disk(env, monkeypatch):
    """A folder of that name here is another machine's."""

    class Api:
        base_url = "http+docker://ssh"

    class Client:
        api = Api()

        def info(self):
            return {"DockerRootDir": "/", "Architecture": "aarch64", "NCPU": 20, "MemTotal": 128}

    engine = Docker(env, context="spark")
    engine._client = Client()
    assert engine.data_root() is None
    assert engine.machine() == ("arm64", 20, 128)
    Api.base_url = "http+docker://localhost"
    assert engine.data_root() is not None
    assert machines.Assignment(context={"a": "x", "b": None, "c": "x"}).machines == ("x", None)


# --- what people see of it ------------------------------------------------------------------------------


def test_every_line_begins_with_its_target(tmp_path, capfdbinary):
    """Several programs write at once: lines stay whole, and the logs stay what the programs wrote."""
    script = "for i in 1 2 3 4 5; do printf 'a line '; sleep 0.02; printf '%s\\n' $i; done; printf 'no end'"

    def run(name):
        with (tmp_path / name).open("wb") as log:
            return proc.stream(["sh", "-c", script], log=log, prefix=f"{name} | ")

    with ThreadPoolExecutor(3) as pool:
        assert list(pool.map(run, ("gb10", "h100", "ada"))) == [0, 0, 0]
    lines = capfdbinary.readouterr().err.decode().splitlines()
    for name in ("gb10", "h100", "ada"):
        told = [f"a line {i}" for i in range(1, 6)] + ["no end"]
        assert [x for x in lines if x.startswith(name)] == [f"{name} | {x}" for x in told]
        assert (tmp_path / name).read_text() == "\n".join(told)
    assert len(lines) == 18


def test_an_interrupt_ends_what_other_threads_wait_for(tmp_path):
    with ThreadPoolExecutor(1) as pool, (tmp_path / "log").open("wb") as log:
        done = pool.submit(proc.stream, ["sleep", "60"], log=log, prefix="")
        while not proc._streaming:
            time.sleep(0.01)
        proc.stop_streams()
        assert done.result(timeout=10) == -15
