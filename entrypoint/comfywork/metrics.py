"""What Prometheus reads: everything from Redis at the moment of asking, so that any number of servers say the same."""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING, Any, Final, get_args

import redis
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily

from comfywork import names
from comfywork.durations import BUCKETS
from comfywork.errors import ComfyworkError
from comfywork.link import text
from comfywork.views import ENDED, FailureKind

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from prometheus_client.core import Metric

    from comfywork.broker import Broker

CONTENT_TYPE: Final = CONTENT_TYPE_LATEST


def rendered(broker: Broker) -> bytes:
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Collector(broker))
    return generate_latest(registry)


class _Collector:
    def __init__(self, broker: Broker) -> None:
        self._broker = broker

    def describe(self) -> list[Metric]:
        return []

    def collect(self) -> Iterator[Metric]:
        up = GaugeMetricFamily("comfywork_redis_up", "Whether the queue's Redis answers.")
        answer = GaugeMetricFamily("comfywork_redis_answer_seconds", "What it took to answer a PING.")
        try:
            answer.add_metric([], self._broker.ping())
            found = [*self._queues(), *self._counters(), *self._workers(), *self._memory()]
        except (ComfyworkError, redis.RedisError):
            up.add_metric([], 0)
            yield up
            return
        up.add_metric([], 1)
        yield from (up, answer, *found)

    def _queues(self) -> Iterator[Metric]:
        waiting = GaugeMetricFamily("comfywork_queue_waiting", "Jobs waiting.", labels=["tenant", "priority"])
        oldest = GaugeMetricFamily(
            "comfywork_queue_oldest_seconds", "Age of the first job waiting.", labels=["tenant", "priority"]
        )
        for view in self._broker.queues():
            waiting.add_metric([view.tenant, view.priority], view.waiting)
            oldest.add_metric([view.tenant, view.priority], view.oldest or 0.0)
        yield from (waiting, oldest)

    def _counters(self) -> Iterator[Metric]:
        connection = self._broker.connection
        counted = defaultdict(float, _numbers(connection.hgetall(names.COUNTERS)))
        running = GaugeMetricFamily("comfywork_jobs_processing", "Jobs that a worker has.")
        running.add_metric([], connection.zcard(names.LEASES))
        submitted = CounterMetricFamily("comfywork_jobs_submitted", "Jobs submitted.")
        submitted.add_metric([], counted["submitted"])
        ended = CounterMetricFamily("comfywork_jobs_ended", "Jobs that ended.", labels=["state"])
        for state in ENDED:
            ended.add_metric([state], counted[state])
        failures = CounterMetricFamily("comfywork_failures", "Jobs that failed, by class.", labels=["kind"])
        for kind in get_args(FailureKind):
            failures.add_metric([kind], counted[f"failed:{kind}"])
        retries = CounterMetricFamily("comfywork_retries", "Attempts that were begun again after a failure.")
        retries.add_metric([], counted["retries"])
        back = CounterMetricFamily(
            "comfywork_handed_back", "Jobs that a worker gave back unharmed: drained, or its storage down."
        )
        back.add_metric([], counted["handed_back"])
        yield from (running, submitted, ended, failures, retries, back)
        yield _histogram("comfywork_job_seconds", "From a job's taking to its end.", "took", counted)
        yield _histogram(
            "comfywork_wait_seconds", "From a job's submission to its taking.", "waited", counted
        )
        served = CounterMetricFamily(
            "comfywork_served_seconds", "GPU time by which tenants are served fairly.", labels=["tenant"]
        )
        pairs: list[Any] = connection.zrange(names.SERVED, 0, -1, withscores=True)
        for tenant, seconds in pairs:
            served.add_metric([text(tenant)], max(0.0, float(seconds)))
        yield served

    def _workers(self) -> Iterator[Metric]:
        now = self._now()
        info = GaugeMetricFamily(
            "comfywork_worker_info",
            "1 for each worker there is.",
            labels=["worker", "gpu", "target", "image", "comfyui"],
        )
        state = GaugeMetricFamily(
            "comfywork_worker_state", "1 for the state that a worker is in.", labels=["worker", "state"]
        )
        seen = GaugeMetricFamily(
            "comfywork_worker_silence_seconds", "Since a worker's last heartbeat.", labels=["worker"]
        )
        used = GaugeMetricFamily(
            "comfywork_worker_memory_used_bytes",
            "GPU memory in use; the machine's where GPU and CPU share it.",
            labels=["worker"],
        )
        total = GaugeMetricFamily(
            "comfywork_worker_memory_total_bytes",
            "GPU memory; the machine's where GPU and CPU share it.",
            labels=["worker"],
        )
        models = GaugeMetricFamily(
            "comfywork_worker_models", "Model files on the machine.", labels=["worker"]
        )
        fallbacks = CounterMetricFamily(
            "comfywork_worker_attention_fallbacks",
            "Attention calls that fell back from their kernel to PyTorch.",
            labels=["worker"],
        )
        jobs = CounterMetricFamily(
            "comfywork_worker_jobs", "Jobs that a worker ended.", labels=["worker", "result"]
        )
        for view in self._broker.workers():
            info.add_metric([view.id, view.gpu, view.target, view.image, view.comfyui], 1)
            state.add_metric([view.id, view.state], 1)
            seen.add_metric([view.id], max(0.0, now - view.seen))
            used.add_metric([view.id], view.memory_used)
            total.add_metric([view.id], view.memory_total)
            models.add_metric([view.id], view.models)
            fallbacks.add_metric([view.id], view.fallbacks)
            jobs.add_metric([view.id, "done"], view.done)
            jobs.add_metric([view.id, "failed"], view.failed)
        yield from (info, state, seen, used, total, models, fallbacks, jobs)

    def _memory(self) -> Iterator[Metric]:
        found = self._broker.connection.info("memory")
        used = GaugeMetricFamily("comfywork_redis_memory_used_bytes", "What Redis holds.")
        used.add_metric([], found.get("used_memory", 0))
        limit = GaugeMetricFamily("comfywork_redis_memory_limit_bytes", "Its maxmemory; 0 for none.")
        limit.add_metric([], found.get("maxmemory", 0))
        yield from (used, limit)

    def _now(self) -> float:
        seconds, micro = self._broker.connection.time()
        return float(seconds + micro / 1e6)


def _histogram(name: str, words: str, field: str, counted: Mapping[str, float]) -> HistogramMetricFamily:
    so_far, buckets = 0.0, []
    for bound in BUCKETS:
        so_far += counted.get(f"{field}:{bound:g}", 0.0)
        buckets.append(("+Inf" if bound == float("inf") else f"{bound:g}", so_far))
    found = HistogramMetricFamily(name, words)
    found.add_metric([], buckets, counted.get(f"{field}:sum", 0.0))
    return found


def _numbers(raw: Mapping[Any, Any]) -> dict[str, float]:
    return {text(name): float(value) for name, value in raw.items()}
