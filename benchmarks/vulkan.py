"""Measures a GPU: `scripts/bench --vulkan`, or `python -m benchmarks.vulkan`.

METHODOLOGY.md, in this folder, says what is measured and why so.
"""

from __future__ import annotations

import argparse
import datetime
import functools
import json
import statistics
import struct
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path

from benchmarks import children
from benchmarks.findings import LEAST_AGREEMENT, agreement
from benchmarks.machine import this_machine
from benchmarks.measure import Job
from benchmarks.models import MODEL_NAMES, model_file
from benchmarks.random_source import RandomSource
from benchmarks.synthetic import SHAPES
from benchmarks.vulkan_report import USERS, Beside, GpuFinding, GpuResults, GpuSettings, markdown, share
from benchmarks.work import work_of_graph
from dllama_gpu.cpu.processors import available_threads
from dllama_gpu.errors import DllamaError
from dllama_gpu.graph.architectures import build_graph
from dllama_gpu.graph.batch import Batch, Row
from dllama_gpu.graph.options import GraphOptions
from dllama_gpu.model.open import open_model
from dllama_gpu.model.source import ModelSource
from dllama_gpu.vulkan import _native
from dllama_gpu.vulkan.device import VulkanDevice
from dllama_gpu.vulkan.limits import Tier
from dllama_gpu.vulkan.program import VulkanProgram
from dllama_gpu.vulkan.shaders import read_spirv
from dllama_gpu.vulkan.tiers import TIER_VARIABLE
from launcher.guard import guarded

