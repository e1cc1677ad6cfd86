"""Measures a GPU: `scripts/bench --vulkan`, or `python -m benchmarks.vulkan`.

METHODOLOGY.md, in this folder, says what is measured and why so.
"""

from __future__ import annotations

import argparse
import datetime
import functools
import json
import statistics
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from benchmarks.machine import Machine, this_machine
from benchmarks.models import MODEL_NAMES, model_file
from benchmarks.random_source import RandomSource
from benchmarks.report import table
from benchmarks.synthetic import SHAPES
from benchmarks.work import work_of_graph
from dllama_gpu.graph.architectures import build_graph
from dllama_gpu.graph.batch import Batch, Row
from dllama_gpu.graph.options import GraphOptions
from dllama_gpu.model.open import open_model
from dllama_gpu.model.source import ModelSource
from dllama_gpu.vulkan import _native
from dllama_gpu.vulkan.device import VulkanDevice
from dllama_gpu.vulkan.limits import Tier
from dllama_gpu.vulkan.program import VulkanProgram
from launcher.guard import guarded

_RESULTS = Path(__file__).parent / "results"
_DEFAULT_MODELS = "smollm2,llama-3.2-1b,llama-3.2-3b,llama-3.1-8b"
_USERS = 8


@dataclass(frozen=True)
class GpuSettings:
    """How much is run."""

    prompt_tokens: int
    decode_tokens: int
    copy_bytes: int


@dataclass(frozen=True)
class GpuFinding:
    """One model on the GPU; seconds are medians."""

    model: str
    matrix_bytes: int
    """That a token of decode reads."""
    token_seconds: float
    """Of a token of one user, right behind the prompt."""
    users_seconds: float
    """Of a step with a token of each of 8 users."""
    prompt_seconds: float
    """Of the whole prompt."""
    prompt_macs: int
    dispatches: int
    barriers: int
    submits: int
    kernels: dict[str, tuple[int, float]] = field(default_factory=dict)
    """Runs in a token and seconds together, by shader and specialization; if asked for."""


