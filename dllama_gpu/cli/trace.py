"""--trace: writing what every node did and when."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from dllama_gpu.cli.display import note
from dllama_gpu.graph.graph import Graph
from dllama_gpu.net.chrome_trace import write_trace
from dllama_gpu.net.trace import Lane


def save_trace(path: Path, lanes: Sequence[Lane], graph: Graph, model: str) -> None:
    """Writes the file and says where it is. Raises DllamaError when it cannot be written."""
    write_trace(path, lanes, graph, f"dllama-gpu, {model}")
    untold = max(lane.n_untold for lane in lanes)
    note(
        "trace",
        f"{path}; open it with chrome://tracing or https://ui.perfetto.dev"
        + (f"; it had no room for the last {untold} steps" if untold else ""),
    )
