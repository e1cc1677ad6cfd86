import pytest

from benchmarks.cluster import _exchange
from benchmarks.cluster_findings import ClusterResults, ClusterRound, ExchangeFinding, original_bytes_per_token
from benchmarks.cluster_report import markdown
from benchmarks.cluster_root import ClusterMeasurement, cluster_measurement_from_json
from benchmarks.exchange_node import ExchangeJob
from benchmarks.findings import Settings
from benchmarks.machine import this_machine
from benchmarks.measure import Measurement, to_json
from dllama_gpu.graph.collective import Algorithm


def test_the_original_sends_272_kib_for_every_other_node() -> None:
    for n_nodes in (2, 4, 8):
        assert original_bytes_per_token(n_nodes, 4096, 32) == (n_nodes - 1) * 272 * 1024


@pytest.mark.parametrize("algorithm", Algorithm)
def test_exchanges_among_processes_are_timed_and_counted(algorithm: Algorithm) -> None:
    one = _exchange("loopback", 2, 1, algorithm, 5, whole_token=False)
    token = _exchange("loopback", 2, 1, algorithm, 5, whole_token=True)
    assert len(one.seconds) == 5
    assert 0 < one.median_seconds < token.median_seconds
    n_frames = {Algorithm.DIRECT: 1, Algorithm.REDUCE_SCATTER_ALL_GATHER: 2}[algorithm]
    assert one.bytes_sent == [4352 + 28 * n_frames] * 2
    root, worker = token.bytes_sent
    assert root == 64 * one.bytes_sent[0] + 4 * 4096 + 28, "the embedded row, too"
    assert worker > 64 * one.bytes_sent[0]


def test_a_report_compares_rounds_and_says_what_was_not_measured() -> None:
    measurement = Measurement("dllama-gpu", [0.5], [2.0], 1.0, 1 << 20, [])
    faster = ClusterMeasurement(
        Measurement("dllama-gpu", [0.25], [1.6], 1.0, 1 << 20, []), 1.0, 2.0, 0, 50.0, 1e5, 2e-5, 1e-6
    )
    assert cluster_measurement_from_json(to_json(faster)) == faster
    finding = ExchangeFinding(
        "loopback", 4, ExchangeJob(4096, 32, 1, "q80", "direct", 2, True), [0.001, 0.003], [900e3] + [835584.0] * 3
    )
    results = ClusterResults(
        "2026-01-01", this_machine(), Settings(128, 64, 1, 1), "tiny", "not measured: no root", [finding],
        [ClusterRound(measurement, faster, faster)],
    )  # fmt: skip
    text = markdown(results)
    assert "not measured: no root" in text
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if "|" in line]
    assert ["4", "direct", "900", "836", "836", "**1.02**"] in cells
    assert ["decode", "32.0", "40.0", "**1.25** (1.25–1.25)", "50.0", "0.80 (0.80–0.80)"] in cells
