"""GET /api/cluster: what the page shows of the nodes and of the work that they do."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from dllama_gpu.api.service import Node, Service
from dllama_gpu.engine.statistics import EngineStatistics
from dllama_gpu.net.messages import NodeStatistics


def cluster_json(service: Service) -> dict[str, Any]:
    """The state of all. What is not known is null; times and bytes are those of a generated token."""
    statistics = service.engine.statistics()
    nodes = service.nodes()
    return {
        "model": service.model_id,
        "context": service.context,
        "uptime_seconds": statistics.uptime_seconds,
        "slots": {"total": len(statistics.slots), "busy": statistics.n_running},
        "queue": {"waiting": statistics.n_queued, "limit": statistics.max_queue},
        "requests": {"finished": sum(statistics.n_finished.values()), "failed": statistics.n_failed},
        "tokens_per_second": {
            "decode": statistics.decode_tokens_per_second,
            "prefill": statistics.prefill_tokens_per_second,
        },
        "state": statistics.state,
        "message": statistics.message,
        "nodes": [_node_json(rank, node, _measured(statistics, nodes, rank)) for rank, node in enumerate(nodes)],
    }


def _measured(statistics: EngineStatistics, nodes: Sequence[Node], rank: int) -> NodeStatistics | None:
    # While a cluster is built anew the numbers may be those of other nodes.
    n_working = sum(not node.is_lost for node in nodes)
    return statistics.nodes[rank] if rank < n_working == len(statistics.nodes) else None


def _node_json(rank: int, node: Node, measured: NodeStatistics | None) -> dict[str, Any]:
    decode = None if measured is None or measured.decode.n_rows == 0 else measured.decode
    n_rows = 1 if decode is None else decode.n_rows

    def per_token(total: float) -> float | None:
        return None if decode is None else total / n_rows

    compute, waiting, exchange = (
        (0.0, 0.0, 0.0) if decode is None else (decode.compute_seconds, decode.waiting_seconds, decode.exchange_seconds)
    )
    return {
        "rank": rank,
        "name": node.name,
        "host": node.host,
        "device": node.device,
        "share": node.share,
        "weight_bytes": node.weight_bytes,
        "kv_cache_bytes": node.kv_cache_bytes,
        "memory_bytes": node.memory_bytes,
        "compute_ms": per_token(1e3 * compute),
        "waiting_ms": per_token(1e3 * waiting),
        "network_ms": per_token(1e3 * max(0.0, exchange - waiting)),
        "sent_bytes_per_token": per_token(0 if decode is None else decode.bytes_sent),
        "received_bytes_per_token": per_token(0 if decode is None else decode.bytes_received),
        "state": "lost" if node.is_lost else "ok",
    }
