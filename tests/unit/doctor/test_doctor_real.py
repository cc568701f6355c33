"""The parts that really touch a machine, on files of the test's own; and the command itself."""

import json
import os
import struct
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner
from doctor_machine import Machine

from imgbuild import doctor
from imgbuild.cli import doctor as verb
from imgbuild.doctor.mend.hands import own_hands
from imgbuild.doctor.platforms import EXIT_STATUS, PLATFORMS, foreign, tiny_program
from imgbuild.doctor.probe import NOT_FOUND, NOT_STARTED, TIMED_OUT, this_machine
from imgbuild.errors import ConfigError, EngineError, SelectionError

DOCTOR = Path(doctor.__file__).parent


@pytest.fixture
def probe(tmp_path):
    return this_machine({"PATH": f"{tmp_path}:{os.defpath}"})


def script(folder, name, text):
    path = folder / name
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return path


def test_run_never_raises(probe, tmp_path):
    (tmp_path / "broken").write_bytes(b"\x7fELF nonsense")
    (tmp_path / "broken").chmod(0o755)
    assert probe.run("no-such-program-here").returncode == NOT_FOUND
    assert probe.run("broken").returncode == NOT_STARTED
    assert probe.run("sleep", "5", timeout=0.1).returncode == TIMED_OUT
    assert probe.run("sh", "-c", "echo $WORD", env={"WORD": "hello"}).stdout == "hello\n"


def test_which_tells_programs_once(tmp_path):
    one, two = tmp_path / "one", tmp_path / "two"
    one.mkdir()
    two.mkdir()
    first, second = script(one, "tool", ""), script(two, "tool", "")
    (tmp_path / "link").symlink_to(one)
    probe = this_machine({"PATH": f"{one}:{tmp_path / 'link'}:{two}:{tmp_path / 'absent'}"})
    assert probe.which("tool") == (str(first), str(second))


def test_files_and_disks(probe, tmp_path):
    assert probe.read(tmp_path / "absent") is None
    assert probe.read(script(tmp_path, "file", "") / "below") is None
    with pytest.raises(OSError, match="directory"):
        probe.read(tmp_path)
    assert probe.listing(tmp_path / "absent") == ()
    assert probe.disk(tmp_path / "a" / "b").device == tmp_path.stat().st_dev


def test_tiny_programs_are_elf_of_their_platform():
    for p in PLATFORMS.values():
        program = tiny_program(p)
        machine, entry = struct.unpack_from("<H", program, 18)[0], struct.unpack_from("<Q", program, 24)[0]
        assert machine == p.elf_machine
        assert program[entry - 0x400000 :] == p.exit_code


@pytest.mark.skipif(os.uname().sysname != "Linux", reason="a Linux program")
def test_tiny_program_of_this_processor_runs(probe):
    own = [p for p in PLATFORMS.values() if p.uname == os.uname().machine]
    for p in own:
        assert probe.execute(tiny_program(p), env={}, timeout=10).returncode == EXIT_STATUS
    assert not foreign(frozenset(p.name for p in own), os.uname().machine)


