"""Measures dllama-gpu: `python -m benchmarks.ours JOB`, where JOB is a `Job` as JSON; prints a `Measurement`."""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from benchmarks.measure import CPU, Bound, Job, job_from_json, measure, to_json
from benchmarks.work import work_of_graph
from dllama_gpu import __version__
from dllama_gpu.cpu.device import CpuDevice
from dllama_gpu.cpu.program import CpuProgram
from dllama_gpu.graph.architectures import build_graph
from dllama_gpu.graph.batch import Batch, Device, Row
from dllama_gpu.graph.options import GraphOptions
from dllama_gpu.model.open import open_model
from launcher.guard import guarded

_TURNS = 12
_TOKENS_OF_A_TURN = 1 / 4  # of the decode tokens


class OurRunner:
    """The model's program on the device of the job; see `benchmarks.measure.Runner`."""

    def __init__(self, job: Job) -> None:
        source = open_model(Path(job.model))
        device, description, options = _device(job)
        self._max_rows = options.max_rows
        self._program = device.compile(build_graph(source.spec, source.tensors, options), source)
        self._batches: list[Batch] = []
        self.program = f"dllama-gpu {__version__} ({description})"
        self.vocab_size = source.spec.vocab_size

    def clear(self) -> None:
        """Nothing to do: positions from 0 on are written again before they are read."""

    def prepare(self, tokens: Sequence[int], position: int) -> None:
        """Cuts a long prompt into steps of the default size, as the engine does."""
        rows = [Row(token, 0, position + i, i == len(tokens) - 1) for i, token in enumerate(tokens)]
        self._batches = [Batch.of(rows[i : i + self._max_rows]) for i in range(0, len(rows), self._max_rows)]

    def compute(self) -> None:
        """One step, or several for a prompt of more rows than a step may have."""
        for batch in self._batches:
            self._program.run(batch)

    def logits(self) -> Sequence[float]:
        """Logits (vocab_size,) of the last token."""
        logits: Sequence[float] = self._program.buffer("logits", 1)[0]
        return logits

    def bound(self, job: Job) -> Bound | None:
        """What decode is held against, in the middle of the decoded positions. Unknown on a GPU and with experts."""
        program = self._program
        if not isinstance(program, CpuProgram) or any(weight.n_experts > 1 for weight in program.graph.weights):
            return None
        n = max(1, int(job.decode_tokens * _TOKENS_OF_A_TURN))
        middle = job.prompt_tokens + job.decode_tokens // 2
        batches = [Batch.of([Row(i, 0, middle - n // 2 + i, True)]) for i in range(n)]
        weights = work_of_graph(program.graph, 1).decode_bytes
        decode, reading = [], []
        for _ in range(_TURNS):
            start = time.perf_counter()
            for batch in batches:
                program.run(batch)
            decode.append((time.perf_counter() - start) / n)
            reading.append(statistics.mean(weights / program.weight_read_rate() for _ in range(n)))
        return Bound(decode, reading, program.seconds_beside_weights(batches[n // 2]))


def _device(job: Job) -> tuple[Device, str, GraphOptions]:
    """The device, what it is, and how the model runs there: a GPU takes a prompt in one step."""
    if job.device == CPU:
        cpu = CpuDevice(job.n_threads)
        return cpu, cpu.kernels, GraphOptions(seq_len=job.seq_len)

    from dllama_gpu.vulkan.device import VulkanDevice

    gpu = VulkanDevice(int(job.device.partition(":")[2]))
    return gpu, gpu.name, GraphOptions(seq_len=job.seq_len, max_rows=job.prompt_tokens)


def main() -> int:
    """Measures the job on the command line."""
    job = job_from_json(sys.argv[1])
    start = time.perf_counter()
    runner = OurRunner(job)
    found = measure(runner, job, time.perf_counter() - start)
    print(to_json(replace(found, bound=runner.bound(job))))
    return 0


if __name__ == "__main__":
    sys.exit(guarded(main))
