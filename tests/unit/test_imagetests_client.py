"""The shipped client against a server that misbehaves on purpose: retries, refusals, events, templates."""

from __future__ import annotations

import base64
import hashlib
import json
import socket
import struct
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
sys.path.append(str(ROOT / "tests/image"))

import comfyclient  # noqa: E402
import comfysocket  # noqa: E402
from comfyclient import (  # noqa: E402
    ComfyClient,
    ComfyError,
    FailedError,
    InterruptedPromptError,
    RefusedError,
    invert_workflow,
    load_template,
)

WORKFLOW = invert_workflow(8, 8, 0, "x")


class Script(BaseHTTPRequestHandler):
    """Answers what `server.answers` says, one after the other: (status, body), or None to hang up."""

    def do_GET(self):
        self.server.seen.append((self.command, self.path, b""))
        self.answer()

    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.seen.append((self.command, self.path, body))
        self.answer()

    def answer(self):
        made = self.server.answers.pop(0)
        made = made(self.server.seen) if callable(made) else made
        if made is None:
            self.close_connection = True
            self.connection.shutdown(socket.SHUT_RDWR)
            return
        status, data = made
        body = data if isinstance(data, bytes) else json.dumps(data).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setattr(comfyclient, "_PAUSE", 0.001)
    made = ThreadingHTTPServer(("127.0.0.1", 0), Script)
    made.answers, made.seen = [], []
    thread = threading.Thread(target=made.serve_forever, args=(0.01,))
    thread.start()
    yield made
    made.shutdown()
    made.server_close()
    thread.join()


@pytest.fixture
def client(server):
    return ComfyClient(f"http://127.0.0.1:{server.server_port}", timeout=5)


def prompt_id(seen):
    return json.loads(next(body for method, path, body in seen if path == "/prompt"))["prompt_id"]


def test_a_question_is_asked_again(server, client):
    server.answers = [None, (503, b"starting"), (200, {"fine": True})]
    assert client.get_json("/system_stats") == {"fine": True}
    assert len(server.seen) == 3


def test_an_answer_is_taken_even_if_it_is_no(server, client):
    server.answers = [(404, b"no")]
    with pytest.raises(OSError, match="404") as caught:
        client.get("/nothing")
    caught.value.close()
    assert len(server.seen) == 1


def test_it_gives_up_at_last(server, client):
    server.answers = [None] * 4
    with pytest.raises((OSError, comfyclient.HTTPException)):
        client.get("/system_stats")
    assert len(server.seen) == 4


def test_a_lost_answer_is_no_second_prompt(server, client):
    """It was queued, the answer got lost: the queue knows the id, and nothing is sent again."""
    server.answers = [
        None,
        lambda seen: (200, {"queue_running": [], "queue_pending": [[0, prompt_id(seen), {}]]}),
        lambda _: (200, {}),
    ]
    assert client.submit(WORKFLOW) == prompt_id(server.seen)
    assert [path for _, path, _ in server.seen].count("/prompt") == 1


def test_a_lost_prompt_is_sent_again_under_its_id(server, client):
    server.answers = [
        None,
        (200, {"queue_running": [], "queue_pending": []}),
        (200, {}),
        lambda seen: (200, {"prompt_id": prompt_id(seen), "node_errors": {}}),
    ]
    client.submit(WORKFLOW)
    sent = [json.loads(body)["prompt_id"] for _, path, body in server.seen if path == "/prompt"]
    assert len(sent) == 2
    assert len(set(sent)) == 1


def refusal(kind, **extra):
    error = {"type": kind, "message": "m", "details": "d", "extra_info": extra}
    return {
        "error": {"message": "Prompt outputs failed validation"},
        "node_errors": {"4": {"class_type": "Loader", "errors": [error]}},
    }


