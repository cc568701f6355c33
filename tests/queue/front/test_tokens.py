"""Tokens: made once, kept as hashes, read again when they change; and what `comfyrun api` refuses to start with."""

from __future__ import annotations

import json
import signal
import socket
import ssl
import subprocess
import time
from pathlib import Path

import httpx
import pytest
from frontkit import Api, Queue, serve

from comfywork.api.tokens import Tokens, hash_of, make, parse
from comfywork.errors import ConfigError

HASH = "0123456789abcdef" * 4


def test_a_token_is_shown_once_and_kept_as_a_hash(queue: Queue, tmp_path: Path) -> None:
    path = tmp_path / "tokens.yaml"
    done = queue.run(
        "api", "token", "user001", "--tokens-file", str(path), "--priority", "normal", "--rate", "30"
    )
    token = done.stdout.strip()
    assert token.startswith("cw_")
    assert len(token) > 40
    assert token not in path.read_text()
    assert token not in done.stderr
    assert path.stat().st_mode & 0o777 == 0o600
    grant = Tokens(path).grant(token)
    assert grant is not None
    assert (grant.tenant, grant.ceiling, grant.rate, grant.admin) == ("user001", "normal", 30.0, False)
    assert "has a token" in queue.run("api", "token", "user001", "--tokens-file", str(path), code=2).stderr
    again = json.loads(
        queue.run("api", "token", "user001", "--replace", "--json", TOKENS_FILE=str(path)).stdout
    )
    tokens = Tokens(path)
    assert tokens.grant(token) is None
    after = tokens.grant(again["token"])
    assert after is not None
    assert after.ceiling == "normal", "what it was allowed stays"


def test_comments_and_others_stay(tmp_path: Path) -> None:
    path = tmp_path / "tokens.yaml"
    path.write_text(
        f'# ours\nuser001: "{HASH}"\n# theirs\nuser002:\n  sha256: ["{"a" * 64}", "{"b" * 64}"]\n  depth: 3\n'
    )
    make(path, "user001", {}, replace=True)
    text = path.read_text()
    assert "# ours" in text
    assert "# theirs" in text
    grants = {grant.tenant: grant for grant in parse(text, "x")}
    assert grants["user002"].depth == 3
    assert len(grants["user002"].hashes) == 2
    assert grants["user001"].hashes != (HASH,)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "holds no token"),
        ("- a", "a table"),
        ("a: [", "no YAML"),
        ("user001: abc", "64 digits"),
        (f"User: {HASH}", "is no tenant"),
        (f"user001: {{sha256: {HASH}, priorty: low}}", "did you mean 'priority'?"),
        (f"user001: {{sha256: {HASH}, priority: highest}}", "no priority"),
        (f"user001: {{sha256: {HASH}, rate: -1}}", "above 0"),
        (f"user001: {{sha256: {HASH}, rate: .nan}}", "above 0"),
        (f"user001: {{sha256: {HASH}, depth: 1.5}}", "above 0"),
        (f"user001: {{sha256: {HASH}, admin: 1}}", "true or false"),
        (f"user001: {HASH}\nuser002: {HASH}", "the same token"),
        (f"1: {HASH}", "quotes"),
    ],
)
def test_bad_files(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "tokens.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError) as caught:
        Tokens(path)
    assert said in str(caught.value)


def test_every_mistake_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        parse("a: x\nb: y\n", "tokens.yaml")
    assert len(caught.value.messages) == 2


def test_a_server_that_runs_takes_a_new_token_up(api: Api, queue: Queue) -> None:
    before = api.tokens_file.read_text()
    try:
        token = make(api.tokens_file, "later", {})
        headers = {"Authorization": f"Bearer {token}"}
        time.sleep(1.2)
        assert httpx.get(f"{api.url}/v1/me", headers=headers).json()["tenant"] == "later"
        api.tokens_file.write_text("broken: [")
        time.sleep(1.2)
        assert httpx.get(f"{api.url}/v1/me", headers=headers).status_code == 200, "what it said before holds"
        api.tokens_file.write_text(before)
        time.sleep(1.2)
        assert httpx.get(f"{api.url}/v1/me", headers=headers).status_code == 401
    finally:
        api.tokens_file.write_text(before)
        time.sleep(1.2)


def test_what_it_does_not_start_with(queue: Queue, tmp_path: Path) -> None:
    path = tmp_path / "tokens.yaml"
    assert "TOKENS_FILE is not set" in queue.run("api", code=2).stderr
    assert "cannot be read" in queue.run("api", "--tokens-file", str(path), code=2).stderr.replace(
        "No such file or directory", "cannot be read"
    )
    path.write_text(f"user001: {hash_of('x')}\n")
    for listen, said in (
        ("x:1", "no address"),
        ("127.0.0.1:99999", "ADDRESS:PORT"),
        ("nonsense", "ADDRESS:PORT"),
    ):
        done = queue.run("api", "--listen", listen, code=2, TOKENS_FILE=str(path))
        assert said in done.stderr
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        where = f"127.0.0.1:{taken.getsockname()[1]}"
        assert "in use" in queue.run("api", "--listen", where, code=69, TOKENS_FILE=str(path)).stderr
    short = queue.run("api", code=2, TOKENS_FILE=str(path), METRICS_TOKEN="abc")
    assert "shorter" in short.stderr
    assert "abc" not in short.stderr
    half = queue.run("api", code=2, TOKENS_FILE=str(path), API_TLS_KEY=str(path))
    assert "go together" in half.stderr


def test_tls(queue: Queue, tmp_path: Path) -> None:
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes",
         "-keyout", tmp_path / "key.pem", "-out", tmp_path / "cert.pem", "-days", "1", "-subj", "/CN=127.0.0.1",
         "-addext", "subjectAltName=IP:127.0.0.1"],
        check=True, capture_output=True,
    )  # fmt: skip
    path = tmp_path / "tokens.yaml"
    token = make(path, "user001", {})
    environ = {
        **queue.environ,
        "TOKENS_FILE": str(path),
        "API_TLS_CERTIFICATE": str(tmp_path / "cert.pem"),
        "API_TLS_KEY": str(tmp_path / "key.pem"),
    }
    process, url, _ = serve(environ)
    try:
        assert url.startswith("https://")
        context = ssl.create_default_context(cafile=str(tmp_path / "cert.pem"))
        answer = httpx.get(f"{url}/v1/me", headers={"Authorization": f"Bearer {token}"}, verify=context)
        assert answer.json()["tenant"] == "user001"
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(20)


def test_no_token_in_the_log(api: Api) -> None:
    httpx.get(f"{api.url}/v1/jobs", headers={"Authorization": f"Bearer {api.tokens['user001']}"})
    assert api.tokens["user001"] not in "".join(api.log)
