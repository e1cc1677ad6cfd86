"""What a GPU was found to do, and that as Markdown."""

from __future__ import annotations

from dataclasses import dataclass, field

from benchmarks.findings import Settings, agreement, rate
from benchmarks.machine import Machine
from benchmarks.measure import Measurement
from benchmarks.report import table

USERS = 8


@dataclass(frozen=True)
class GpuSettings:
    """How much is run."""

    prompt_tokens: int
    decode_tokens: int
    copy_bytes: int
    repetitions: int
    """Of prompt and decode in each process where programs stand beside one another."""
    wake_seconds: float = 0.0
    """How long a GPU computes before it is timed."""


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
class Beside:
    """One file and the same work, by programs in processes of their own, one after the other."""

    model: str
    gpu: Measurement
    cpu: Measurement
    """Our own CPU device."""
    peer: Measurement | None
    """llama.cpp on the same GPU."""


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
    besides: list[Beside] = field(default_factory=list)


def markdown(results: GpuResults) -> str:
    """The report."""
    settings = results.settings
    rows = [
        [
            finding.model,
            f"{finding.matrix_bytes / 1e9:.2f} GB",
            f"{1 / finding.token_seconds:.1f}",
            f"{share(finding, results.copy_rate):.0%}",
            f"{USERS / finding.users_seconds:.1f}",
            f"{settings.prompt_tokens / finding.prompt_seconds:.1f}",
            f"{2 * finding.prompt_macs / finding.prompt_seconds / 1e12:.3f}",
            f"{finding.dispatches} / {finding.barriers} / {finding.submits}",
        ]
        for finding in results.models
    ]
    heads = [
        "model, Q40",
        "matrices",
        "decode, tokens/s",
        "of copy bandwidth",
        f"{USERS} users, tokens/s",
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
    if results.besides:
        parts.append(_beside(results))
    for finding in results.models:
        if finding.kernels:
            lines = [[key, str(n), f"{1e3 * seconds:.3f}"] for key, (n, seconds) in finding.kernels.items()]
            parts.append(f"{finding.model}, one token by shader:\n\n" + table(["shader", "runs", "ms"], lines))
    return "\n\n".join(parts) + "\n"


def _beside(results: GpuResults) -> str:
    settings = results.settings
    sizes = Settings(settings.prompt_tokens, settings.decode_tokens, settings.repetitions, 1)
    rows, programs = [], []
    for beside in results.besides:
        named = [("Vulkan, ours", beside.gpu), ("CPU, ours", beside.cpu), ("Vulkan, llama.cpp", beside.peer)]
        for name, found in named:
            if found is None:
                continue
            rates = [f"{rate(found, phase, sizes):.1f}" for phase in ("decode", "prefill")]
            rows.append([beside.model, name, *rates, f"{agreement(beside.cpu, found):.4f}"])
            programs.append(f"- {name}: {found.program}")
    heads = ["model", "program", "decode, tokens/s", "prompt, tokens/s", "logits agree with our CPU's"]
    return (
        f"Beside one another, each in a process of its own on the same file: a prompt of {settings.prompt_tokens} and "
        f"{settings.decode_tokens} tokens one by one, median of {settings.repetitions}.\n\n"
        + table(heads, rows)
        + "\n\n"
        + "\n".join(dict.fromkeys(programs))
    )


def share(finding: GpuFinding, copy_rate: float) -> float:
    """Of the copy bandwidth that decode reaches by reading the matrices alone."""
    return finding.matrix_bytes / finding.token_seconds / copy_rate