@pytest.mark.parametrize(
    ("kind", "extra", "says"),
    [
        (
            "value_not_in_list",
            {"input_name": "ckpt_name", "received_value": "sdxl", "input_config": [["sdxl-base", "other"], {}]},
            "node 4 (Loader): ckpt_name: there is no 'sdxl'; did you mean 'sdxl-base'?; put the file into models/checkpoints of the data volume",
        ),
        (
            "value_not_in_list",
            {"input_name": "sampler_name", "received_value": "zzz", "input_config": ["COMBO", {"options": ["euler", "heun"]}]},
            "node 4 (Loader): sampler_name: there is no 'zzz'; there are: euler, heun",
        ),
        (
            "value_not_in_list",
            {"input_name": "lora_name", "received_value": "zzz", "input_config": [[], {}]},
            "node 4 (Loader): lora_name: there is no 'zzz'; put the file into models/loras of the data volume (it is empty)",
        ),
        ("required_input_missing", {"input_name": "image"}, "image is missing: connect an output to it, or give it a value"),
        (
            "value_bigger_than_max",
            {"input_name": "steps", "received_value": 20000, "input_config": ["INT", {"min": 1, "max": 10000}]},
            "steps = 20000: from 1 to 10000 is allowed",
        ),
        ("return_type_mismatch", {"input_name": "model"}, "model is connected to another type of output (d)"),
        ("something_new", {}, "m: d"),
    ],
)  # fmt: skip
def test_a_refusal_names_the_remedy(server, client, kind, extra, says):
    server.answers = [(400, refusal(kind, **extra))]
    with pytest.raises(RefusedError) as caught:
        client.submit(WORKFLOW)
    assert caught.value.remedies[0].endswith(says)
    assert says in str(caught.value)


@pytest.mark.parametrize("body", [b"<html>proxy</html>", b"{}", b"[]", b'{"error": 5}'])
def test_a_refusal_of_another_form(server, client, body):
    server.answers = [(400, body)]
    with pytest.raises(ComfyError):
        client.submit(WORKFLOW)


def test_how_a_prompt_ended(server, client):
    ended = {"status": {"status_str": "success", "messages": [["execution_cached", {"nodes": ["1"]}]]}, "outputs": {"3": {"images": [{"filename": "a.png", "subfolder": "s", "type": "output"}]}}}  # fmt: skip
    server.answers = [(200, {}), (200, {"i": ended})]
    result = client.wait("i")
    assert result.cached == {"1"}
    assert [image.name for image in result.images] == ["s/a.png [output]"]


@pytest.mark.parametrize(
    ("message", "error"),
    [
        (["execution_interrupted", {"node_id": "5", "node_type": "KSampler"}], InterruptedPromptError),
        (["execution_error", {"node_id": "5", "node_type": "KSampler", "exception_type": "X", "exception_message": "y"}], FailedError),
    ],
)  # fmt: skip
def test_how_a_prompt_ended_badly(server, client, message, error):
    server.answers = [(200, {"i": {"status": {"status_str": "error", "messages": [message]}}})]
    with pytest.raises(error, match=r"KSampler \(node 5\)"):
        client.wait("i")


# --- the websocket -------------------------------------------------------------------------------------


def frame(kind, data, *, final=True):
    size = len(data)
    head = bytes([kind | (0x80 if final else 0)])
    if size < 126:
        head += bytes([size])
    elif size < 1 << 16:
        head += bytes([126]) + struct.pack(">H", size)
    else:
        head += bytes([127]) + struct.pack(">Q", size)
    return head + data


