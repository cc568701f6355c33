from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from comfyrun import cli, envfile
from comfyrun.errors import ConfigError

if TYPE_CHECKING:
    from comfyrun.layout import Layout


def refused(text: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        envfile.parse(text, "f")
    assert caught.value.exit_code == 2
    return str(caught.value).splitlines()


@pytest.mark.parametrize(
    ("line", "value"),
    [
        ("A=b", "b"),
        ("A=", ""),
        ("  export A = b c  ", "b c"),
        ("A='b c'", "b c"),
        ('A="b c"', "b c"),
        ('A="it\'s"', "it's"),
        ("A='b' # why", "b"),
        ("A=b # why", "b"),
        ("A=b#c", "b#c"),
        ("A=# why", ""),
        ("A='b # c'", "b # c"),
        ("A=--x 'y z'", "--x 'y z'"),
        ("A=a=b", "a=b"),
        ("A=$HOME\\n", "$HOME\\n"),
        ("A=\x0cb\u2028c", "\x0cb\u2028c"),
    ],
)
def test_lines(line: str, value: str) -> None:
    assert envfile.parse(f"\n# a comment\n{line}\n", "f") == {"A": value}


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_line_ends(end: str) -> None:
    assert envfile.parse(end.join(["A=1", "B=2", ""]), "f") == {"A": "1", "B": "2"}


def test_every_mistake_with_its_line_and_without_values() -> None:
    text = 'A=\'secret\nnothing\n1X=secret\nB="a" secret\nC=1\nC=secret\nD=\0'
    assert refused(text) == [
        "f, line 1: A: a quote (') is opened and not closed",
        "f, line 2: has no `=`; a line is NAME=value",
        "f, line 3: what stands before the `=` is no variable's name",
        "f, line 4: B: something follows the closing quote; put the other kind of quotes around all of it",
        "f, line 6: C stands in line 5 already",
        "f, line 7: D holds a NUL, which no variable can",
    ]


def test_a_file(tmp_path: Path) -> None:
    path = tmp_path / "comfyrun.env"
    path.write_bytes("\ufeffCOMFY_PORT=9\n".encode())
    file = envfile.read(path)
    assert file == envfile.EnvFile(path=str(path), variables={"COMFY_PORT": "9"})


@pytest.mark.parametrize("name", ["none", "file/none"])
def test_no_file(tmp_path: Path, name: str) -> None:
    (tmp_path / "file").write_text("")
    assert envfile.read(tmp_path / name) is None


def bad(path: Path) -> str:
    with pytest.raises(ConfigError) as caught:
        envfile.read(path)
    text = str(caught.value)
    assert len(text.splitlines()) == 1
    assert text.startswith(str(path))
    return text


def test_a_directory(tmp_path: Path) -> None:
    assert "is a directory (an engine makes one" in bad(tmp_path)


def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    assert "is not a file" in bad(tmp_path / "pipe")


def test_not_text(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(b"A=1\nB=\xff\n")
    assert bad(tmp_path / "f").endswith("f, line 2: is not UTF-8")


def test_too_large(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(b"#" * (1 << 20) + b"\n")
    assert "is larger than 1 MiB" in bad(tmp_path / "f")


def test_unreadable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "f").write_text("")

    def refuse(*_arguments: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", refuse)
    assert "cannot be read: Permission denied. Mend it" in bad(tmp_path / "f")


@pytest.mark.skipif(os.getuid() == 0, reason="root may read everything")
def test_really_unreadable(tmp_path: Path) -> None:
    (tmp_path / "f").write_text("")
    (tmp_path / "f").chmod(0)
    assert "cannot be read: Permission denied" in bad(tmp_path / "f")


@given(st.text())
def test_any_text_is_read_or_refused(text: str) -> None:
    try:
        found = envfile.parse(text, "f")
    except ConfigError as error:
        assert error.messages
    else:
        assert all(isinstance(value, str) for value in found.values())


def test_serve_reads_it(layout: Layout, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "comfyrun.env").write_text("COMFY_PORT=4321\nHF_TOKEN=hunter2hunter2\n")
    assert cli.main(["--print"], {"COMFY_DATA": str(tmp_path)}, layout) == 0
    out = capsys.readouterr().out
    assert f"[COMFY_PORT in {tmp_path}/comfyrun.env]" in out
    assert "--port 4321" in out
    assert "HF_TOKEN" in out
    assert "hunter2" not in out


def test_serve_refuses_a_bad_one(layout: Layout, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "comfyrun.env").mkdir()
    assert cli.main([], {"COMFY_DATA": str(tmp_path)}, layout) == 2
    assert "is a directory" in capsys.readouterr().err
