from __future__ import annotations

import os
import subprocess

import pytest

from imgbuild.errors import ConfigError
from imgbuild.settings import read_settings

PEM = "-----BEGIN CERTIFICATE-----\nMII\n-----END CERTIFICATE-----\n"


@pytest.fixture
def ca(tmp_path):
    path = tmp_path / "ca.pem"
    path.write_text(PEM)
    return path


def test_nothing_set_gives_no_secret():
    assert read_settings({}).secret() == ""


def test_everything_set(ca, tmp_path):
    env = {
        "SSL_CERT_FILE": str(ca),
        "https_proxy": "http://me:it's secret@proxy:3128",
        "NO_PROXY": "localhost",
        "PIP_INDEX_URL": "https://index.example/simple",
        "PIP_EXTRA_INDEX_URL": "https://a.example https://b.example",
        "PIP_FIND_LINKS": f"{tmp_path} https://links.example",
    }
    settings = read_settings(env)
    assert settings.wheel_folders == (tmp_path,)
    script = settings.secret()
    shown = subprocess.run(
        [
            "sh",
            "-c",
            f'{script}\nprintf "%s\\n" "$HTTPS_PROXY" "$SSL_CERT_FILE" "$UV_FIND_LINKS" "$UV_INDEX"',
        ],
        capture_output=True,
        text=True,
        check=True,
        env={"PATH": os.environ["PATH"]},
    ).stdout.splitlines()
    assert shown == [
        "http://me:it's secret@proxy:3128",
        "/run/secrets/ca",
        "https://links.example",
        "https://a.example https://b.example",
    ]
    assert str(tmp_path) not in script, "a folder of this machine means nothing in a build"


def test_host_side_keeps_its_own_paths(ca, tmp_path):
    settings = read_settings({"PIP_CERT": str(ca), "UV_FIND_LINKS": str(tmp_path)})
    env = settings.environment({"PATH": "/bin"})
    assert env["SSL_CERT_FILE"] == str(ca)
    assert env["UV_FIND_LINKS"] == str(tmp_path)
    assert env["PATH"] == "/bin"


@pytest.mark.parametrize(
    ("name", "text"), [("SSL_CERT_FILE", None), ("REQUESTS_CA_BUNDLE", "no certificate")]
)
def test_bad_bundle(tmp_path, name, text):
    path = tmp_path / "ca.pem"
    if text is not None:
        path.write_text(text)
    with pytest.raises(ConfigError, match=rf"{path} \({name}\)"):
        read_settings({name: str(path)})
