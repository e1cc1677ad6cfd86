"""Whether all nodes of a cluster are worth having, in a sentence."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from dllama_gpu.graph.division import DoesNotFitError, size_text
from dllama_gpu.graph.plan import ClusterPlan, plan
from dllama_gpu.graph.profile import LinkBetween, NodeProfile, PlanOptions
from dllama_gpu.graph.subset import best_subsets
from dllama_gpu.model.source import TensorInfo
from dllama_gpu.model.spec import ModelSpec

_WORTH_SAYING = 1.01  # how much faster something must be to be advised


@dataclass(frozen=True)
class Outlook:
    """What to expect of a cluster."""

    plan: ClusterPlan | None
    """With all nodes; None when the model does not fit them."""
    problem: str | None
    """Why there is no plan."""
    best: ClusterPlan
    """With the subset of nodes that is fastest."""
    advice: str | None


def consult(
    spec: ModelSpec,
    tensors: Mapping[str, TensorInfo],
    nodes: Sequence[NodeProfile],
    links: LinkBetween,
    options: PlanOptions,
) -> Outlook:
    """The plan for all nodes, the one for the best of them, and the advice that follows.

    Raises DoesNotFitError when the model fits no subset of the nodes, DllamaError for a ratio that does not suit them.
    """
    try:
        everyone, problem = plan(spec, tensors, nodes, links, options), None
    except DoesNotFitError as failure:
        everyone, problem = None, str(failure)
    best, unbounded = best_subsets(spec, tensors, nodes, links, options)
    sentence = None if everyone is None else advice(everyone, best)
    return Outlook(everyone, problem, best, sentence or capacity_advice(best, unbounded))


def advice(everyone: ClusterPlan, best: ClusterPlan) -> str | None:
    """What to change about the plan for all nodes to reach `best`; None when there is nothing to gain."""
    if best.tokens_per_second < _WORTH_SAYING * everyone.tokens_per_second:
        return None
    superfluous = [name for name in everyone.names if name not in best.names]
    now, then = _speed(everyone), _speed(best)
    if not superfluous:
        return f"leave out --ratio: these shares reach {now} tokens/s, shares by speed {then}"
    them = "it" if len(superfluous) == 1 else "them"
    return (
        f"leave out {_list(superfluous)}: with {them} {now} tokens/s, without {them} {then}; "
        f"{_reason(everyone, best, them)}"
    )


def capacity_advice(best: ClusterPlan, unbounded: ClusterPlan) -> str | None:
    """Which nodes of `best` only bring memory: those that `unbounded`, the best plan if memory were endless, spares."""
    helpers = [name for name in best.names if name not in unbounded.names]
    if not helpers or unbounded.tokens_per_second < _WORTH_SAYING * best.tokens_per_second:
        return None
    has = {node.node.name: node.node.memory_bytes for node in best.nodes}
    short = [node for node in unbounded.nodes if node.memory_bytes > has.get(node.node.name, 0)]
    wanted = _list([f"{node.node.name} with {size_text(node.memory_bytes)}" for node in short])
    return (
        f"{_list(helpers)} only {'adds' if len(helpers) == 1 else 'add'} memory: {wanted} of memory would reach "
        f"{_speed(unbounded)} tokens/s without {'it' if len(helpers) == 1 else 'them'}, instead of {_speed(best)}"
    )


def _reason(everyone: ClusterPlan, best: ClusterPlan, them: str) -> str:
    saved = 1000 * (best.compute_seconds - everyone.compute_seconds)
    added = 1000 * (everyone.exchange_seconds - best.exchange_seconds)
    each = 1000 * everyone.exchange_seconds / everyone.n_exchanges
    if saved <= 0:
        return (
            f"{them} included, computing a token takes {abs(saved):.2f} ms longer and exchanges {added:.1f} ms "
            f"({each:.2f} ms each)"
        )
    return (
        f"for a token {'its share saves' if them == 'it' else 'their shares save'} {saved:.1f} ms of computing and "
        f"cost{'s' if them == 'it' else ''} {added:.1f} ms of exchanges, which take {each:.2f} ms each"
    )


def _speed(plan: ClusterPlan) -> str:
    return f"{plan.tokens_per_second:.3g}"


def _list(names: Sequence[str]) -> str:
    return " and ".join(([", ".join(names[:-1])] if len(names) > 1 else []) + [names[-1]])
