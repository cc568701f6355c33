from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from comfyrun import cli, redact
from comfyrun.redact import HIDDEN

if TYPE_CHECKING:
    from comfyrun.layout import Layout


@pytest.mark.parametrize(
    "name",
    [
        "HF_TOKEN",
        "REDIS_PASSWORD",
        "AWS_SECRET_ACCESS_KEY",
        "api-key",
        "OPENAI_API_KEY",
        "DB_PASS",
        "SENTRY_DSN",
    ],
)
def test_secret_names(name: str) -> None:
    assert redact.is_secret(name)


@pytest.mark.parametrize(
    "name",
    [
        "TOKENIZERS_PARALLELISM",
        "tls-keyfile",
        "COMFY_TLS_KEY",
        "PATH",
        "PWD",
        "SSL_KEY_FILE",
        "HOME",
        "AUTHOR",
        "KEYBOARD",
        "TRITON_CACHE_DIR",
    ],
)
def test_harmless_names(name: str) -> None:
    assert not redact.is_secret(name)


SECRETS = [
    ("postgres://me:s3cr3t@db:5432/x", "s3cr3t"),
    ("http://user:p@ss@proxy:3128", "p@ss"),
    ("--front-end hf_abcdefghijkl", "abcdefghijkl"),
    ("ghp_0123456789abcdef", "0123456789abcdef"),
    ("sk-proj-0123456789", "0123456789"),
    ("AKIAIOSFODNN7EXAMPLE", "IOSFODNN7"),
    ("eyJhbGciOiJI.eyJzdWIiOiIx.c2lnbmF0dXJl", "c2lnbmF0dXJl"),
    ("Authorization: Bearer abc.def", "abc.def"),
    ("https://h/x?token=abc&y=1", "abc"),
    ("password='abc def'", "abc"),
    ("my_api_key=abc,x", "abc"),
]


@pytest.mark.parametrize(("text", "secret"), SECRETS)
def test_forms(text: str, secret: str) -> None:
    shown = redact.of().text(text)
    assert secret not in shown
    assert HIDDEN in shown


@pytest.mark.parametrize(
    "text",
    [
        "COMFY_TLS_KEY=/run/secrets/key",
        "http://127.0.0.1:8188",
        "--tls-keyfile /k",
        "sqlite:////data/user/comfyui.db",
        "user@host",
        "TOKENIZERS_PARALLELISM=false",
        "--cache-ram 1 2",
    ],
)
def test_what_stays(text: str) -> None:
    assert redact.of().text(text) == text


def test_values_of_secrets_are_known_wherever_they_stand() -> None:
    hide = redact.of({"HF_TOKEN": "opensesame", "SHORT_KEY": "data"}, {"DB_PASSWORD": "opensesame2"})
    assert hide.text("--x opensesame2 opensesame data") == f"--x {HIDDEN} {HIDDEN} data"


def test_command_lines() -> None:
    hide = redact.of()
    tokens = ["--api-key", "abc", "--token=abc", "--port", "1", "--secret", "--cpu"]
    assert hide.tokens(tokens) == [
        "--api-key",
        HIDDEN,
        f"--token={HIDDEN}",
        "--port",
        "1",
        "--secret",
        "--cpu",
    ]


@given(st.text())
def test_any_text(text: str) -> None:
    assert isinstance(redact.of({"A_TOKEN": text}).text(text), str)


def test_a_long_text_is_quick() -> None:
    redact.of().text("a-" * 60_000 + "=")
    redact.of().text("://" + "a" * 100_000)


ENVIRON = {
    "HF_TOKEN": "hf_SECRETSECRETSECRET",
    "HTTP_PROXY": "http://me:SECRETSECRET@proxy",
    "COMFY_ARGS": "--database-url postgres://me:SECRETSECRET@db --comfy-api-base hf_SECRETSECRETSECRET",
    "TRITON_CACHE_DIR": "/x?token=SECRETSECRET",
    "HF_HOME": "SECRETSECRET",
    "MY_PASSWORD": "SECRETSECRET",
}


@pytest.mark.parametrize("how", ["--print", "--json"])
def test_print_shows_no_secret(layout: Layout, capsys: pytest.CaptureFixture[str], how: str) -> None:
    environ = {**ENVIRON, "COMFY_ARGS": "--database-url postgres://me:SECRETSECRET@db"}
    assert cli.main([how, "--tls-keyfile", "/run/key", "--tls-certfile", "/run/cert"], environ, layout) == 0
    out, err = capsys.readouterr()
    assert "SECRET" not in out + err
    assert "/run/key" in out


@pytest.mark.parametrize(
    ("arguments", "environ"),
    [
        ([], {"COMFY_ARGS": "hf_SECRETSECRETSECRET"}),
        ([], {"COMFY_ARGS": "--preview-method http://me:SECRETSECRET@x"}),
        (["SECRETSECRET"], {"X_TOKEN": "SECRETSECRET"}),
        (["--database-url", "a", "SECRETSECRET"], {"X_TOKEN": "SECRETSECRET"}),
        ([], {"COMFY_CORS": "https://me:SECRETSECRET@x"}),
        ([], {"COMFY_PROFILE": "SECRETSECRET", "X_KEY": "SECRETSECRET"}),
    ],
)
def test_messages_show_no_secret(
    layout: Layout, capsys: pytest.CaptureFixture[str], arguments: list[str], environ: dict[str, str]
) -> None:
    assert cli.main(arguments, environ, layout) == 2
    out, err = capsys.readouterr()
    assert err
    assert "SECRET" not in out + err