@pytest.fixture
def peer():
    """A websocket server of one connection: sends `frames` after the handshake, in pieces of a byte if told so."""

    class Peer:
        def __init__(self):
            self.listener = socket.create_server(("127.0.0.1", 0))
            self.url = f"ws://127.0.0.1:{self.listener.getsockname()[1]}/ws?clientId=x"
            self.frames, self.accept, self.pieces = b"", None, 1 << 16
            self.got = b""
            self.thread = threading.Thread(target=self.serve)

        def start(self):
            self.thread.start()
            return self.url

        def serve(self):
            connection, _ = self.listener.accept()
            with connection:
                head = b""
                while b"\r\n\r\n" not in head:
                    head += connection.recv(4096)
                key = next(
                    line.split()[1] for line in head.split(b"\r\n") if line.startswith(b"Sec-WebSocket-Key")
                )
                digest = base64.b64encode(
                    hashlib.sha1(key + b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11").digest()
                )
                answer = (
                    b"HTTP/1.1 101 Switching\r\nSec-WebSocket-Accept: "
                    + (self.accept or digest)
                    + b"\r\n\r\n"
                )
                for i in range(0, len(data := answer + self.frames), self.pieces):
                    connection.sendall(data[i : i + self.pieces])
                connection.settimeout(5)
                try:
                    while piece := connection.recv(4096):
                        self.got += piece
                except OSError:
                    pass

    made = Peer()
    yield made
    made.listener.close()
    if made.thread.ident:
        made.thread.join()


@pytest.mark.parametrize("pieces", [1, 7, 1 << 16])
def test_messages_come_whole(peer, pieces):
    """However the network cuts them; a ping in the middle of a message is answered."""
    peer.pieces = pieces
    long = b"x" * 70_000 if pieces > 1 else b"x" * 300
    peer.frames = (
        frame(1, b"hel", final=False)
        + frame(9, b"are you there")
        + frame(0, b"lo")
        + frame(2, long)
        + frame(1, b"")
    )
    connection = comfysocket.Socket(peer.start(), timeout=5)
    assert connection.receive(5) == ("text", b"hello")
    assert connection.receive(5) == ("binary", long)
    assert connection.receive(5) == ("text", b"")
    connection.close()
    peer.thread.join()
    mask, masked = peer.got[2:6], peer.got[6 : 6 + 13]
    assert peer.got[:2] == bytes([0x8A, 0x80 | 13])
    assert bytes(b ^ mask[i % 4] for i, b in enumerate(masked)) == b"are you there"


def test_a_wait_ends_and_goes_on(peer):
    """What had come of a message before the time was up is not lost."""
    peer.frames = frame(1, b"whole") + frame(1, b"half")[:3]
    connection = comfysocket.Socket(peer.start(), timeout=5)
    assert connection.receive(5).data == b"whole"
    with pytest.raises(TimeoutError):
        connection.receive(0.05)
    connection.close()


def test_a_close_is_told(peer):
    peer.frames = frame(8, struct.pack(">H", 1001) + b"going away")
    connection = comfysocket.Socket(peer.start(), timeout=5)
    with pytest.raises(comfysocket.SocketError, match="closed by the server: going away"):
        connection.receive(5)


def test_somebody_elses_answer_is_refused(peer):
    peer.accept = b"bm90IHRoYXQ="
    with pytest.raises(comfysocket.SocketError, match="another question"):
        comfysocket.Socket(peer.start(), timeout=5)


def test_a_server_without_websockets(server):
    server.answers = [(404, b"")]
    with pytest.raises(comfysocket.SocketError, match="404"):
        comfysocket.Socket(f"ws://127.0.0.1:{server.server_port}/ws", timeout=5)


def test_events_of_every_form():
    message = comfysocket.Message
    text = comfyclient._event(message("text", b'{"type": "progress", "data": {"value": 1, "max": 2}}'))
    assert (text.kind, text.data["max"]) == ("progress", 2)
    picture = comfyclient._event(message("binary", struct.pack(">II", 1, 2) + b"PNG"))
    assert (picture.kind, picture.picture) == ("preview", b"PNG")
    info = b'{"prompt_id": "i"}'
    both = comfyclient._event(message("binary", struct.pack(">II", 4, len(info)) + info + b"PNG"))
    assert (both.data["prompt_id"], both.picture) == ("i", b"PNG")
    assert comfyclient._event(message("binary", struct.pack(">I", 9))).kind == "binary 9"


# --- workflows -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["txt2img", "img2img", "batch"])
def test_a_shipped_workflow_is_what_the_document_asks_for(name):
    """POST /prompt takes the file as it is; each parameter points to a value that is there."""
    path = ROOT / f"images/workflows/{name}.json"
    assert set(json.loads(path.read_text())) == {"prompt", "extra_data"}
    template = load_template(path)
    values = {parameter: template.value(parameter) for parameter in template.parameters}
    assert {"steps": 20, "cfg": 8.0, "sampler": "euler", "seed": 42}.items() <= values.items()
    if name == "img2img":
        assert values["denoise"] == 0.75
    else:
        assert (values["width"], values["height"]) == (1024, 1024)
    assert values.get("batch") == (4 if name == "batch" else None)
    assert all(parameter["says"] for parameter in template.parameters.values())


def test_parameters_are_filled_in_a_copy():
    template = load_template(ROOT / "images/workflows/txt2img.json")
    assert template.fill(seed=7)["5"]["inputs"]["seed"] == 7
    assert template.value("seed") == 42
    with pytest.raises(ComfyError, match="no parameter sead; did you mean seed"):
        template.fill(sead=7)


def test_the_command_says_what_is_wrong(server, client, capsys, tmp_path):
    path = str(ROOT / "images/workflows/txt2img.json")
    assert comfyclient.main([client.base_url, path, "--set", "seed"]) == 1
    assert "write it as NAME=VALUE" in capsys.readouterr().err
    assert comfyclient.main([client.base_url, path, "--set", "steps=many"]) == 1
    assert "error:" in capsys.readouterr().err
