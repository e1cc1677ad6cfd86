"""Measures a cluster: `python -m benchmarks.cluster_root JOB`, where JOB is a `ClusterJob` as JSON.

Prints a `ClusterMeasurement`. The workers are running already.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.measure import Job, Measurement, measure, to_json
from dllama_gpu import __version__
from dllama_gpu.cpu.device import CpuDevice
from dllama_gpu.graph.architectures import build_graph
from dllama_gpu.graph.batch import Batch, Row
from dllama_gpu.graph.options import GraphOptions
from dllama_gpu.graph.plan import plan
from dllama_gpu.graph.profile import PlanOptions
from dllama_gpu.graph.shard import shard_by_ratio
from dllama_gpu.model.float_type import FloatType
from dllama_gpu.model.open import open_model
from dllama_gpu.net.cluster import Cluster
from dllama_gpu.net.measure import measure_speed
from launcher.guard import guarded

_MEMORY = 1 << 40


@dataclass(frozen=True)
class ClusterJob:
    """The job, and who takes part."""

    job: Job
    workers: list[str]
    cache: str
    """Folder where the root remembers the hashes of the model's slices."""


@dataclass(frozen=True)
class ClusterMeasurement:
    """What was measured, expected, and paid before the first step."""

    measurement: Measurement
    connect_seconds: float
    """Reaching the workers, and timing all kernels and links."""
    load_seconds: float
    """Hashing, sending and packing the weights."""
    sent_bytes: int
    expected_tokens_per_second: float
    """By the planner, for equal shares."""
    bytes_sent_per_token: float
    """By the root, while decoding."""
    link_latency_seconds: float
    link_jitter_seconds: float


class ClusterRunner:
    """A model on all nodes, in equal shares; see `benchmarks.measure.Runner`."""

    def __init__(self, cluster_job: ClusterJob) -> None:
        job, began = cluster_job.job, time.perf_counter()
        source = open_model(Path(job.model))
        device = CpuDevice(job.n_threads)
        weight_type = source.spec.weight_type
        cluster = Cluster.connect(cluster_job.workers, measure=[weight_type])
        nodes = cluster.profiles(measure_speed(device, weight_type), _MEMORY, weight_type)
        self.connect_seconds = time.perf_counter() - began
        equal = (1.0,) * len(nodes)
        wanted = PlanOptions(seq_len=job.seq_len, max_logit_rows=1, ratio=equal)
        self.plan = plan(source.spec, source.tensors, nodes, cluster.link, wanted)
        options = GraphOptions(seq_len=job.seq_len, max_logit_rows=1)
        shards = shard_by_ratio(source.spec, equal)
        graphs = [build_graph(source.spec, source.tensors, options, shard) for shard in shards]
        began = time.perf_counter()
        self.cluster_program = cluster.load(
            source, graphs, device, wire=FloatType.Q80, cache_folder=Path(cluster_job.cache)
        )
        self.load_seconds = time.perf_counter() - began
        self.cluster = cluster
        self.program = f"dllama-gpu {__version__} ({device.kernels}), {len(nodes)} nodes"
        self.vocab_size = source.spec.vocab_size
        self._max_rows = options.max_rows
        self._batches: list[Batch] = []

    def clear(self) -> None:
        """Nothing to do: positions from 0 on are written again before they are read."""

    def prepare(self, tokens: Sequence[int], position: int) -> None:
        """Cuts a long prompt into steps of the default size, as the engine does."""
        rows = [Row(token, 0, position + i, i == len(tokens) - 1) for i, token in enumerate(tokens)]
        self._batches = [Batch.of(rows[i : i + self._max_rows]) for i in range(0, len(rows), self._max_rows)]

    def compute(self) -> None:
        """One step on all nodes, or several for a long prompt."""
        for batch in self._batches:
            self.cluster_program.run(batch)

    def logits(self) -> Sequence[float]:
        """Logits (vocab_size,) of the last token, fetched from all nodes."""
        logits: Sequence[float] = self.cluster_program.buffer("logits", 1)[0]
        return logits


def cluster_job_from_json(text: str) -> ClusterJob:
    """The job that the parent process wrote."""
    fields: dict[str, Any] = json.loads(text)
    return ClusterJob(**{**fields, "job": Job(**fields["job"])})


def cluster_measurement_from_json(text: str) -> ClusterMeasurement:
    """The measurement that this process wrote."""
    fields: dict[str, Any] = json.loads(text)
    return ClusterMeasurement(**{**fields, "measurement": Measurement(**fields["measurement"])})


def main() -> int:
    """Measures the job on the command line."""
    job = cluster_job_from_json(sys.argv[1])
    runner = ClusterRunner(job)
    found = measure(runner, job.job, runner.connect_seconds + runner.load_seconds)
    decode = runner.cluster_program.statistics()[0].decode
    links = runner.cluster.links.values()
    print(
        to_json(
            ClusterMeasurement(
                measurement=found,
                connect_seconds=runner.connect_seconds,
                load_seconds=runner.load_seconds,
                sent_bytes=runner.cluster.load_summary.sent_bytes,
                expected_tokens_per_second=runner.plan.tokens_per_second,
                bytes_sent_per_token=decode.bytes_sent / decode.n_rows,
                link_latency_seconds=max(link.latency_seconds for link in links),
                link_jitter_seconds=max(link.jitter_seconds for link in links),
            )
        )
    )
    runner.cluster.close()
    return 0


if __name__ == "__main__":
    sys.exit(guarded(main))
