"""compose/ and its proxy with a real engine, the cpu image and a real nginx."""

from __future__ import annotations

import base64
import json
import os
import socket
import ssl
import subprocess
import urllib.error
import urllib.request
from contextlib import closing

import pytest
from kit import wait_for
from proxyimage import nginx_image
from served import IMAGE, UID, Place, docker, free_port, picture

from imgbuild.deploy.deployment import spell


@pytest.fixture
def place(client, tmp_path):
    if docker("image", "inspect", IMAGE).returncode:
        pytest.skip(f"no image {IMAGE}: imgbuild build --target cpu")
    if docker("compose", "version").returncode:
        pytest.skip("no docker compose: imgbuild doctor --fix")
    found = Place(tmp_path)
    found.prepare()
    written = found.tool("compose", "cpu", "-o", str(tmp_path / "compose"), *found.options)
    assert written.returncode == 0, written.stderr
    yield found
    found.clean()


def test_up_generates_down_up_and_the_data_is_still_there(place):
    place.compose("up", "--detach", "--wait")
    [container] = place.inspect()
    assert container["State"]["Health"]["Status"] == "healthy"
    [file] = place.generate()
    assert file.stat().st_uid == UID
    first = file.read_bytes()
    place.compose("down")
    assert not place.inspect()
    assert file.read_bytes() == first
    place.compose("up", "--detach", "--wait")
    assert file.read_bytes() == first
    [second] = place.generate(0x0088FF)
    assert second != file  # it went on counting where the first one had stopped


def test_the_container_is_confined(place):
    place.compose("up", "--detach", "--wait")
    [found] = place.inspect()
    host = found["HostConfig"]
    assert host["ReadonlyRootfs"] is True
    assert host["CapDrop"] == ["ALL"]
    assert host["SecurityOpt"] == ["no-new-privileges"]
    assert host["PidsLimit"] == 4096
    assert spell(host["ShmSize"]) == "1g"
    assert host["PortBindings"] == {"8188/tcp": [{"HostIp": "127.0.0.1", "HostPort": str(place.port)}]}
    assert host["RestartPolicy"] == {"Name": "on-failure", "MaximumRetryCount": 5}
    assert host["LogConfig"]["Config"] == {"max-size": "10m", "max-file": "5"}
    assert found["Config"]["User"] == f"{UID}:{UID}"
    assert found["Config"]["StopTimeout"] == 10
    assert (
        found["Config"]["Healthcheck"]["StartInterval"] == 2_000_000_000
    )  # the image's, since the file names none


def test_a_memory_limit_is_the_containers(place):
    place.compose("up", "--detach", "--wait", env={"COMFYUI_MEMORY": "3g"})
    [found] = place.inspect()
    assert found["HostConfig"]["Memory"] == found["HostConfig"]["MemorySwap"] == 3 << 30


def test_a_folder_that_is_gone_is_not_made(place):
    place.data.rmdir()
    done = place.compose("up", "--detach", check=False)
    assert done.returncode
    assert str(place.data) in done.stderr
    assert not place.data.exists()


# --- the proxy -----------------------------------------------------------------------------------

PASSWORD = "correct horse"


class Proxy:
    def __init__(self, place: Place, image: str) -> None:
        self.place, self.port = place, free_port()
        self.secrets = place.folder / "compose" / "secrets"
        self.env = {
            "COMFYUI_PROXY_IMAGE": image,
            "COMFYUI_PROXY_ADDRESS": "127.0.0.1",
            "COMFYUI_PROXY_PORT": str(self.port),
            "COMFYUI_PROXY_USER": f"{UID}:{UID}",
        }
        self.tls = ssl.create_default_context()
        self.tls.check_hostname, self.tls.verify_mode = False, ssl.CERT_NONE

    def up(self, *, check=True):
        return self.place.compose("--profile", "proxy", "up", "--detach", "--wait", check=check, env=self.env)

    def log(self):
        done = docker("logs", self.state()["Name"])
        return done.stdout + done.stderr

    def state(self):
        listed = self.place.compose(
            "--profile", "proxy", "ps", "--all", "--format", "json", "proxy", env=self.env
        )
        rows = [json.loads(line) for line in listed.stdout.splitlines() if line.startswith("{")]
        return rows[0] if rows else None

    def make_secrets(self):
        self.secrets.mkdir()
        hashed = subprocess.run(
            ["openssl", "passwd", "-6", "-stdin"], input=PASSWORD, capture_output=True, text=True, check=True
        ).stdout
        (self.secrets / "htpasswd").write_text(f"me:{hashed}")
        argv = [
            "openssl",
            "req",
            "-x509",
            "-newkey",
            "ec",
            "-pkeyopt",
            "ec_paramgen_curve:prime256v1",
            "-nodes",
        ]
        argv += ["-days", "2", "-subj", "/CN=localhost"]
        argv += ["-keyout", str(self.secrets / "key.pem"), "-out", str(self.secrets / "cert.pem")]
        subprocess.run(argv, check=True, capture_output=True)
        for path in self.secrets.iterdir():
            os.chown(path, UID, UID)
            path.chmod(0o400)

    def ask(self, path, *, body=None, password=PASSWORD, scheme="https"):
        request = urllib.request.Request(f"{scheme}://127.0.0.1:{self.port}{path}", data=body)
        if body is not None:
            request.add_header("Content-Type", "application/json")
        if password:
            request.add_header(
                "Authorization", f"Basic {base64.b64encode(f'me:{password}'.encode()).decode()}"
            )
        opener = urllib.request.build_opener(
            urllib.request.ProxyHandler({}), urllib.request.HTTPSHandler(context=self.tls), NoRedirects()
        )
        try:
            with opener.open(request, timeout=30) as answer:
                return answer.status, answer.read()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read()