_RESULTS = Path(__file__).parent / "results"
_COPY_LANES, _COPY_GROUPS = 64, 1 << 14
_COPY_PIECE = 1 << 27  # the least that the shaders of any device see of a buffer
_DEFAULT_MODELS = "smollm2,llama-3.2-1b,llama-3.2-3b,llama-3.1-8b"


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs what the command line asks for and returns the exit status."""
    options = _parser().parse_args(arguments)
    _check_peer(options)
    tier = None if options.tier is None else Tier[options.tier.upper()]
    device = VulkanDevice(options.device, tier=tier)
    _say(device.name)
    settings = _settings(options, on_processor=device.gpu.limits.is_cpu)
    copy_rate = _copy_rate(device, settings)
    _say(f"copies {copy_rate / 1e9:.1f} GB/s, reading and writing together")
    findings = []
    for name in options.models.split(","):
        findings.append(_measure(device, name, settings, kernels=options.kernels))
        _say(_sentence(findings[-1], settings, copy_rate))
    with_others = options.beside or options.peer_python is not None
    besides = [_beside(name, settings, options) for name in options.models.split(",") if with_others]
    info = device.gpu.info
    results = GpuResults(
        date=datetime.date.today().isoformat(),
        machine=this_machine(),
        settings=settings,
        device=device.name,
        driver=f"{info.driver} {info.driver_version}",
        copy_rate=copy_rate,
        models=findings,
        besides=besides,
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
    parser.add_argument(
        "--prompt-tokens", type=int, metavar="N", help="(512; 64 with --quick and for a GPU that a processor imitates)"
    )
    parser.add_argument("--decode-tokens", type=int, metavar="N", help="(64; 8 with --quick, 16 for an imitated GPU)")
    parser.add_argument(
        "--beside",
        action="store_true",
        help="also measure our CPU device, and llama.cpp if --peer-python names it, on the same files",
    )
    parser.add_argument(
        "--peer-python", metavar="PATH", help="a Python interpreter that has llama-cpp-python, with Vulkan (none)"
    )
    parser.add_argument(
        "--peer-library",
        type=Path,
        metavar="FOLDER",
        help="where that package finds libllama and its backends, if not in itself",
    )
    parser.add_argument("--kernels", action="store_true", help="also the time of each shader in a token")
    parser.add_argument("--quick", action="store_true", help="a short run, not saved: does everything still work?")
    return parser


def _check_peer(options: argparse.Namespace) -> None:
    if options.peer_library is not None and not options.peer_library.is_dir():
        raise DllamaError(f"--peer-library {options.peer_library} is no folder; name the one that holds libllama")
    if options.peer_python is None:
        if options.peer_library is not None:
            raise DllamaError("--peer-library needs --peer-python, an interpreter that has llama-cpp-python")
    elif (reason := children.why_no_peer(options.peer_python)) is not None:
        raise DllamaError(f"llama.cpp cannot be measured: {reason}; name an interpreter that has llama-cpp-python")


def _settings(options: argparse.Namespace, *, on_processor: bool) -> GpuSettings:
    prompt_tokens, decode_tokens = (64, 8) if options.quick else (64, 16) if on_processor else (512, 64)
    if options.prompt_tokens is not None:
        prompt_tokens = options.prompt_tokens
    if options.decode_tokens is not None:
        decode_tokens = options.decode_tokens
    for name, value in (("--prompt-tokens", prompt_tokens), ("--decode-tokens", decode_tokens)):
        if value < 1:
            raise DllamaError(f"{name} must be 1 or more, not {value}")
    short = options.quick or on_processor
    copy_bytes, repetitions, wake_seconds = (
        16 << 20 if options.quick else 1 << 28,
        1 if short else 3,
        0 if short else 0.5,
    )
    return GpuSettings(prompt_tokens, decode_tokens, copy_bytes, repetitions, wake_seconds)


def _beside(name: str, settings: GpuSettings, options: argparse.Namespace) -> Beside:
    """The programs one after the other. Raises DllamaError when one fails, or computes something else."""
    path = str(model_file(name))
    sizes = available_threads(), settings.prompt_tokens, settings.decode_tokens, settings.repetitions
    on_gpu, on_cpu = Job(path, *sizes, f"vulkan:{options.device}"), Job(path, *sizes)
    gpu = children.measure_ours(on_gpu, {} if options.tier is None else {TIER_VARIABLE: options.tier})
    cpu = children.measure_ours(on_cpu)
    peer = None
    if options.peer_python is not None:
        variables = {"GGML_VK_VISIBLE_DEVICES": str(options.device)}
        if options.peer_library is not None:
            variables["LLAMA_CPP_LIB_PATH"] = str(options.peer_library.resolve())
        peer = children.measure_peer(on_gpu, options.peer_python, variables)
    for found in (gpu, peer):
        if found is not None and not agreement(cpu, found) > LEAST_AGREEMENT:
            raise DllamaError(
                f"our CPU device and {found.program} disagree about {path}: their logits correlate with "
                f"{agreement(cpu, found):.3f} only, so comparing their speed means nothing"
            )
    _say(f"{name}: measured beside one another")
    return Beside(name, gpu, cpu, peer)


def _copy_rate(device: VulkanDevice, settings: GpuSettings) -> float:
    """The better of the driver's own copy, which may be made for other things, and a shader's."""
    native, times, n_bytes = device.gpu.native, 4, settings.copy_bytes
    source, target = (native.buffer(n_bytes, _native.BufferKind.DEVICE) for _ in range(2))
    piece = min(n_bytes, _COPY_PIECE)
    kernel = native.kernel(read_spirv("copy_words"), 2, 4, (_COPY_LANES,))
    rates = []
    for by_shader in (False, True):
        recording = native.recording()
        for _ in range(times):
            if by_shader:
                for at in range(0, n_bytes, piece):
                    bindings = [(source, at, piece), (target, at, piece)]
                    recording.dispatch(kernel, bindings, struct.pack("<I", piece // 4), (_COPY_GROUPS, 1, 1))
            else:
                recording.copy(source, 0, target, 0, n_bytes)
            recording.barrier()
        recording.finish()
        run = functools.partial(recording.run, 600)
        _wake(run, settings)
        rates.append(2 * n_bytes * times / min(_seconds(run) for _ in range(5)))
    return max(rates)


def _measure(device: VulkanDevice, name: str, settings: GpuSettings, *, kernels: bool) -> GpuFinding:
    source = _source(name)
    n_prompt, n_decode = settings.prompt_tokens, settings.decode_tokens
    options = GraphOptions(max_rows=n_prompt, max_logit_rows=USERS, n_slots=USERS, seq_len=n_prompt + n_decode + 1)
    graph = build_graph(source.spec, source.tensors, options)
    program = device.compile(graph, source)
    source.close()
    tokens = [(7919 * i + 1) % graph.vocab_size for i in range(options.seq_len)]

    def row(position: int, slot: int = 0, *, wants: bool = True) -> Row:
        return Row(tokens[position], slot, position, wants)

    prompt = Batch.of([row(i, wants=i == n_prompt - 1) for i in range(n_prompt)])
    _wake(lambda: program.run(prompt), settings)
    prompt_seconds = statistics.median(_seconds(lambda: program.run(prompt)) for _ in range(3))
    singles = [Batch.of([row(n_prompt + i)]) for i in range(n_decode)]
    _wake(lambda: program.run(singles[0]), settings)
    token_seconds = statistics.median(_seconds(functools.partial(program.run, batch)) for batch in singles)
    users = Batch.of([row(n_prompt, slot) for slot in range(USERS)])
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


def _sentence(finding: GpuFinding, settings: GpuSettings, copy_rate: float) -> str:
    return (
        f"{finding.model}: decode {1 / finding.token_seconds:.1f} tokens/s ({share(finding, copy_rate):.0%} of copy "
        f"bandwidth), prompt {settings.prompt_tokens / finding.prompt_seconds:.1f} tokens/s"
    )


def _wake(run: Callable[[], None], settings: GpuSettings) -> None:
    """Computes once, which records and compiles, and until a GPU that slept meanwhile has its clock again."""
    start = time.perf_counter()
    run()
    while time.perf_counter() - start < settings.wake_seconds:
        run()


def _seconds(run: Callable[[], None]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(guarded(main))
