from __future__ import annotations

import json
import os
import socket
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from comfyrun import cli, process
from comfyrun.layout import Layout


class Executed(Exception):  # noqa: N818
    """Instead of becoming another program."""


@pytest.fixture
def executed(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    calls: list[Any] = []

    def execvpe(program: str, argv: list[str], environment: dict[str, str]) -> None:
        calls.append((program, argv, environment, os.getcwd()))  # noqa: PTH109
        raise Executed

    monkeypatch.setattr(os, "execvpe", execvpe)
    monkeypatch.setattr(os, "chdir", calls.append)

    def run(argv: Any, environment: Any, server: Any, log: Any, stop_timeout: float) -> int:
        calls.append((argv, environment, server, log.mode, stop_timeout))
        return 42

    monkeypatch.setattr(process, "run", run)
    return calls


def free_port() -> int:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return int(server.getsockname()[1])


@pytest.fixture
def here(tmp_path: Path) -> dict[str, str]:
    return {
        "COMFY_DATA": str(tmp_path / "data"),
        "COMFY_CACHE": str(tmp_path / "cache"),
        "COMFY_LISTEN": "127.0.0.1",
        "COMFY_PORT": str(free_port()),
        "HOME": str(tmp_path),
    }


def test_print_as_text(layout: Layout, capsys: pytest.CaptureFixture[str]) -> None:
    environ = {"COMFY_ARGS": "--cpu", "HOME": "/root", "USER": "x", "LOGNAME": "x", "TOKEN": "secret"}
    assert cli.main(["serve", "--print", "--port", "99"], environ, layout) == 0
    out = capsys.readouterr().out
    assert "h100, ComfyUI 0.33.0, torch 2.13.0, CUDA 13.0, compute capability 9.0" in out
    assert "--port 99" in out
    assert "[command line]" in out
    assert "--cpu (COMFY_ARGS) replaces --gpu-only (profile default)" in out
    assert "secret" not in out


@pytest.mark.parametrize("arguments", [["--json"], ["--print", "--json"], ["serve", "--json", "--cpu"]])
def test_print_as_json(layout: Layout, capsys: pytest.CaptureFixture[str], arguments: list[str]) -> None:
    assert cli.main(arguments, {"COMFY_DATA": "/d"}, layout) == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["schema"] == 1
    assert shown["argv"][0] == "/opt/venv/bin/python"
    assert {"name": "--base-directory", "values": ["/d"], "origin": "COMFY_DATA"} in shown["options"]
    assert shown["profile"] == {"name": "default", "origin": "default"}


def test_serve_starts_comfyui(
    layout: Layout,
    here: dict[str, str],
    executed: list[Any],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert cli.main(["--cpu"], {**here, "COMFY_STOP_TIMEOUT": "25"}, layout) == 42
    workdir, (argv, environment, server, mode, stop_timeout) = executed
    assert workdir == str(tmp_path / "data")
    assert argv[0] == "/opt/venv/bin/python"
    assert "--cpu" in argv
    assert (server.host, server.port, server.tls) == ("127.0.0.1", int(here["COMFY_PORT"]), False)
    assert (mode, stop_timeout) == ("text", 25)
    assert environment["HF_HOME"] == str(tmp_path / "cache" / "huggingface")
    for name in ("models", "input", "output", "temp", "user", "custom_nodes"):
        assert (tmp_path / "data" / name).is_dir()
        assert list((tmp_path / "data" / name).iterdir()) == []
    assert (tmp_path / "cache" / "huggingface").is_dir()
    assert f"http://127.0.0.1:{here['COMFY_PORT']}; data {workdir}" in capsys.readouterr().err


def test_every_line_of_a_start_as_json(
    layout: Layout, here: dict[str, str], executed: list[Any], capfd: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["--cpu"], {**here, "COMFY_LOG": "json"}, layout) == 42
    assert executed[-1][3] == "json"
    lines = [json.loads(line) for line in capfd.readouterr().err.splitlines()]
    assert {line["source"] for line in lines} == {"comfyrun"}
    assert any("ComfyUI 0.33.0" in line["message"] for line in lines)
    assert cli.main(["--no-such-flag"], {**here, "COMFY_LOG": "json"}, layout) == 2
    assert json.loads(capfd.readouterr().err.splitlines()[0])["level"] == "error"


def test_the_nodes_verb(layout: Layout, here: dict[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["nodes", "list"], here, layout) == 0
    assert "no packages beside those of the image" in capsys.readouterr().out
    assert cli.main(["nodes", "install", "/no/such/node"], here, layout) == 2
    assert "neither a folder nor a file here" in capsys.readouterr().err
    assert cli.main(["nodes"], here, layout) == 2
    assert cli.main(["nodes", "--help"], here, layout) == 0
    assert capsys.readouterr().out.count("usage: comfyrun nodes install") == 2


def test_packages_for_another_image_are_mentioned(
    layout: Layout, here: dict[str, str], executed: list[Any], capsys: pytest.CaptureFixture[str]
) -> None:
    data = Path(here["COMFY_DATA"])
    (data / "custom_nodes" / "mine").mkdir(parents=True)
    for name in (".comfyrun.json", "requirements.txt"):
        (data / "custom_nodes" / "mine" / name).write_text("{}")
    (data / "python" / "torch-1.0" / "cp38-x86_64").mkdir(parents=True)
    assert cli.main(["--cpu"], here, layout) == 42
    assert "installed for another image (torch-1.0/cp38-x86_64)" in capsys.readouterr().err


def test_a_program_that_is_not_there(
    layout: Layout, here: dict[str, str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(os, "chdir", lambda _path: None)
    nowhere = Layout(etc=layout.etc, python=layout.etc / "no-python")
    assert cli.main(["--cpu"], here, nowhere) == 69
    assert "no-python cannot be started" in capsys.readouterr().err


def test_a_port_in_use_is_said_before_the_start(
    layout: Layout, here: dict[str, str], executed: list[Any], capsys: pytest.CaptureFixture[str]
) -> None:
    with socket.socket() as server:
        server.bind(("127.0.0.1", int(here["COMFY_PORT"])))
        server.listen()
        assert cli.main(["--cpu"], here, layout) == 69
    assert f"port {here['COMFY_PORT']} on 127.0.0.1 is in use" in capsys.readouterr().err
    assert executed == []


def test_shell_runs_in_the_environment_of_the_launch(
    layout: Layout, here: dict[str, str], executed: list[Any]
) -> None:
    with pytest.raises(Executed):
        cli.main(["shell", "python", "-c", "x"], here, layout)
    with pytest.raises(Executed):
        cli.main(["shell"], here, layout)
    (_, argv, environment, _), (shell, _, _, _) = executed
    assert argv == ["python", "-c", "x"]
    assert environment["PYTHONUNBUFFERED"] == "1"
    assert shell in ("/bin/bash", "/bin/sh")
    assert Path(here["COMFY_CACHE"], "huggingface").is_dir()


def test_shell_comes_up_without_a_usable_volume(
    layout: Layout, here: dict[str, str], executed: list[Any], tmp_path: Path
) -> None:
    (tmp_path / "data").write_text("a file in the way")
    with pytest.raises(Executed):
        cli.main(["shell"], here, layout)


def test_help_and_version(layout: Layout, capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in (["--help"], ["-h"], ["serve", "--help"]):
        assert cli.main(arguments, {}, layout) == 0
        assert capsys.readouterr().out.startswith("usage: comfyrun")
    assert cli.main(["--version"], {}, layout) == 0
    assert capsys.readouterr().out.startswith("comfyrun ")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["server"], "comfyrun has no command 'server' (did you mean serve?)"),
        (["bash"], "comfyrun shell PROGRAM"),
        (["health", "--redy"], "comfyrun health knows only --ready and --json, not --redy"),
    ],
)
def test_unknown_commands(
    layout: Layout, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    assert cli.main(arguments, {}, layout) == 2
    assert message in capsys.readouterr().err


def test_nothing_is_baked(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([], {}, Layout(etc=tmp_path)) == 2
    assert "profile.json is missing" in capsys.readouterr().err


def test_ctrl_c(layout: Layout, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(_environ: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "observe", interrupted)
    assert cli.main([], {}, layout) == 130


def test_observe() -> None:
    machine = cli.observe({"HOME": "/"})
    assert (machine.uid, machine.gid) == (os.getuid(), os.getgid())
    assert not machine.home_writable


def test_observe_a_uid_without_a_name(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(os, "getuid", lambda: 1_987_654_321)
    machine = cli.observe({"HOME": str(tmp_path)})
    assert machine.user is None
    assert machine.home_writable


NAMES = st.sampled_from(["PROFILE", "PORT", "LISTEN", "ARGS", "DATA", "CACHE"])
FLAGS = ("--cpu", "--gpu-only", "--port", "--listen", "--reserve-vram", "--fast", "--verbose")
OTHERS = ("--preview-method", "--base-directory", "8188", "0.5", "-1", "auto", "/x", "::1", "classic")
SIGNS = ("--", "-", "=", " ", "\\", "'", '"')
PIECES = st.sampled_from((*FLAGS, *OTHERS, *SIGNS))
# What a variable can hold: any bytes but NUL, as Python shows them, and NUL for good measure.
VALUES = st.one_of(
    st.text(),
    st.binary().map(lambda raw: raw.decode("utf-8", "surrogateescape")),
    st.lists(PIECES).map("".join),
    st.lists(PIECES).map(" ".join),
)


@settings(max_examples=500, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    environ=st.dictionaries(st.one_of(NAMES, st.text(max_size=8)).map("COMFY_{}".format), VALUES),
    arguments=st.lists(st.one_of(PIECES, st.text()), max_size=6),
    json_wanted=st.booleans(),
)
@example(environ={"COMFY_ARGS": "--port " + "9" * 5000}, arguments=[], json_wanted=False)
@example(environ={"COMFY_DATA": "/\udcff"}, arguments=["--listen="], json_wanted=False)
def test_no_environment_gives_a_traceback(
    layout: Layout,
    capsys: pytest.CaptureFixture[str],
    environ: dict[str, str],
    arguments: list[str],
    json_wanted: bool,
) -> None:
    code = cli.main(["serve", "--json" if json_wanted else "--print", *arguments], environ, layout)
    out, err = capsys.readouterr()
    assert code in (0, 2)
    assert (code == 0) == bool(out)
    assert (code == 2) == bool(err)
    assert "Traceback" not in err


NAME = st.text(alphabet=st.characters(exclude_characters="/"), min_size=1, max_size=300)


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=NAME, cache=NAME)
def test_no_directory_gives_a_traceback(
    layout: Layout,
    tmp_path: Path,
    executed: list[Any],
    capsys: pytest.CaptureFixture[str],
    data: str,
    cache: str,
) -> None:
    environ = {
        "COMFY_DATA": f"{tmp_path}/{data}",
        "COMFY_CACHE": f"{tmp_path}/{cache}",
        "COMFY_LISTEN": "127.0.0.1",
    }
    environ["COMFY_PORT"] = str(free_port())
    try:
        assert cli.main(["--cpu"], environ, layout) in (2, 42, 69)
    except Executed:
        pass
    else:
        assert capsys.readouterr().err
