"""comfyrun front: what it makes of its options, and what it refuses."""

from __future__ import annotations

import pytest

from comfyrun import cli, front
from comfyrun.errors import ConfigError
from comfyrun.settings import FOREIGN

TOKEN = {"COMFYWORK_TOKEN": "cw_secret"}


def test_options_become_variables_and_the_rest_is_comfyuis() -> None:
    words = ["--tenant", "user001", "--port", "8200", "--api=http://queue:8190", "--priority", "low"]
    rest, environ = front.read(words, TOKEN, TOKEN)
    assert rest == ["--cpu", "--port", "8200"]
    assert environ == {
        **TOKEN,
        "COMFY_QUEUE_FRONT": "1",
        "COMFY_QUEUE_TENANT": "user001",
        "COMFY_QUEUE_PRIORITY": "low",
        "COMFYWORK_API": "http://queue:8190",
    }
    assert any("COMFY_QUEUE_FRONT".startswith(prefix) for prefix in FOREIGN), "serve takes it for no mistake"


def test_what_stands_in_the_file_counts_and_is_not_copied() -> None:
    """serve reads the file itself, and says where each value comes from."""
    rest, environ = front.read(["--cpu"], {}, {**TOKEN, "COMFY_QUEUE_TENANT": "user002"})
    assert rest == ["--cpu"]
    assert environ == {"COMFY_QUEUE_FRONT": "1"}


@pytest.mark.parametrize(
    ("words", "environ", "said"),
    [
        ([], TOKEN, "comfyrun front needs a tenant: --tenant user001"),
        (["--tenant", "User 1"], TOKEN, "'User 1' is no tenant"),
        (["--tenant", "user001"], {}, "comfyrun api token TENANT"),
        (["--tenant", "user001", "--priority", "hihg"], TOKEN, "did you mean high"),
        (["--tenant"], TOKEN, "--tenant needs a value"),
        (["--tenant", "--cpu"], TOKEN, "--tenant needs a value"),
    ],
)
def test_mistakes(words: list[str], environ: dict[str, str], said: str) -> None:
    with pytest.raises(ConfigError) as refused:
        front.read(words, environ, environ)
    assert said in "\n".join(refused.value.messages)


def test_every_mistake_at_once() -> None:
    with pytest.raises(ConfigError) as refused:
        front.read(["--priority", "first"], {}, {})
    assert len(refused.value.messages) == 3


def test_help_and_exit_code(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["front", "--help"], {}) == 0
    assert "--tenant NAME" in capsys.readouterr().out
    assert cli.main(["front"], {}) == 2
    assert "needs a tenant" in capsys.readouterr().err
