from __future__ import annotations

import errno
import importlib

import click
import pytest

from imgbuild import cli
from imgbuild.cli import VERBS, main
from imgbuild.errors import ImgbuildError


def test_help_of_each_verb_is_its_own(capsys):
    for name, text in VERBS.items():
        command = importlib.import_module(f"imgbuild.cli.{name}").command
        assert command.get_short_help_str(limit=200) == text
        assert main([name, "--help"]) == 0
        assert "Usage: " in capsys.readouterr().out


def test_unknown_verb_names_the_nearest(capsys):
    assert main(["rendr"]) == 2
    assert "Did you mean 'render'?" in capsys.readouterr().err


def test_version(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.startswith("imgbuild, version ")


def test_project_that_is_none(tmp_path, capsys):
    assert main(["--project", str(tmp_path), "targets"]) == 2
    assert "it has no images/comfyui.yaml" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("raised", "code", "says"),
    [
        (KeyboardInterrupt(), 130, "interrupted"),
        (OSError(errno.ENOSPC, "No space left on device"), 11, "the disk is full"),
        (PermissionError(errno.EACCES, "Permission denied", "/x"), 1, "/x: Permission denied"),
        (ImgbuildError("oh", hint="do"), 1, "hint: do"),
    ],
)
def test_one_message_and_an_exit_code(monkeypatch, capsys, raised, code, says):
    @click.command("targets")
    def failing():
        raise raised

    monkeypatch.setattr(importlib.import_module("imgbuild.cli.targets"), "command", failing)
    assert main(["targets"]) == code
    err = capsys.readouterr().err
    assert says in err
    assert "Traceback" not in err


def test_every_failure_has_its_own_exit_code():
    from imgbuild import errors

    codes = [
        c.exit_code
        for c in vars(errors).values()
        if isinstance(c, type) and issubclass(c, errors.ImgbuildError)
    ]
    assert len(codes) == len(set(codes))
    assert cli.main is main


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        (["build"], 3, "no target was named"),
        (["build", "-t", "h1000"], 3, "did you mean 'h100'"),
        (["build", "--all", "-t", "h100"], 2, "--all and --target exclude one another"),
        (["build", "-t", "h100", "--push", "x", "--load"], 2, "exclude one another"),
        (["build", "-t", "h100", "--source", "comfyui"], 2, "write it as NAME=PATH"),
        (["build", "-t", "h100", "--source", "comfyiu=x"], 2, "did you mean 'comfyui'"),
        (["build", "-t", "h100", "--wheels", "/nowhere"], 2, "there is no such folder"),
        (["render", "gb01"], 3, "did you mean 'gb10'"),
        (["lock", "--source", "comfyui=/nowhere"], 2, "there is no such folder"),
    ],
)
def test_bad_options(root, capsys, words, code, says):
    assert main(["--project", str(root), *words]) == code
    assert says in capsys.readouterr().err