class NoRedirects(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *args):
        return None


@pytest.fixture
def proxy(place, client, tmp_path):
    found = Proxy(place, nginx_image(client, tmp_path))
    yield found
    place.compose("--profile", "proxy", "down", check=False, env=found.env)


def test_the_proxy_does_not_start_without_a_password(proxy):
    done = proxy.up(check=False)
    assert done.returncode
    assert "secrets/" in done.stderr  # Docker names one of the three
    proxy.make_secrets()
    (proxy.secrets / "htpasswd").write_text("")
    assert proxy.up(check=False).returncode
    assert wait_for(lambda: "refused: secrets/htpasswd is empty" in proxy.log(), 20), proxy.log()
    with pytest.raises(urllib.error.URLError):
        proxy.ask("/system_stats")


def test_the_proxy_serves_who_knows_the_password(proxy, capsys):
    proxy.make_secrets()
    proxy.up()
    assert wait_for(lambda: proxy.state()["State"] == "running", 20)
    assert proxy.ask("/system_stats", password=None)[0] == 401
    assert proxy.ask("/system_stats", password="wrong")[0] == 401
    status, body = proxy.ask("/system_stats")
    assert (status, "comfyui_version" in json.loads(body)["system"]) == (200, True)
    assert proxy.ask("/", scheme="http", password=None)[0] == 301
    status, body = proxy.ask("/prompt", body=json.dumps({"prompt": picture()}).encode())
    prompt = json.loads(body)["prompt_id"]
    assert status == 200
    assert wait_for(lambda: prompt in json.loads(proxy.ask(f"/history/{prompt}")[1]), 30)
    assert list((proxy.place.data / "output").glob("deployed_*.png"))
    assert proxy.ask("/upload/image", body=b"x" * (101 << 20))[0] == 413
    assert b'"type": "status"' in websocket(proxy)
    # The limit comes before the password, so it slows down who guesses as well.
    answers = [proxy.ask("/prompt", body=b"{}", password="wrong")[0] for _ in range(60)]
    assert set(answers) == {401, 429}
    with capsys.disabled():
        print(f"\nproxy: {answers.count(429)} of 60 POSTs in a row were answered with 429")
    rows = [json.loads(line) for line in proxy.log().splitlines() if line.startswith("{")]
    assert {"me"} == {row["user"] for row in rows if row["status"] == 200}
    # A new ComfyUI has a new address, and the proxy goes on without a restart.
    proxy.place.compose("up", "--detach", "--wait", "--force-recreate", "comfyui", env=proxy.env)
    assert wait_for(lambda: proxy.ask("/system_stats")[0] == 200, 20)


def websocket(proxy):
    """What comes first over /ws, through TLS and with the password."""
    raw = socket.create_connection(("127.0.0.1", proxy.port), 20)
    with closing(proxy.tls.wrap_socket(raw)) as one:
        word = base64.b64encode(f"me:{PASSWORD}".encode()).decode()
        lines = (
            "GET /ws?clientId=test HTTP/1.1",
            "Host: localhost",
            f"Authorization: Basic {word}",
            "Upgrade: websocket",
            "Connection: Upgrade",
            "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
            "Sec-WebSocket-Version: 13",
        )
        one.sendall("\r\n".join((*lines, "", "")).encode())
        got = b""
        while b'"type"' not in got:
            chunk = one.recv(4096)
            assert chunk, got
            got += chunk
        assert got.startswith(b"HTTP/1.1 101")
        return got