def test_writing_is_whole_or_not_at_all(tmp_path, monkeypatch):
    hands = own_hands(this_machine({}), print)
    real = tmp_path / "etc" / "daemon.json"
    hands.write(real, "one")
    assert real.stat().st_mode & 0o777 == 0o644
    real.chmod(0o600)
    link = tmp_path / "link.json"
    link.symlink_to(real)
    hands.write(link, "two")
    assert link.is_symlink()
    assert real.read_text() == "two"
    assert real.stat().st_mode & 0o777 == 0o600

    def full(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        hands.write(real, "three")
    assert real.read_text() == "two"
    assert [p.name for p in real.parent.iterdir()] == ["daemon.json"]


def test_alive_knows_the_dead():
    hands = own_hands(this_machine({}), print)
    assert hands.alive(os.getpid())
    child = subprocess.Popen([sys.executable, "-c", ""], stdin=subprocess.DEVNULL)
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    assert not hands.alive(child.pid)  # ended, not collected
    child.wait()
    assert not hands.alive(child.pid)


def test_no_file_of_the_doctor_names_a_mirror_or_an_index():
    for path in DOCTOR.rglob("*.py"):
        text = path.read_text()
        assert "http://" not in text, path
        assert "https://" not in text, path


# the command


class App:
    def __init__(self, *, broken=False, env=None):
        self.env = env or {}
        self.cache = Path("/cache")
        self.broken = broken

    def matrix(self):
        if self.broken:
            raise ConfigError("the matrix has 1 mistake:\n  ada.yaml:3", hint="imgbuild schema")
        return self

    class comfyui:  # noqa: N801
        git = "https://git.invalid/comfyui"

    class Target:
        def __init__(self, platform):
            self.platform = platform

    targets = {"gb10": Target("linux/arm64"), "cpu": Target("linux/amd64")}  # noqa: RUF012

    def select(self, names, *, everything):
        assert everything
        if wrong := [n for n in names if n not in self.targets]:
            raise SelectionError(f"no target {wrong[0]!r}")
        return tuple(t for n, t in self.targets.items() if not names or n in names)


@pytest.fixture
def invoke(monkeypatch):
    def call(machine, *argv, app=None):
        monkeypatch.setattr(doctor, "this_machine", lambda _: machine.probe())
        monkeypatch.setattr(doctor, "own_hands", lambda *_: machine.hands())
        return CliRunner().invoke(verb.command, argv, obj=app or App())

    return call


def test_command_on_a_good_machine(invoke):
    result = invoke(Machine())
    assert result.exit_code == 0
    assert "0 errors" in result.stdout
    assert result.stderr == ""


def test_command_json_is_only_json(invoke):
    result = invoke(Machine().without("git", "mmdebstrap"), "--json")
    assert result.exit_code == 0
    assert {f["check"] for f in json.loads(result.stdout) if f["fixable"]} == {"git"}
    assert "apt-get" in result.stderr


def test_command_exits_5_on_an_error_and_offers_the_commands(invoke):
    result = invoke(Machine().down())
    assert result.exit_code == 5
    assert "setsid dockerd" in result.stderr
    assert "does not answer" in " ".join(result.stdout.split())


def test_command_fix_mends(invoke):
    machine = Machine().without("git")
    machine.replies["apt-get"] = lambda line: (
        machine.programs.update(git=("/usr/bin/git",)) or Machine().replies["mount"]
    )
    result = invoke(machine, "--fix", "--json")
    assert result.exit_code == 0
    assert "install" in result.stderr
    assert not [f for f in json.loads(result.stdout) if f["fixable"]]


@pytest.mark.parametrize("as_json", [(), ("--json",)])
def test_command_fix_without_root_prints_and_fails(invoke, as_json):
    machine = Machine(uid=1000).without("git")
    result = invoke(machine, "--fix", *as_json)
    assert isinstance(result.exception, EngineError)
    assert result.exception.exit_code == 5
    assert "has to be run as root" in result.stderr
    assert "install --no-install-recommends git" in result.stderr
    assert result.stdout


def test_command_with_a_broken_matrix_still_looks(invoke):
    result = invoke(Machine(), "--json", app=App(broken=True))
    found = json.loads(result.stdout)
    assert result.exit_code == 5
    assert found[0]["check"] == "matrix"
    assert found[0]["severity"] == "error"
    assert {"engine", "binfmt"} <= {f["check"] for f in found}


def test_command_with_a_broken_daemon_json(invoke):
    machine = Machine().down()
    machine.files["/etc/docker/daemon.json"] = "{"
    looked = invoke(machine, "--json")
    assert looked.exit_code == 5
    assert "not valid JSON" in json.loads(looked.stdout)[-1]["what"]
    mended = invoke(machine, "--fix")
    assert isinstance(mended.exception, ConfigError)
    assert "engine" in mended.stdout
    assert not machine.written


def test_command_looks_at_one_target(invoke):
    machine = Machine()
    machine.files = {"/etc/os-release": machine.files["/etc/os-release"]}
    result = invoke(machine, "--json", "--target", "cpu")
    assert result.exit_code == 0
    assert isinstance(invoke(machine, "--target", "gbb").exception, SelectionError)


def test_no_color(invoke):
    assert "\x1b[" not in invoke(Machine(), app=App(env={"NO_COLOR": "1"})).stdout
