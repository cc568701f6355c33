"""Jobs over HTTP: every state, every refusal, two tenants."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from frontkit import METRICS_TOKEN, WORKFLOW, Api, Queue, Worker, png


class Http(httpx.Client):
    def __init__(self, api: Api, tenant: str | None) -> None:
        headers = {"Authorization": f"Bearer {api.tokens[tenant]}"} if tenant else {}
        super().__init__(base_url=api.url, headers=headers, timeout=20)

    def submit(self, code: int = 201, **more: Any) -> dict[str, Any]:
        answer = self.post("/v1/jobs", json={"workflow": WORKFLOW, **more})
        assert answer.status_code == code, answer.text
        return answer.json()


@pytest.fixture
def one(api: Api) -> Iterator[Http]:
    with Http(api, "user001") as found:
        yield found


@pytest.fixture
def two(api: Api) -> Iterator[Http]:
    with Http(api, "user002") as found:
        yield found


@pytest.fixture
def staff(api: Api) -> Iterator[Http]:
    with Http(api, "staff") as found:
        yield found


def problem(answer: httpx.Response, status: int) -> dict[str, Any]:
    assert answer.status_code == status, answer.text
    assert answer.headers["Content-Type"] == "application/problem+json"
    found = answer.json()
    assert found["status"] == status
    assert found["detail"]
    return found


def test_a_job_through_all_its_states(one: Http, worker: Worker) -> None:
    answer = one.post("/v1/jobs", json={"workflow": WORKFLOW})
    job = answer.json()
    assert answer.headers["Location"] == f"/v1/jobs/{job['id']}"
    assert (job["state"], job["position"], job["tenant"]) == ("pending", 0, "user001")

    lease = worker.take()
    worker.progress(lease, 1, 5, 10)
    job = one.get(answer.headers["Location"]).json()
    assert (job["state"], job["progress"]["fraction"], job["worker"]) == ("processing", 0.75, "worker-1")

    worker.complete(lease)
    job = one.get(answer.headers["Location"]).json()
    assert (job["state"], job["progress"]["fraction"]) == ("completed", 1.0)
    (output,) = job["outputs"]
    picture = one.get(output["url"])
    assert picture.content == png()
    assert picture.headers["Content-Type"] == "image/png"
    assert picture.headers["Content-Disposition"] == 'inline; filename="2_0.png"'
    assert picture.headers["X-Content-Type-Options"] == "nosniff"
    assert "sandbox" in picture.headers["Content-Security-Policy"]
    assert one.get(output["url"], headers={"If-None-Match": picture.headers["ETag"]}).status_code == 304


@pytest.mark.parametrize(
    ("wanted", "status", "begin", "end"),
    [
        ("bytes=0-7", 206, 0, 8),
        ("bytes=8-", 206, 8, None),
        ("bytes=-4", 206, -4, None),
        ("bytes=5-1000000", 206, 5, None),
        ("bytes=0-1,3-4", 200, 0, None),
        ("lines=1-2", 200, 0, None),
        ("bytes=9-2", 200, 0, None),
    ],
)
def test_ranges(one: Http, worker: Worker, wanted: str, status: int, begin: int, end: int | None) -> None:
    job = one.submit()
    worker.complete(worker.take())
    answer = one.get(f"/v1/jobs/{job['id']}/outputs/2_0.png", headers={"Range": wanted})
    assert answer.status_code == status
    assert answer.content == png()[begin:end]
    if status == 206:
        assert answer.headers["Content-Range"].endswith(f"/{len(png())}")


def test_a_range_beyond_the_end(one: Http, worker: Worker) -> None:
    job = one.submit()
    worker.complete(worker.take())
    answer = one.get(f"/v1/jobs/{job['id']}/outputs/2_0.png", headers={"Range": "bytes=900000-"})
    problem(answer, 416)
    assert answer.headers["Content-Range"] == f"bytes */{len(png())}"


@pytest.mark.parametrize(
    "content", [b"<script>alert(1)</script>", b'<svg xmlns="http://www.w3.org/2000/svg"/>']
)
def test_what_a_browser_would_run_is_an_attachment(one: Http, worker: Worker, content: bytes) -> None:
    job = one.submit()
    worker.complete(worker.take(), {"2_0.png": content})
    answer = one.get(f"/v1/jobs/{job['id']}/outputs/2_0.png")
    assert answer.headers["Content-Type"] == "application/octet-stream"
    assert answer.headers["Content-Disposition"].startswith("attachment")


def test_failed_and_run_again(one: Http, worker: Worker) -> None:
    job = one.submit()
    worker.fail(worker.take())
    found = one.get(f"/v1/jobs/{job['id']}").json()
    assert found["state"] == "failed"
    assert found["failure"] == {
        "kind": "execution",
        "message": "node 2 raised",
        "details": "RuntimeError in node 2",
    }
    again = one.post(f"/v1/jobs/{job['id']}/retry")
    assert again.status_code == 201
    assert again.json()["id"] != job["id"]
    problem(one.post(f"/v1/jobs/{again.json()['id']}/retry"), 409)


def test_cancel_in_every_state(one: Http, worker: Worker) -> None:
    waiting = one.submit()
    assert one.post(f"/v1/jobs/{waiting['id']}/cancel").json()["state"] == "cancelled"
    running = one.submit()
    lease = worker.take()
    found = one.post(f"/v1/jobs/{running['id']}/cancel").json()
    assert (found["state"], found["cancelling"]) == ("processing", True)
    worker.cancelled(lease)
    assert one.get(f"/v1/jobs/{running['id']}").json()["state"] == "cancelled"
    assert one.post(f"/v1/jobs/{running['id']}/cancel").json()["state"] == "cancelled"
    done = one.submit()
    worker.complete(worker.take())
    assert one.post(f"/v1/jobs/{done['id']}/cancel").json()["state"] == "completed"


def test_priority(one: Http, api: Api, worker: Worker) -> None:
    first, second = one.submit(), one.submit()
    moved = one.put(f"/v1/jobs/{second['id']}/priority", json={"priority": "high"}).json()
    assert (moved["priority"], moved["position"]) == ("high", 0)
    assert worker.take().job == second["id"]
    problem(one.put(f"/v1/jobs/{second['id']}/priority", json={"priority": "low"}), 409)
    problem(one.put(f"/v1/jobs/{first['id']}/priority", json={"priority": "highest"}), 422)


def test_a_ceiling_of_priority(api: Api) -> None:
    with Http(api, "little") as little:
        assert (
            "normal at most"
            in problem(little.post("/v1/jobs", json={"workflow": WORKFLOW, "priority": "high"}), 403)[
                "detail"
            ]
        )
        job = little.submit(priority="low")
        problem(little.put(f"/v1/jobs/{job['id']}/priority", json={"priority": "high"}), 403)
        assert little.put(f"/v1/jobs/{job['id']}/priority", json={"priority": "normal"}).status_code == 200


def test_depth_and_rate(api: Api) -> None:
    with Http(api, "little") as little:
        little.submit()
        little.submit()
        answer = little.post("/v1/jobs", json={"workflow": WORKFLOW})
        assert "2 is the limit" in problem(answer, 429)["detail"]
        assert int(answer.headers["Retry-After"]) >= 1
    with Http(api, "slow") as slow:
        codes = [slow.post("/v1/jobs", json={"workflow": WORKFLOW}).status_code for _ in range(6)]
        assert codes.count(429) >= 2  # a minute may begin in between
        assert codes[:2] == [201, 201]


def test_the_same_submission_is_the_same_job(one: Http, two: Http) -> None:
    job_id = str(uuid.uuid4())
    assert one.submit(id=job_id)["id"] == one.submit(id=job_id)["id"] == job_id
    assert len(one.get("/v1/jobs").json()["jobs"]) == 1
    problem(one.post("/v1/jobs", json={"workflow": WORKFLOW, "id": job_id, "priority": "low"}), 409)
    assert (
        "user001"
        not in problem(two.post("/v1/jobs", json={"workflow": WORKFLOW, "id": job_id}), 409)["detail"]
    )


def test_no_token_wrong_token(api: Api) -> None:
    with Http(api, None) as nobody:
        for method, path in [
            ("GET", "/v1/jobs"),
            ("POST", "/v1/jobs"),
            ("GET", "/v1/workers"),
            ("GET", "/v1/events"),
            ("POST", "/v1/inputs?name=a.png"),
            ("GET", "/v1/whatever"),
            ("GET", "/metrics"),
        ]:
            answer = nobody.request(method, path)
            assert problem(answer, 401)["hint"]
            assert answer.headers["WWW-Authenticate"].startswith("Bearer")
        for header in ("Bearer wrong", "Basic dXNlcjp4", "Bearer", f"Bearer {METRICS_TOKEN}", "Bearer \xff"):
            problem(nobody.get("/v1/jobs", headers={"Authorization": header.encode("latin-1")}), 401)
        assert nobody.get("/health").json() == {"status": "ok"}
        assert nobody.get("/ready").status_code == 200
        assert nobody.get("/openapi.json").status_code == 200


def test_a_foreign_job_is_no_job(one: Http, two: Http, worker: Worker) -> None:
    job = one.submit()
    worker.complete(worker.take())
    unknown = f"/v1/jobs/{uuid.uuid4()}"
    for method, tail, body in [
        ("GET", "", None),
        ("GET", "/outputs/2_0.png", None),
        ("POST", "/cancel", None),
        ("PUT", "/priority", {"priority": "low"}),
        ("POST", "/retry", None),
    ]:
        foreign = two.request(method, f"/v1/jobs/{job['id']}{tail}", json=body)
        missing = two.request(method, f"{unknown}{tail}", json=body)
        told = problem(foreign, 404)["detail"].replace(job["id"], "ID")
        assert told == problem(missing, 404)["detail"].replace(unknown.rpartition("/")[2], "ID")
    assert two.get("/v1/jobs").json() == {"jobs": [], "next": None}
    problem(two.get("/v1/jobs", params={"tenant": "user001"}), 403)
    problem(two.post("/v1/jobs", json={"workflow": WORKFLOW, "tenant": "user001"}), 403)
    problem(two.post("/v1/inputs", params={"name": "a.png", "tenant": "user001"}, content=b"x"), 403)


def test_a_foreign_input_is_refused(one: Http, two: Http) -> None:
    workflow = {**WORKFLOW, "3": {"class_type": "LoadImage", "inputs": {"image": "cat.png"}}}
    answer = one.post("/v1/inputs", params={"name": "Cat.PNG"}, content=png())
    assert answer.status_code == 201
    stored = answer.json()
    assert stored["key"].startswith("user001/inputs/")
    assert (stored["size"], stored["media_type"]) == (len(png()), "image/png")
    body = {"workflow": workflow, "inputs": {"cat.png": stored["key"]}}
    assert one.post("/v1/jobs", json=body).status_code == 201
    problem(two.post("/v1/jobs", json=body), 422)
    problem(one.post("/v1/jobs", json={**body, "inputs": {"dog.png": stored["key"]}}), 422)


def test_bodies_too_large_are_refused_before_they_are_read(api: Api, one: Http) -> None:
    large = {**WORKFLOW, "3": {"class_type": "Note", "inputs": {"text": "x" * 120_000}}}
    assert "the limit" in problem(one.post("/v1/jobs", json={"workflow": large}), 422)["detail"]
    problem(one.post("/v1/jobs", content=b"x" * 300_000), 413)

    def endless() -> Iterator[bytes]:
        for _ in range(64):
            yield b"x" * 65536

    problem(one.post("/v1/inputs", params={"name": "a.bin"}, content=endless()), 413)
    problem(one.post("/v1/inputs", params={"name": "a.bin"}, content=b"x" * 1_000_001), 413)


@pytest.mark.parametrize(
    "body",
    [
        b"{",
        b"\xff\xfe",
        b'{"workflow": NaN}',
        b"[" * 20_000,
        b'{"workflow": {"1": {"class_type": "A", "inputs": {"a": NaN}}}}',
        b'{"workflow": {"\\ud800": {"class_type": 1, "inputs": {}}}}',
        b'{"workflow": {}}',
        b'{"workflow": {"nodes": [], "links": []}}',
        b'{"workflow": {"1": {"class_type": "A", "inputs": {"a": ["2", 0]}}}}',
        b'{"workflow": {"1": {"class_type": "A", "inputs": {}}}, "timeout": 1e300}',
        b'{"workflow": {"1": {"class_type": "A", "inputs": {}}}, "id": "../../etc"}',
        b'{"workflow": {"1": {"class_type": "A", "inputs": {}}}, "tenant": "a/b"}',
        b'{"workflow": {"1": {"class_type": "A", "inputs": {}}}, "colour": 1}',
        b'{"workflow": {"1": {"class_type": "A", "inputs": {}}}, "priority": "\\u0000"}',
    ],
)
def test_bad_bodies(one: Http, body: bytes) -> None:
    answer = one.post("/v1/jobs", content=body, headers={"Content-Type": "application/json"})
    assert answer.status_code in (400, 422), answer.text
    problem(answer, answer.status_code)
    assert one.get("/v1/jobs").json()["jobs"] == []


def test_pages(one: Http, two: Http, staff: Http) -> None:
    ids = [one.submit()["id"] for _ in range(7)]
    two.submit()
    one.post(f"/v1/jobs/{ids[3]}/cancel")
    found: list[str] = []
    before: dict[str, Any] = {}
    while True:
        page = one.get("/v1/jobs", params={"limit": 3, **before}).json()
        found += [job["id"] for job in page["jobs"]]
        if page["next"] is None:
            break
        before = {"before": repr(page["next"])}
    assert found == ids[::-1]
    cancelled = one.get("/v1/jobs", params={"state": ["cancelled", "failed"], "limit": 1}).json()
    assert [job["id"] for job in cancelled["jobs"]] == [ids[3]]
    assert len(staff.get("/v1/jobs").json()["jobs"]) == 8
    assert len(staff.get("/v1/jobs", params={"tenant": "user002"}).json()["jobs"]) == 1


def test_an_admin_acts_for_others(staff: Http, one: Http) -> None:
    job = staff.submit(tenant="user001", priority="high")
    assert one.get(f"/v1/jobs/{job['id']}").json()["tenant"] == "user001"
    assert staff.post(f"/v1/jobs/{job['id']}/cancel").json()["state"] == "cancelled"


def test_hosts_are_for_admins(one: Http, two: Http, staff: Http, worker: Worker) -> None:
    one.submit()
    worker.take()
    (seen,) = two.get("/v1/workers").json()["workers"]
    assert (seen["gpu"], seen["state"]) == ("NVIDIA H100", "busy")
    assert (seen["host"], seen["job"], seen["image"]) == ("", "", "")
    (seen,) = staff.get("/v1/workers").json()["workers"]
    assert seen["host"] == "gpu-machine-7"


def test_queues(one: Http, two: Http) -> None:
    one.submit()
    two.submit(priority="low")
    found = two.get("/v1/queues").json()
    assert [(entry["tenant"], entry["waiting"]) for entry in found["queues"]] == [("user002", 1)]
    assert found["waiting"] == 2


def test_me(api: Api) -> None:
    with Http(api, "little") as little:
        assert little.get("/v1/me").json() == {
            "tenant": "little",
            "admin": False,
            "priority": "normal",
            "rate": 0.0,
            "depth": 2,
        }


def test_security_headers(one: Http) -> None:
    for path in ("/", "/v1/jobs", "/nothing", "/docs"):
        headers = one.get(path).headers
        assert "default-src 'none'" in headers["Content-Security-Policy"]
        assert headers["X-Content-Type-Options"] == "nosniff"
        assert headers["X-Frame-Options"] == "DENY"
        assert "Access-Control-Allow-Origin" not in headers
    preflight = one.options(
        "/v1/jobs", headers={"Origin": "https://evil.example", "Access-Control-Request-Method": "POST"}
    )
    assert "Access-Control-Allow-Origin" not in preflight.headers


def test_unknown_places(one: Http) -> None:
    problem(one.get("/v1/nothing"), 404)
    answer = one.delete("/v1/jobs")
    problem(answer, 405)
    assert answer.headers["Allow"] == "GET, POST"
    assert one.delete(f"/v1/jobs/{uuid.uuid4()}").headers["Allow"] == "GET"
    problem(one.post("/v1/inputs", params={"name": "a.png"}), 422)


def test_redis_gone_and_back(queue: Queue, api: Api, one: Http, own_redis: Any) -> None:
    own_redis.stop()
    try:
        answer = one.get("/v1/jobs")
        assert "cannot be reached" in problem(answer, 503)["detail"]
        assert "Retry-After" in answer.headers
        with Http(api, None) as nobody:
            ready = nobody.get("/ready")
            assert ready.status_code == 503
            assert ready.json()["queue"] == "unavailable"
            assert nobody.get("/health").status_code == 200
    finally:
        own_redis.start()
    assert one.submit()["state"] == "pending"
