"""What Prometheus reads, and that the dashboard asks for nothing else."""

from __future__ import annotations

import json
import re
from pathlib import Path

import httpx
from frontkit import METRICS_TOKEN, ROOT, Api, Queue, Worker
from prometheus_client.parser import text_string_to_metric_families

from comfywork import metrics
from comfywork.broker import Broker

DASHBOARD = ROOT / "compose/grafana/comfywork.json"


def sampled(text: str) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def scrape(api: Api, token: str = METRICS_TOKEN) -> httpx.Response:
    return httpx.get(f"{api.url}/metrics", headers={"Authorization": f"Bearer {token}"})


def test_metrics(api: Api, queue: Queue, worker: Worker) -> None:
    queue.submit()
    worker.complete(worker.take())
    queue.submit()
    worker.fail(worker.take(), "memory")
    for _ in range(3):
        queue.submit(priority="low")
    queue.submit("user002", priority="high")
    worker.take()
    answer = scrape(api)
    assert answer.headers["Content-Type"].startswith("text/plain; version=")
    found = sampled(answer.text)

    def value(name: str, **labels: str) -> float:
        return found[name, tuple(sorted(labels.items()))]

    assert value("comfywork_redis_up") == 1
    assert value("comfywork_queue_waiting", tenant="user001", priority="low") == 3
    assert value("comfywork_queue_oldest_seconds", tenant="user001", priority="low") >= 0
    assert value("comfywork_jobs_processing") == 1
    assert value("comfywork_jobs_submitted_total") == 6
    assert value("comfywork_jobs_ended_total", state="completed") == 1
    assert value("comfywork_jobs_ended_total", state="failed") == 1
    assert value("comfywork_failures_total", kind="memory") == 1
    assert value("comfywork_failures_total", kind="timeout") == 0, "a class is there before its first failure"
    assert value("comfywork_job_seconds_count") == 2
    assert value("comfywork_job_seconds_bucket", le="+Inf") == 2
    assert value("comfywork_wait_seconds_count") == 2
    assert value("comfywork_worker_memory_used_bytes", worker="worker-1") == 20e9
    assert value("comfywork_worker_attention_fallbacks_total", worker="worker-1") == 3
    assert value("comfywork_worker_state", worker="worker-1", state="busy") == 1


def test_who_may_read_them(api: Api) -> None:
    assert scrape(api, api.tokens["staff"]).status_code == 200
    assert scrape(api, api.tokens["user001"]).status_code == 403
    assert scrape(api, "wrong").status_code == 401
    answer = httpx.get(f"{api.url}/v1/jobs", headers={"Authorization": f"Bearer {METRICS_TOKEN}"})
    assert answer.status_code == 401, "and it opens nothing else"


def test_without_redis(queue: Queue) -> None:
    broker = Broker.of_environment({**queue.environ, "REDIS_PORT": "1"})
    found = sampled(metrics.rendered(broker).decode())
    assert found == {("comfywork_redis_up", ()): 0.0}


def test_the_dashboard_asks_for_what_there_is(queue: Queue, worker: Worker) -> None:
    """And shows all that there is."""
    queue.submit()
    dashboard = json.loads(Path(DASHBOARD).read_text())
    expressions = [target["expr"] for panel in dashboard["panels"] for target in panel.get("targets", [])]
    asked = {name for text in expressions for name in re.findall(r"comfywork_\w+", text)}
    there = {name for name, _ in sampled(metrics.rendered(queue.broker).decode())}
    there |= {"comfywork_served_seconds_total"}  # a tenant that was served is needed
    assert asked <= there, asked - there
    families = {re.sub(r"_(bucket|count|sum)$", "", name) for name in there}
    families = {name for name in families if not name.endswith("_created")}
    assert families == {re.sub(r"_(bucket|count|sum)$", "", name) for name in asked}


def test_labels_that_it_groups_by(queue: Queue, worker: Worker) -> None:
    queue.submit()
    labels: dict[str, set[str]] = {}
    for name, pairs in sampled(metrics.rendered(queue.broker).decode()):
        labels.setdefault(name, set()).update(label for label, _ in pairs)
    dashboard = json.loads(Path(DASHBOARD).read_text())
    for panel in dashboard["panels"]:
        for target in panel.get("targets", []):
            names = [name for name in re.findall(r"comfywork_\w+", target["expr"]) if name in labels]
            grouped = re.findall(r"by \(([^)]*)\)", target["expr"])
            wanted = {label.strip() for group in grouped for label in group.split(",")}
            wanted |= set(re.findall(r"\{\{(\w+)\}\}", target["legendFormat"]))
            for name in names:
                assert wanted <= labels[name], (panel["title"], name, wanted)


def test_panels_do_not_overlap() -> None:
    taken: set[tuple[int, int]] = set()
    for panel in json.loads(Path(DASHBOARD).read_text())["panels"]:
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not taken & cells, panel["title"]
        assert all(x < 24 for x, _ in cells)
        taken |= cells
