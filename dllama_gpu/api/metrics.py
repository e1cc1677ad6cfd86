"""GET /metrics in Prometheus' text format, through prometheus_client.

Counters of the engine are read when they are asked for; only HTTP requests are counted here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from prometheus_client import CollectorRegistry, Counter, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from dllama_gpu.api.service import Service
from dllama_gpu.engine.statistics import EngineStatistics, Histogram
from dllama_gpu.net.messages import PhaseStatistics

_PREFIX = "dllama_gpu_"


class Metrics:
    """Everything that can be measured about a service."""

    def __init__(self, service: Service) -> None:
        self._registry = CollectorRegistry(auto_describe=False)
        self._requests = Counter(
            f"{_PREFIX}http_requests",
            "HTTP requests by path and status.",
            ("method", "path", "status"),
            registry=self._registry,
        )
        self._registry.register(_EngineCollector(service))

    def count(self, method: str, path: str, status: int) -> None:
        """One more request was answered; `path` is that of the route, so that there are few."""
        self._requests.labels(method, path, str(status)).inc()

    def text(self) -> bytes:
        """What Prometheus reads."""
        return generate_latest(self._registry)


class _EngineCollector(Collector):
    def __init__(self, service: Service) -> None:
        self._service = service

    def collect(self) -> Iterator[Metric]:
        statistics = self._service.engine.statistics()
        yield from _gauges(statistics)
        yield from _counters(statistics)
        for name, what, histogram in (
            ("time_to_first_token_seconds", "From a request to its first token.", statistics.first_token_seconds),
            ("inter_token_seconds", "From one token of a text to the next.", statistics.inter_token_seconds),
            ("queue_seconds", "From a request to its slot.", statistics.queue_seconds),
        ):
            yield _histogram(name, what, histogram)
        names = [node.name for node in self._service.nodes()]
        yield from _node_counters(statistics, names)


def _gauges(statistics: EngineStatistics) -> Iterator[Metric]:
    for name, what, value in (
        ("ready", "1 while the model can run, 0 while it cannot.", float(statistics.state == "ready")),
        ("uptime_seconds", "Since the engine started.", statistics.uptime_seconds),
        ("slots", "Requests that can run at the same time.", float(len(statistics.slots))),
        ("requests_running", "Requests that have a slot.", float(statistics.n_running)),
        ("requests_queued", "Requests that wait for a slot.", float(statistics.n_queued)),
        ("queue_limit", "Requests that may wait.", float(statistics.max_queue)),
        (
            "generated_tokens_per_second",
            "Over the last few seconds.",
            statistics.decode_tokens_per_second,
        ),
        (
            "prompt_tokens_per_second",
            "Prompt tokens computed, over the last few seconds.",
            statistics.prefill_tokens_per_second,
        ),
    ):
        yield GaugeMetricFamily(_PREFIX + name, what, value=value)
    held = GaugeMetricFamily(_PREFIX + "slot_tokens", "Tokens that a slot holds.", labels=("slot",))
    for number, slot in enumerate(statistics.slots):
        held.add_metric((str(number),), slot.n_tokens)
    yield held


def _counters(statistics: EngineStatistics) -> Iterator[Metric]:
    for name, what, value in (
        ("requests_submitted", "Requests that the engine took.", statistics.n_submitted),
        (
            "requests_refused",
            "Requests that it did not take, as the queue was full or it could not run.",
            statistics.n_refused,
        ),
        ("requests_failed", "Requests that ended in an error.", statistics.n_failed),
        ("prompt_tokens", "Prompt tokens, those found in a cache included.", statistics.n_prompt_tokens),
        ("prompt_tokens_cached", "Prompt tokens that were in a KV cache already.", statistics.n_cached_tokens),
        ("generated_tokens", "Generated tokens.", statistics.n_generated_tokens),
        ("drafted_tokens", "Tokens guessed by speculative decoding.", statistics.n_drafted_tokens),
        ("accepted_tokens", "Guesses that were right.", statistics.n_accepted_tokens),
        ("steps", "Steps computed.", statistics.n_steps),
        ("step_seconds", "Time in steps.", statistics.step_seconds),
        ("recoveries", "How often a lost program was built anew.", statistics.n_recoveries),
        ("recovery_seconds", "Time without a program.", statistics.recovery_seconds),
    ):
        yield CounterMetricFamily(_PREFIX + name, what, value=value)
    finished = CounterMetricFamily(
        _PREFIX + "requests_finished", "Requests that came to an end, by the reason.", labels=("reason",)
    )
    for reason, count in statistics.n_finished.items():
        finished.add_metric((reason.value.replace(" ", "_"),), count)
    yield finished


def _histogram(name: str, what: str, histogram: Histogram) -> Metric:
    buckets: list[tuple[str, float]] = []
    total = 0
    bounds = [*map(str, histogram.bounds), "+Inf"]
    for bound, count in zip(bounds, histogram.counts, strict=True):
        total += count
        buckets.append((bound, total))
    return HistogramMetricFamily(_PREFIX + name, what, buckets=buckets, sum_value=histogram.total_seconds)


def _node_counters(statistics: EngineStatistics, names: Sequence[str]) -> Iterator[Metric]:
    labels = ("rank", "node", "phase")
    read: tuple[tuple[str, str, Callable[[PhaseStatistics], float]], ...] = (
        ("node_compute_seconds", "Time that a node computed.", lambda phase: phase.compute_seconds),
        ("node_waiting_seconds", "Time that a node waited for others.", lambda phase: phase.waiting_seconds),
        (
            "node_network_seconds",
            "Time that a node sent and received.",
            lambda phase: max(0.0, phase.exchange_seconds - phase.waiting_seconds),
        ),
        ("node_sent_bytes", "Bytes that a node sent to others.", lambda phase: phase.bytes_sent),
        ("node_received_bytes", "Bytes that a node received from others.", lambda phase: phase.bytes_received),
        ("node_rows", "Tokens that a node computed its share of.", lambda phase: phase.n_rows),
    )
    for name, what, value in read:
        family = CounterMetricFamily(_PREFIX + name, what, labels=labels)
        for rank, node in enumerate(statistics.nodes):
            node_name = names[rank] if rank < len(names) else ""
            family.add_metric((str(rank), node_name, "prefill"), value(node.prefill))
            family.add_metric((str(rank), node_name, "decode"), value(node.decode))
        yield family