@dataclass(frozen=True)
class GpuResults:
    """All that a run found."""

    date: str
    machine: Machine
    settings: GpuSettings
    device: str
    driver: str
    copy_rate: float
    """Bytes read and bytes written a second, together, when the GPU copies its memory."""
    models: list[GpuFinding]


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs what the command line asks for and returns the exit status."""
    options = _parser().parse_args(arguments)
    settings = GpuSettings(64, 8, 16 << 20) if options.quick else GpuSettings(512, 64, 1 << 28)
    tier = None if options.tier is None else Tier[options.tier.upper()]
    device = VulkanDevice(options.device, tier=tier)
    _say(device.name)
    copy_rate = _copy_rate(device, settings.copy_bytes)
    _say(f"copies {copy_rate / 1e9:.1f} GB/s, reading and writing together")
    findings = []
    for name in options.models.split(","):
        findings.append(_measure(device, name, settings, kernels=options.kernels))
        _say(_sentence(findings[-1], settings, copy_rate))
    info = device.gpu.info
    results = GpuResults(
        date=datetime.date.today().isoformat(),
        machine=this_machine(),
        settings=settings,
        device=device.name,
        driver=f"{info.driver} {info.driver_version}",
        copy_rate=copy_rate,
        models=findings,
    )
    print(markdown(results))
    if not options.quick:
        stem = f"{results.date}-{results.machine.slug}-vulkan"
        (_RESULTS / f"{stem}.json").write_text(json.dumps(asdict(results), indent=1) + "\n", encoding="utf-8")
        (_RESULTS / f"{stem}.md").write_text(markdown(results), encoding="utf-8")
        _say(f"saved as {_RESULTS / stem}.json and .md")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="scripts/bench --vulkan", description="Measure a GPU; see benchmarks/METHODOLOGY.md."
    )
    parser.add_argument(
        "--models", default=_DEFAULT_MODELS, metavar="NAME,…", help=f"from {', '.join(MODEL_NAMES)} (%(default)s)"
    )
    parser.add_argument(
        "--device", type=int, default=0, metavar="N", help="as `dllama-gpu devices` counts (%(default)s)"
    )
    parser.add_argument("--tier", choices=[tier.name.lower() for tier in Tier], help="(the best that the GPU can run)")
    parser.add_argument("--kernels", action="store_true", help="also the time of each shader in a token")
    parser.add_argument("--quick", action="store_true", help="a short run, not saved: does everything still work?")
    return parser


def _copy_rate(device: VulkanDevice, n_bytes: int) -> float:
    native, times = device.gpu.native, 4
    source, target = (native.buffer(n_bytes, _native.BufferKind.DEVICE) for _ in range(2))
    recording = native.recording()
    for _ in range(times):
        recording.copy(source, 0, target, 0, n_bytes)
        recording.barrier()
    recording.finish()
    seconds = min(_seconds(lambda: recording.run(600)) for _ in range(5))
    return 2 * n_bytes * times / seconds


def _measure(device: VulkanDevice, name: str, settings: GpuSettings, *, kernels: bool) -> GpuFinding:
    source = _source(name)
    n_prompt, n_decode = settings.prompt_tokens, settings.decode_tokens
    options = GraphOptions(max_rows=n_prompt, max_logit_rows=_USERS, n_slots=_USERS, seq_len=n_prompt + n_decode + 1)
    graph = build_graph(source.spec, source.tensors, options)
    program = device.compile(graph, source)
    source.close()
    tokens = [(7919 * i + 1) % graph.vocab_size for i in range(options.seq_len)]

    def row(position: int, slot: int = 0, *, wants: bool = True) -> Row:
        return Row(tokens[position], slot, position, wants)

    prompt = Batch.of([row(i, wants=i == n_prompt - 1) for i in range(n_prompt)])
    program.run(prompt)  # records, and compiles shaders
    prompt_seconds = statistics.median(_seconds(lambda: program.run(prompt)) for _ in range(3))
    singles = [Batch.of([row(n_prompt + i)]) for i in range(n_decode)]
    program.run(singles[0])
    token_seconds = statistics.median(_seconds(functools.partial(program.run, batch)) for batch in singles)
    users = Batch.of([row(n_prompt, slot) for slot in range(_USERS)])
    program.run(users)
    users_seconds = statistics.median(_seconds(lambda: program.run(users)) for _ in range(min(n_decode, 8)))
    program.run(singles[-1])
    dispatches, barriers, submits = program.work_of(1, 1)
    work = work_of_graph(graph, n_prompt)
    return GpuFinding(
        model=name,
        matrix_bytes=work.decode_bytes,
        token_seconds=token_seconds,
        users_seconds=users_seconds,
        prompt_seconds=prompt_seconds,
        prompt_macs=work.prefill_macs,
        dispatches=dispatches,
        barriers=barriers,
        submits=submits,
        kernels=_kernels(program) if kernels else {},
    )


def _source(name: str) -> ModelSource:
    if name in SHAPES:
        return RandomSource(name, SHAPES[name])
    return open_model(model_file(name))


def _kernels(program: VulkanProgram) -> dict[str, tuple[int, float]]:
    """The least of three times of each dispatch of a token, added up."""
    rounds = [program.timed(1, 1) for _ in range(3)]
    found: defaultdict[str, tuple[int, float]] = defaultdict(lambda: (0, 0.0))
    for same in zip(*rounds, strict=True):
        dispatch = same[0][0]
        key = f"{dispatch.shader} {' '.join(map(str, dispatch.specialization))}"
        count, seconds = found[key]
        found[key] = count + 1, seconds + min(time for _, time in same)
    return dict(sorted(found.items(), key=lambda item: -item[1][1]))


def markdown(results: GpuResults) -> str:
    """The report."""
    settings = results.settings
    rows = [
        [
            finding.model,
            f"{finding.matrix_bytes / 1e9:.2f} GB",
            f"{1 / finding.token_seconds:.1f}",
            f"{_share(finding, results.copy_rate):.0%}",
            f"{_USERS / finding.users_seconds:.1f}",
            f"{settings.prompt_tokens / finding.prompt_seconds:.0f}",
            f"{2 * finding.prompt_macs / finding.prompt_seconds / 1e12:.2f}",
            f"{finding.dispatches} / {finding.barriers} / {finding.submits}",
        ]
        for finding in results.models
    ]
    heads = [
        "model, Q40",
        "matrices",
        "decode, tokens/s",
        "of copy bandwidth",
        f"{_USERS} users, tokens/s",
        f"prompt of {settings.prompt_tokens}, tokens/s",
        "prompt, TFLOP/s",
        "dispatches / barriers / submits a token",
    ]
    parts = [
        f"# {results.date}, {results.device}\n\n{results.driver}; {results.machine.processor}, "
        f"{results.machine.n_processors} processors; commit {results.machine.commit}. The GPU copies "
        f"{results.copy_rate / 1e9:.1f} GB/s, reading and writing together. Method: `benchmarks/METHODOLOGY.md`.",
        table(heads, rows),
    ]
    for finding in results.models:
        if finding.kernels:
            lines = [[key, str(n), f"{1e3 * seconds:.3f}"] for key, (n, seconds) in finding.kernels.items()]
            parts.append(f"{finding.model}, one token by shader:\n\n" + table(["shader", "runs", "ms"], lines))
    return "\n\n".join(parts) + "\n"


def _share(finding: GpuFinding, copy_rate: float) -> float:
    return finding.matrix_bytes / finding.token_seconds / copy_rate


def _sentence(finding: GpuFinding, settings: GpuSettings, copy_rate: float) -> str:
    return (
        f"{finding.model}: decode {1 / finding.token_seconds:.1f} tokens/s ({_share(finding, copy_rate):.0%} of copy "
        f"bandwidth), prompt {settings.prompt_tokens / finding.prompt_seconds:.1f} tokens/s"
    )


def _seconds(run: Callable[[], None]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(guarded(main))
