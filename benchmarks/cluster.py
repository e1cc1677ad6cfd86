"""Measures clusters on one machine: `scripts/bench --cluster`, or `python -m benchmarks.cluster`.

METHODOLOGY.md, in this folder, says what is measured and why so.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import json
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path

from benchmarks import children
from benchmarks.cluster_findings import ClusterResults, ClusterRound, ExchangeFinding
from benchmarks.cluster_report import markdown
from benchmarks.cluster_root import ClusterJob, ClusterMeasurement, cluster_measurement_from_json
from benchmarks.exchange_node import ExchangeJob, ExchangeTimes
from benchmarks.findings import Settings, rate
from benchmarks.machine import this_machine
from benchmarks.measure import Job, to_json
from benchmarks.models import MODEL_NAMES, model_file
from dllama_gpu.errors import DllamaError
from dllama_gpu.graph.collective import Algorithm
from launcher.guard import guarded
from tests.support.namespaces import Network, Slow, UnavailableError, check_available
from tests.support.worker_command import WorkerCommand

_REPOSITORY = Path(__file__).parent.parent
_RESULTS = Path(__file__).parent / "results"
_DIM, _LAYERS = 4096, 32  # Llama 3.1 8B
_SLOW = Slow(seconds=150e-6, bits_per_second=1e9)
_LONGEST_SECONDS = 600

Where = tuple[list[str], Callable[[int], list[str]]]
"""Addresses of the nodes, and the command prefix that runs something as node n."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs what the command line asks for and returns the exit status."""
    options = _parser().parse_args(arguments)
    rounds = options.rounds or (1 if options.quick else 3)
    settings = Settings(64, 16, 1, rounds) if options.quick else Settings(128, 64, 3, rounds)
    machine = this_machine()
    if machine.load_average is not None and machine.load_average > 0.5:
        _say(f"other programs use this machine (load average {machine.load_average:.2f}); the numbers will be noisy")
    exchanges, slow_network = _measure_exchanges(quick=options.quick)
    found = [
        _round(options.model, model_file(options.model), settings, number + 1) for number in range(settings.rounds)
    ]
    results = ClusterResults(
        date=datetime.date.today().isoformat(),
        machine=machine,
        settings=settings,
        model=options.model,
        slow_network=slow_network,
        exchanges=exchanges,
        rounds=found,
    )
    print(markdown(results))
    if not options.quick:
        stem = f"{results.date}-{machine.slug}-cluster"
        (_RESULTS / f"{stem}.json").write_text(json.dumps(asdict(results), indent=1) + "\n", encoding="utf-8")
        (_RESULTS / f"{stem}.md").write_text(markdown(results), encoding="utf-8")
        _say(f"saved as {_RESULTS / stem}.json and .md")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="scripts/bench --cluster", description="Measure clusters on this machine; see benchmarks/METHODOLOGY.md."
    )
    parser.add_argument(
        "--model", default="llama-3.2-1b", choices=MODEL_NAMES, help="that the nodes run together (%(default)s)"
    )
    parser.add_argument("--rounds", type=int, help="how often everything with the model is done (3)")
    parser.add_argument("--quick", action="store_true", help="one short round, not saved: does everything still work?")
    return parser


def _measure_exchanges(*, quick: bool) -> tuple[list[ExchangeFinding], str]:
    """Exchanges on loopback and, where this machine can have one, on a slow network; and what that is made of."""
    repetitions = 50 if quick else 500
    found = [
        _exchange("loopback", n_nodes, n_rows, algorithm, repetitions, whole_token=whole)
        for n_nodes in (2, 4, 8)
        for n_rows, whole in ((1, False), (128, False), (1, True))
        for algorithm in Algorithm
    ]
    try:
        check_available(slow=True)
    except UnavailableError as reason:
        return found, f"not measured: {reason}"
    for n_nodes in (2, 4):
        with Network(n_nodes, _SLOW) as network:
            where = [network.address(node) for node in range(n_nodes)]
            for n_rows, whole in ((1, False), (128, False), (1, True)):
                for algorithm in Algorithm:
                    found.append(
                        _exchange(
                            "slow network",
                            n_nodes,
                            n_rows,
                            algorithm,
                            repetitions,
                            whole_token=whole,
                            hosts=where,
                            prefix=network.command,
                        )
                    )
    return found, network.made_of


def _exchange(
    network: str,
    n_nodes: int,
    n_rows: int,
    algorithm: Algorithm,
    repetitions: int,
    *,
    whole_token: bool,
    hosts: Sequence[str] | None = None,
    prefix: Callable[..., list[str]] = lambda node, *command: list(command),
) -> ExchangeFinding:
    if whole_token or n_rows > 1:
        repetitions = max(5, repetitions // 10)
    job = ExchangeJob(_DIM, _LAYERS, n_rows, "q80", algorithm.value, repetitions, whole_token)
    places = zip(hosts or ["127.0.0.1"] * n_nodes, _free_ports(n_nodes), strict=True)
    addresses = ",".join(f"{host}:{port}" for host, port in places)
    command = [sys.executable, "-m", "benchmarks.exchange_node"]
    nodes = [
        subprocess.Popen(
            prefix(node, *command, str(node), addresses, to_json(job)),
            cwd=_REPOSITORY,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for node in range(n_nodes)
    ]
    try:
        said = [node.communicate(timeout=_LONGEST_SECONDS) for node in nodes]
        if any(node.returncode for node in nodes):
            raise DllamaError(f"nodes that exchange failed: {'; '.join(error.strip() for _, error in said)}")
        times = [ExchangeTimes(**json.loads(out)) for out, _ in said]
    finally:
        for node in nodes:
            node.kill()
            node.wait()
    finding = ExchangeFinding(network, n_nodes, job, times[0].seconds, [each.bytes_sent for each in times])
    what = "a token's exchanges" if whole_token else f"all-reduce of {n_rows} x {_DIM}"
    _say(f"{network}, {n_nodes} nodes, {algorithm.value}: {what} takes {1e3 * finding.median_seconds:.3f} ms")
    return finding


def _free_ports(n: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        return [stack.enter_context(socket.create_server(("127.0.0.1", 0))).getsockname()[1] for _ in range(n)]


def _round(name: str, path: Path, settings: Settings, number: int) -> ClusterRound:
    """One node, then two with nothing in their caches, then two that have all."""
    job = Job(str(path), 1, settings.prompt_tokens, settings.decode_tokens, settings.repetitions)
    alone = children.measure_ours(job)
    with tempfile.TemporaryDirectory(prefix="dllama-gpu-bench-") as folder, _worker(Path(folder)) as address:
        cluster_job = ClusterJob(job, [address], str(Path(folder, "root")))
        cold, warm = (_measure_cluster(cluster_job) for _ in range(2))
    rates = " / ".join(f"{rate(one, 'decode', settings):.1f}" for one in (alone, warm.measurement))
    _say(
        f"{name}, round {number} of {settings.rounds}: decode on 1 / 2 nodes {rates} tokens/s (expected "
        f"{warm.expected_tokens_per_second:.1f}), load cold / warm {cold.load_seconds:.2f} / {warm.load_seconds:.2f} s"
    )
    return ClusterRound(alone, cold, warm)


@contextlib.contextmanager
def _worker(folder: Path) -> Iterator[str]:
    worker = WorkerCommand(folder / "worker", "--device", "cpu")
    try:
        yield worker.address
    finally:
        worker.stop()


def _measure_cluster(job: ClusterJob) -> ClusterMeasurement:
    return cluster_measurement_from_json(children.run_module(sys.executable, "benchmarks.cluster_root", to_json(job)))


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(guarded(main))
