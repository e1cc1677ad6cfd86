"""A trace as the JSON that chrome://tracing and Perfetto (ui.perfetto.dev) show.

Source: "Trace Event Format", https://docs.google.com/document/d/1CvAClvFfyA5R-PhYUmn5OOQtYMH4h6I0nSsKchNAySU
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from dllama_gpu.errors import DllamaError
from dllama_gpu.graph.graph import GatedMatmul, Graph, Matmul
from dllama_gpu.net.trace import Lane

_MICROSECONDS = 1e6
_PROCESS = 1


def write_trace(path: Path, lanes: Sequence[Lane], graph: Graph, title: str) -> None:
    """Writes the lanes of all nodes by rank; `graph` is any node's, it names the segments.

    Raises DllamaError when the file cannot be written.
    """
    try:
        with path.open("w", encoding="utf-8") as file:
            file.write('{"displayTimeUnit":"ms","traceEvents":[\n')
            separator = ""
            for event in events(lanes, graph, title):
                file.write(separator + json.dumps(event, separators=(",", ":")))
                separator = ",\n"
            file.write("\n]}\n")
    except OSError as error:
        raise DllamaError(f"the trace cannot be written to {path} ({error.strerror or error})") from error


def events(lanes: Sequence[Lane], graph: Graph, title: str) -> Iterator[dict[str, Any]]:
    """One lane a node: steps, and in each the computing, waiting and moving of its segments."""
    yield _about("process_name", 0, name=title)
    begins = [float(lane.records["begin"][0]) for lane in lanes if len(lane.records)]
    origin = min(begins, default=0.0)
    names = _segment_names(graph)
    for rank, lane in enumerate(lanes):
        yield _about("thread_name", rank, name=f"{rank} {lane.name} (clock ± {1e6 * lane.clock_error:.0f} µs)")
        yield _about("thread_sort_index", rank, sort_index=rank)
        yield from _lane_events(rank, lane, names, origin)


def _lane_events(rank: int, lane: Lane, names: Sequence[str], origin: float) -> Iterator[dict[str, Any]]:
    records = lane.records
    step_begin = 0.0
    for record in records.tolist():
        step, segment, ends_step, n_rows, awaited, begin, exchange, moving, end, sent, received = record
        if segment == 0:
            step_begin = begin
        if segment < len(names):  # behind the last exchange there is nothing to compute
            yield _span(rank, f"compute {names[segment]}", "compute", begin - origin, exchange - begin)
        if moving > exchange:
            arguments = {"for": awaited} if awaited >= 0 else {}
            yield _span(rank, "wait", "wait", exchange - origin, moving - exchange, **arguments)
        if end > moving:
            yield _span(rank, "exchange", "exchange", moving - origin, end - moving, sent=sent, received=received)
        if ends_step:
            what = "1 row" if n_rows == 1 else f"{n_rows} rows"
            yield _span(rank, f"step {step}: {what}", "step", step_begin - origin, end - step_begin)


def _segment_names(graph: Graph) -> list[str]:
    """The weights of the last matrix product before each exchange: what the segment leads up to."""
    names = []
    for ops, _ in graph.segments():
        weights = [
            op.weight if isinstance(op, Matmul) else op.gate for op in ops if isinstance(op, Matmul | GatedMatmul)
        ]
        names.append(weights[-1] if weights else "-")
    return names


def _span(rank: int, name: str, category: str, begin: float, duration: float, **arguments: int) -> dict[str, Any]:
    event: dict[str, Any] = {"ph": "X", "pid": _PROCESS, "tid": rank, "name": name, "cat": category}
    event["ts"] = round(begin * _MICROSECONDS, 3)
    event["dur"] = round(duration * _MICROSECONDS, 3)
    return event | ({"args": arguments} if arguments else {})


def _about(kind: str, rank: int, **arguments: str | int) -> dict[str, Any]:
    return {"ph": "M", "pid": _PROCESS, "tid": rank, "name": kind, "args": arguments}
