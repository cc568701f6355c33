"""What ComfyUI's frontend reads of the queue: the workers' models, and the trail of a job."""

from __future__ import annotations

import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import httpx
import pytest
import redis
from frontkit import WORKFLOW, Api, Queue, Worker

from comfywork import modellists, names, trail
from comfywork.trail import Trail


def _get(api: Api, tenant: str, path: str, **more: Any) -> httpx.Response:
    return httpx.get(
        f"{api.url}/v1/{path}",
        headers={"Authorization": f"Bearer {api.tokens[tenant]}"},
        params=more,
        timeout=10,
    )


def _state(node: str, value: float, state: str = "running") -> dict[str, Any]:
    shown = {"value": value, "max": 4, "state": state, "display_node_id": node, "parent_node_id": None}
    return {"nodes": {node: {**shown, "real_node_id": node, "prompt_id": "x", "node_id": node}}}


def test_the_trail_keeps_the_order_and_only_the_last_step(queue: Queue, worker: Worker, api: Api) -> None:
    job = queue.submit(workflow=WORKFLOW)
    lease = worker.take()
    heard = Trail(queue.broker.connection, lease.job, lease.token, 60)
    heard.hear("execution_start", {"prompt_id": job.id})
    heard.hear("executing", {"node": "1", "prompt_id": job.id})
    for value in (1, 2, 3):
        heard.hear("progress_state", _state("1", value))
        heard.hear("progress", {"value": value, "max": 4, "node": "1", "prompt_id": job.id})
    heard.hear("executed", {"node": "1", "output": {"text": ["x" * 500]}, "prompt_id": job.id})
    heard.hear("progress_state", _state("1", 4, "finished"))
    heard.hear("status", {"not": "of a job"})
    heard.flush()
    first = _get(api, "user001", f"jobs/{job.id}/trail").json()
    assert [entry["k"] for entry in first["entries"]] == [
        "execution_start", "executing", "progress_state", "progress", "executed", "progress_state",
    ]  # fmt: skip
    assert first["entries"][2]["d"]["nodes"]["1"]["value"] == 3
    assert first["entries"][4]["d"] == {"node": "1", "output": {"text": ["x" * 500]}}
    assert {entry["t"] for entry in first["entries"]} == {lease.token}
    assert first["job"]["state"] == "processing"
    assert not heard.fresh
    heard.ended({"outputs": {"2": {"images": []}}, "meta": {}, "prompt": "left out"})
    heard.flush()
    second = _get(api, "user001", f"jobs/{job.id}/trail", after=first["next"]).json()
    assert second["entries"] == [
        {"t": lease.token, "k": "history", "d": {"outputs": {"2": {"images": []}}, "meta": {}}}
    ]
    assert _get(api, "user001", f"jobs/{job.id}/trail", after=second["next"]).json()["entries"] == []
    assert 0 < queue.broker.connection.ttl(names.trail(job.id)) <= 60


def test_a_trail_is_its_tenants(queue: Queue, api: Api) -> None:
    job = queue.submit(tenant="user001")
    assert _get(api, "user001", f"jobs/{job.id}/trail").status_code == 200
    assert _get(api, "user002", f"jobs/{job.id}/trail").status_code == 404
    assert _get(api, "staff", f"jobs/{job.id}/trail").status_code == 200
    assert _get(api, "user001", f"jobs/{job.id}/trail", after="$").status_code == 422


def test_what_redis_does_not_take_is_kept(queue: Queue) -> None:
    away = Trail(
        redis.Redis(port=1, socket_connect_timeout=0.2), "0b1e9f0e-6d0f-4a59-9a30-0a5ad7ac7a11", 1, 60
    )
    away.hear("executing", {"node": "1"})
    with pytest.raises(redis.RedisError):
        away.flush()
    assert away.fresh
    away._redis = queue.broker.connection
    away.hear("executing", {"node": "2"})
    away.flush()
    found, _ = queue.broker.trail("0b1e9f0e-6d0f-4a59-9a30-0a5ad7ac7a11")
    assert [entry["d"]["node"] for entry in found] == ["1", "2"]


def test_pages_and_what_is_too_long(queue: Queue) -> None:
    job = "0b1e9f0e-6d0f-4a59-9a30-0a5ad7ac7a11"
    heard = Trail(queue.broker.connection, job, 1, 60)
    heard.hear("executed", {"node": "long", "output": {"text": ["x" * (trail.LONGEST + 1)]}})
    for number in range(trail.PAGE + 7):
        heard.hear("executing", {"node": str(number), "nan": float("nan")})
    heard.flush()
    first, after = queue.broker.trail(job)
    second, _ = queue.broker.trail(job, after)
    assert (len(first), len(second)) == (trail.PAGE, 7)
    assert [entry["d"]["node"] for entry in first + second] == [str(n) for n in range(trail.PAGE + 7)]
    assert first[0]["d"]["nan"] is None, "JSON has no NaN"


@pytest.fixture
def comfyui() -> Any:
    """What ComfyUI answers to /models."""
    folders = {"checkpoints": ["a.safetensors", "sub/b.safetensors"], "loras": [], "a folder": ["c.pt"]}

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            import json
            from urllib.parse import unquote

            name = unquote(self.path.removeprefix("/models").strip("/"))
            found: Any = [*folders, "configs"] if not name else folders.get(name)
            body = json.dumps(found).encode()
            self.send_response(200 if found is not None else 404)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}", folders
    server.shutdown()
    server.server_close()


def test_models_of_the_workers(queue: Queue, api: Api, comfyui: Any) -> None:
    url, folders = comfyui
    assert _get(api, "user001", "models").json() == {"folders": {}, "workers": 0}
    over = threading.Event()
    lister = modellists.Lister(url, queue.broker.connection, "worker-1", every=0.1)
    thread = threading.Thread(target=lister.run, args=(over,))
    thread.start()
    try:
        modellists.Lister(url, queue.broker.connection, "worker-2").tell({"checkpoints": ["a.safetensors"]})

        def offered() -> Any:
            return _get(api, "user001", "models").json()

        for _ in range(50):
            if offered()["workers"] == 2:
                break
            over.wait(0.05)
        assert offered() == {
            "folders": {
                "checkpoints": {"a.safetensors": 2, "sub/b.safetensors": 1},
                "a folder": {"c.pt": 1},
            },
            "workers": 2,
        }
        folders["loras"].append("new.safetensors")
        for _ in range(50):
            if "loras" in offered()["folders"]:
                break
            over.wait(0.05)
        assert offered()["folders"]["loras"] == {"new.safetensors": 1}, "without a restart"
        assert queue.broker.connection.ttl(names.models("worker-2")) > 60
    finally:
        over.set()
        thread.join(5)


def test_more_models_than_there_is_room_for() -> None:
    found = {"few": ["a"], "many": [f"{n:06}-{n * 7919 % 999983}" * 4 for n in range(60_000)]}
    packed, left_out = modellists.packed_lists(found)
    assert len(packed) <= 1 << 20
    assert left_out >= 40_000
    kept = modellists._unpacked(packed)
    assert kept["few"] == ["a"], "small folders are whole"
    assert sum(map(len, kept.values())) + left_out == 60_001
