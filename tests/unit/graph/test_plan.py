"""Plans tile the model, respect speed and memory, and never make a cluster slower than it must be."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from dllama_gpu.errors import DllamaError
from dllama_gpu.graph.architectures import build_graph
from dllama_gpu.graph.check import check
from dllama_gpu.graph.collective import Algorithm, latest
from dllama_gpu.graph.division import DoesNotFitError, fill
from dllama_gpu.graph.graph import BufferType
from dllama_gpu.graph.load import measure
from dllama_gpu.graph.options import GraphOptions
from dllama_gpu.graph.plan import ClusterPlan, plan
from dllama_gpu.graph.profile import Link, NodeProfile, PlanOptions
from dllama_gpu.graph.shard import BLOCK, Shard, Span, head_unit
from dllama_gpu.graph.subset import best_subset, best_subsets
from dllama_gpu.model.float_type import FloatType
from dllama_gpu.model.spec import ModelSpec
from tests.support.clusters import Model, everywhere, llama, llama_8b, node

OPTIONS = PlanOptions(seq_len=64, max_rows=8)


@st.composite
def models(draw: st.DrawFn) -> Model:
    n_kv_heads = draw(st.integers(1, 6))
    return llama(
        32 * draw(st.integers(1, 12)),
        32 * draw(st.integers(1, 40)),
        n_layers=draw(st.integers(1, 4)),
        n_heads=n_kv_heads * draw(st.integers(1, 4)),
        n_kv_heads=n_kv_heads,
        head_dim=draw(st.sampled_from([32, 64, 96])),
        vocab_size=draw(st.integers(1, 2000)),
        weight_type=draw(st.sampled_from([FloatType.Q40, FloatType.Q80, FloatType.F16])),
        tied_embeddings=draw(st.booleans()),
    )


SPEEDS = st.floats(0.01, 1000.0)


@st.composite
def clusters(draw: st.DrawFn, max_nodes: int = 7, memory: st.SearchStrategy[float] | None = None) -> list[NodeProfile]:
    return [
        node(
            f"n{number}",
            gigabytes_per_second=draw(SPEEDS),
            gigabytes=64.0 if memory is None else draw(memory),
            op_seconds=draw(st.sampled_from([0.0, 1e-6, 1e-4])),
        )
        for number in range(draw(st.integers(1, max_nodes)))
    ]


def assert_tiled(found: ClusterPlan, spec: ModelSpec) -> None:
    for spans, total in (
        ([shard.heads for shard in found.shards], spec.n_heads),
        ([shard.hidden for shard in found.shards], spec.hidden_dim),
        ([shard.vocab for shard in found.shards], spec.vocab_size),
    ):
        assert [span.begin for span in spans] == [0, *(span.end for span in spans[:-1])]
        assert spans[-1].end == total
    assert [(shard.rank, shard.n_nodes) for shard in found.shards] == [
        (rank, len(found.nodes)) for rank in range(len(found.nodes))
    ]


def units(span: Span, unit: int) -> int:
    return -(-len(span) // unit)


@given(model=models(), nodes=clusters(memory=st.floats(0.0, 0.004)))
def test_shares_tile_the_model_and_fit_every_memory_or_a_sentence_says_why_not(
    model: Model, nodes: list[NodeProfile]
) -> None:
    spec, tensors = model
    try:
        found = plan(spec, tensors, nodes, everywhere(), OPTIONS)
    except DoesNotFitError:
        # Then the root alone is too small as well, or another node is too small to take part at all.
        alone = plan(spec, tensors, [replace(nodes[0], memory_bytes=10**12)], everywhere(), OPTIONS)
        empty = Shard(1, 2, Span(0, 0), Span(0, 0), Span(0, 0))
        bare = measure(build_graph(spec, tensors, GraphOptions(max_rows=8, seq_len=64), empty)).memory_bytes
        candidates = 8 * 4 * (64 + 64 + 1)  # the root of a cluster keeps its own beside those of all
        root_fits = nodes[0].memory_bytes >= alone.nodes[0].memory_bytes + candidates
        assert not root_fits or any(profile.memory_bytes < bare for profile in nodes[1:])
        return
    assert_tiled(found, spec)
    for share in found.nodes:
        assert share.memory_bytes <= share.node.memory_bytes


@given(model=models(), ratio=st.lists(st.floats(0, 100), min_size=1, max_size=6).filter(lambda r: sum(r) > 0))
def test_shares_by_hand_tile_the_model(model: Model, ratio: list[float]) -> None:
    nodes = [node(f"n{number}") for number in range(len(ratio))]
    found = plan(*model, nodes, everywhere(), replace(OPTIONS, ratio=tuple(ratio)))
    assert_tiled(found, model[0])
    for share, wanted in zip(found.nodes, ratio, strict=True):
        assert wanted > 0 or not (share.shard.heads or share.shard.hidden or share.shard.vocab)


@given(model=models(), nodes=clusters(), buffer_type=st.sampled_from([BufferType.Q80, BufferType.F32]))
@settings(max_examples=40)
def test_memory_is_that_of_the_graphs_which_the_nodes_will_run(
    model: Model, nodes: list[NodeProfile], buffer_type: BufferType
) -> None:
    spec, tensors = model
    # Layers of unlike formats are measured each for itself.
    tensors["layers.0.down"] = replace(tensors["layers.0.down"], float_type=FloatType.F32)
    last_v = f"layers.{spec.n_layers - 1}.v"
    tensors[last_v] = replace(tensors[last_v], float_type=FloatType.F16)
    options = replace(OPTIONS, buffer_type=buffer_type, n_slots=3, max_logit_rows=2)
    for share in plan(spec, tensors, nodes, everywhere(), options).nodes:
        graph = build_graph(
            spec,
            tensors,
            GraphOptions(max_rows=8, max_logit_rows=2, n_slots=3, seq_len=64, buffer_type=buffer_type),
            share.shard,
        )
        check(graph)
        assert share.weight_bytes == graph.weight_bytes()
        assert share.kv_cache_bytes == graph.kv_cache_bytes()
        assert share.buffer_bytes == measure(graph).buffer_bytes
        load = measure(graph)
        seconds = sum(segment.decode_seconds(share.node) for segment in load.segments)
        assert share.decode_seconds == pytest.approx(seconds)


@given(model=models(), nodes=clusters())
def test_a_faster_node_never_gets_less_and_equal_nodes_differ_by_a_unit(model: Model, nodes: list[NodeProfile]) -> None:
    spec, tensors = model
    twins = [*nodes, replace(nodes[0], name="twin")]
    found = plan(spec, tensors, twins, everywhere(), OPTIONS)
    group = spec.n_heads // spec.n_kv_heads
    for share in found.nodes:
        for other in found.nodes:
            faster = share.node.bytes_per_second >= other.node.bytes_per_second
            no_dearer = share.node.op_seconds <= other.node.op_seconds
            if faster and no_dearer:
                same = share.node.bytes_per_second == other.node.bytes_per_second
                slack = int(same and share.node.op_seconds == other.node.op_seconds)
                # The last unit of a part may be a smaller one, and heads may have been cut at whole groups.
                assert units(share.shard.hidden, BLOCK) >= units(other.shard.hidden, BLOCK) - slack
                assert units(share.shard.vocab, BLOCK) >= units(other.shard.vocab, BLOCK) - slack
                heads = max(group, head_unit(spec)) if slack else 0
                assert len(share.shard.heads) >= len(other.shard.heads) - heads


@given(model=models(), nodes=clusters(max_nodes=4), useless_speed=st.floats(1e-8, 1e-3), latency=st.floats(0, 1))
@settings(max_examples=40)
def test_a_useless_node_never_makes_the_best_subset_slower(
    model: Model, nodes: list[NodeProfile], useless_speed: float, latency: float
) -> None:
    def links(first: str, second: str) -> Link:
        return Link(latency if "useless" in (first, second) else 1e-4, 117e6)

    useless = node("useless", gigabytes_per_second=useless_speed)
    without = best_subset(*model, nodes, links, OPTIONS)
    within = best_subset(*model, [*nodes, useless], links, OPTIONS)
    assert within.decode_seconds <= without.decode_seconds
    assert without.decode_seconds <= plan(*model, nodes, links, OPTIONS).decode_seconds
    assert within.names[0] == nodes[0].name


@given(model=models(), nodes=clusters(max_nodes=4, memory=st.floats(0.001, 0.02)))
@settings(max_examples=40)
def test_the_best_subset_if_memory_were_endless_is_found_on_the_way(model: Model, nodes: list[NodeProfile]) -> None:
    boundless = [replace(profile, memory_bytes=10**18) for profile in nodes]
    try:
        found = best_subsets(*model, nodes, everywhere(), OPTIONS)
    except DoesNotFitError:
        return
    assert found[0] == best_subset(*model, nodes, everywhere(), OPTIONS)
    assert found[1] == best_subset(*model, boundless, everywhere(), OPTIONS)


@given(
    n_units=st.integers(0, 60),
    nodes=st.lists(st.tuples(st.floats(0, 10), st.floats(0.01, 10), st.integers(0, 60)), min_size=1, max_size=5),
)
def test_units_are_handed_out_so_that_the_last_is_done_as_early_as_possible(
    n_units: int, nodes: list[tuple[float, float, int]]
) -> None:
    first, each, limits = map(list, zip(*nodes, strict=True))
    counts = fill(n_units, first, each, limits)
    if sum(limits) < n_units:
        assert counts is None
        return
    assert counts is not None
    assert sum(counts) == n_units
    assert all(0 <= count <= limit for count, limit in zip(counts, limits, strict=True))
    assume(n_units > 0)
    # Greedy from nothing is optimal: each unit goes where it is done first.
    slow = [0] * len(nodes)
    for _ in range(n_units):
        able = [i for i in range(len(nodes)) if slow[i] < limits[i]]
        slow[min(able, key=lambda i: first[i] + (slow[i] + 1) * each[i])] += 1

    def done(units: list[int]) -> float:
        return max(first[i] + units[i] * each[i] for i in range(len(nodes)) if units[i])

    assert done(counts) == pytest.approx(done(slow))


def test_a_small_node_carries_what_it_can_and_the_others_the_rest() -> None:
    model = llama_8b()
    fast_but_small = node("gpu", gigabytes_per_second=400, gigabytes=2)
    nodes = [fast_but_small, *(node(f"pi{number}", gigabytes=7) for number in range(3))]
    found = plan(*model, nodes, everywhere(), PlanOptions(2048))
    used = found.nodes[0].memory_bytes
    assert 0.95 * 2e9 < used <= 2e9
    hidden = [len(share.shard.hidden) for share in found.nodes[1:]]
    assert max(hidden) - min(hidden) <= BLOCK


def test_a_cluster_that_only_just_holds_the_model_is_used_to_the_last() -> None:
    model = llama_8b()
    options = PlanOptions(2048)
    ample = plan(*model, [node(f"n{number}") for number in range(3)], everywhere(), options)
    total = sum(share.memory_bytes for share in ample.nodes)
    speeds = (80, 10, 1)
    tight = [
        node(f"n{number}", gigabytes_per_second=speed, gigabytes=1.03 * total / 3e9)
        for number, speed in enumerate(speeds)
    ]
    found = plan(*model, tight, everywhere(), options)
    assert all(share.memory_bytes <= share.node.memory_bytes for share in found.nodes)
    with pytest.raises(DoesNotFitError, match=r"the model needs .* are missing; add a node, or lower --max-seq-len"):
        plan(*model, [replace(profile, memory_bytes=int(0.3 * total)) for profile in tight], everywhere(), options)


def test_a_node_too_small_for_anything_is_named() -> None:
    nodes = [node("root"), node("thermostat", gigabytes=1e-5)]
    with pytest.raises(DoesNotFitError, match=r"thermostat has 10\.0 kB of memory"):
        plan(*llama_8b(), nodes, everywhere(), PlanOptions(2048))
    assert best_subset(*llama_8b(), nodes, everywhere(), PlanOptions(2048)).names == ("root",)


def test_bytes_on_the_network_are_those_of_the_algorithms() -> None:
    """One row of 4096 columns is 4352 bytes in Q80; Llama 3 8B adds up 64 of them for a token."""
    for n_nodes in (2, 4, 8):
        nodes = [node(f"n{number}") for number in range(n_nodes)]
        found = plan(*llama_8b(), nodes, everywhere(), PlanOptions(2048))
        worker, others = found.nodes[1], n_nodes - 1
        candidates = (64 + 64 + 1) * 4
        assert worker.sent.direct == others * 64 * 4352 + candidates
        assert worker.sent.reduce_scatter == 2 * others * 64 * 4352 / n_nodes + candidates
        assert found.nodes[0].sent.direct == others * (64 * 4352 + 4 * 4096)
        between_workers = [link for link in found.links if "n0" not in (link.first, link.second)]
        assert {link.bytes.direct for link in between_workers} <= {2 * 64 * 4352}
        assert len(found.links) == n_nodes * others // 2


@pytest.mark.parametrize("n_messages", [1, 2, 3, 6, 12, 56, 1000])
def test_the_latest_of_many_messages_is_late_by_the_mean_times_a_harmonic_number(n_messages: int) -> None:
    harmonic = sum(1 / k for k in range(1, n_messages + 1))
    assert latest(np.full(n_messages, 2e-3)) == pytest.approx(2e-3 * harmonic, rel=0.02)


def test_steady_messages_do_not_make_late_ones_later() -> None:
    assert latest(np.zeros(5)) == 0.0
    assert latest(np.array([1e-3, 0, 0, 0])) == pytest.approx(1e-3, rel=0.02)
    assert latest(np.array([1e-3, 1e-6, 1e-6])) == pytest.approx(1e-3, rel=0.02)


def test_jitter_costs_every_exchange_and_more_with_more_nodes() -> None:
    spec, tensors = llama_8b()

    def exchange_seconds(n_nodes: int, jitter: float) -> float:
        machines = [node(f"node{number}") for number in range(n_nodes)]
        link = Link(3e-4, 117e6, jitter)
        return plan(spec, tensors, machines, lambda first, second: link, PlanOptions(seq_len=2048)).exchange_seconds

    late = [exchange_seconds(n, 1e-3) - exchange_seconds(n, 0.0) for n in (2, 4)]
    n_exchanges = 2 * spec.n_layers + 2
    assert late[0] > n_exchanges * 1e-3
    assert late[1] > 1.5 * late[0]


def test_slow_links_are_better_used_by_two_hops_and_long_ones_by_one() -> None:
    nodes = [node(f"n{number}") for number in range(8)]
    thin = plan(*llama_8b(), nodes, everywhere(1e-5, 1e6), PlanOptions(2048))
    far = plan(*llama_8b(), nodes, everywhere(1e-2, 1e9), PlanOptions(2048))
    assert thin.algorithm is Algorithm.REDUCE_SCATTER_ALL_GATHER
    assert far.algorithm is Algorithm.DIRECT
    assert far.exchange_seconds == pytest.approx(66 * 1e-2, rel=0.05)


def test_one_node_decodes_as_fast_as_its_memory_and_prefills_as_fast_as_its_arithmetic() -> None:
    (share,) = (found := plan(*llama_8b(), [node("pi", op_seconds=0)], everywhere(), PlanOptions(2048))).nodes
    spec = llama_8b()[0]
    embedding = spec.vocab_size * spec.dim * 18 // 32
    cached = 512 * 32 * 2 * 2 * spec.kv_dim
    assert found.decode_seconds == pytest.approx((share.weight_bytes - embedding + cached) / 10e9, rel=1e-4)
    matrices = 32 * (2 * spec.dim**2 + 2 * spec.dim * spec.kv_dim + 3 * spec.dim * spec.hidden_dim)
    attention = 32 * 2 * 512 * spec.q_dim
    assert found.prefill_tokens_per_second == pytest.approx(60e9 / (2 * (matrices + attention)), rel=1e-2)
    assert (found.exchange_seconds, found.n_exchanges, found.links) == (0, 0, ())


def test_many_nodes_are_thinned_out_one_by_one() -> None:
    model = llama(256, 512, n_layers=2, n_heads=8, n_kv_heads=4, head_dim=32, vocab_size=512)
    nodes = [node(f"n{number}", gigabytes=1 + number) for number in range(12)]
    found = best_subset(*model, nodes, everywhere(), OPTIONS)
    assert found.names == ("n0",)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"nodes": []}, "at least one node"),
        ({"nodes": [node("a"), node("a")]}, "two nodes are named a"),
        ({"ratio": (1.0,)}, "the ratio has 1 shares for 2 nodes"),
        ({"ratio": (0.0, 0.0)}, "shares must be"),
        ({"ratio": (1.0, 9.0)}, "b would need .* for its share of the ratio, but can give 1.00 GB; lower its share"),
    ],
)
def test_what_cannot_be_planned_is_explained(change: dict[str, object], sentence: str) -> None:
    arguments: dict[str, object] = {"nodes": [node("a"), node("b", gigabytes=1)], "ratio": None} | change
    with pytest.raises(DllamaError, match=sentence):
        plan(*llama_8b(), arguments["nodes"], everywhere(), PlanOptions(2048, ratio=arguments["ratio"]))  # type: ignore[arg-type]


@pytest.mark.parametrize("figure", ["bytes_per_second", "flops_per_second", "memory_bytes", "op_seconds"])
@pytest.mark.parametrize("value", [-1.0, float("nan")])
def test_impossible_machines_are_refused(figure: str, value: float) -> None:
    with pytest.raises(DllamaError, match=f"{figure} of node a must be"):
        replace(node("a"), **{figure: value})


@pytest.mark.parametrize(("latency", "bandwidth"), [(-1.0, 1e9), (float("inf"), 1e9), (0.0, 0.0), (0.0, float("nan"))])
def test_impossible_links_are_refused(latency: float, bandwidth: float) -> None:
    with pytest.raises(DllamaError, match="of a link must be"):
        Link(latency, bandwidth)
