"""How long a step waits for the slowest of several nodes that hold whole experts, of which each row chooses some.

Nodes that each hold a part of every expert are always equally busy. Whole experts are cut less finely, but which nodes
have work is chance: the more even the shares, the longer is the longest expected to be.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from dllama_gpu.graph.load import SegmentLoad
from dllama_gpu.graph.profile import NodeProfile

_DRAWS = 512
_SEED = 20


def slowest_seconds(segments: Sequence[SegmentLoad], nodes: Sequence[NodeProfile]) -> float:
    """Seconds until the last node has computed its segment for one row; with whole experts, the expected time.

    Every row is taken to choose among all experts alike. The expectation is over a fixed sample of choices.
    """
    seconds = [segment.decode_seconds(node) for segment, node in zip(segments, nodes, strict=True)]
    found = next((segment.experts for segment in segments if segment.experts is not None), None)
    if found is None:
        return max(seconds)
    held = [0 if segment.experts is None else segment.experts.n_held for segment in segments]
    each = [
        0.0 if segment.experts is None else segment.experts.bytes_each / node.bytes_per_second
        for segment, node in zip(segments, nodes, strict=True)
    ]
    chosen = np.random.default_rng(_SEED).multivariate_hypergeometric(held, found.n_chosen, _DRAWS, method="marginals")
    # What a segment takes holds the expected number of experts already.
    expected = np.array(held) * found.n_chosen / sum(held)
    times = np.array(seconds) + (chosen - expected) * np.array(each)
    return float(times.max(axis=1).mean())
