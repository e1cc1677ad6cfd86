"""What the search for Q40 scales gains over the plain rule, in perplexity.

    python -m benchmarks.quantization

Converts the default model to `.m` with either method and measures both, and the GGUF file itself, on the text whose ids
stand in tests/data/golden_smollm2.json, in exact f32 arithmetic: 8 windows of 512 tokens.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Literal

from dllama_gpu.cpu.device import CpuDevice
from dllama_gpu.engine.loading import build_graph
from dllama_gpu.engine.perplexity import measure_perplexity
from dllama_gpu.graph.graph import BufferType
from dllama_gpu.graph.options import GraphOptions
from dllama_gpu.model.convert import convert_to_m
from dllama_gpu.model.float_type import FloatType
from dllama_gpu.model.open import open_model
from dllama_gpu.model.source import ModelSource

REPOSITORY = Path(__file__).resolve().parents[1]
DEFAULT_MODEL = REPOSITORY / "models" / "smollm2_135m_instruct" / "SmolLM2-135M-Instruct.Q4_1.gguf"
GOLDEN = REPOSITORY / "tests" / "data" / "golden_smollm2.json"
WINDOW = 512
_METHODS: tuple[Literal["absmax", "search"], ...] = ("absmax", "search")


def main() -> None:
    """Prints a line for the GGUF file and for each method."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=DEFAULT_MODEL, metavar="FILE", help="the GGUF file to convert")
    options = parser.parse_args()
    ids: list[int] = json.loads(GOLDEN.read_text(encoding="utf-8"))["ppl_ids"]
    source = open_model(options.model)
    print(f"{'as it is':<12} {perplexity(source, ids):.3f}")
    with tempfile.TemporaryDirectory() as folder:
        for method in _METHODS:
            path = Path(folder) / f"{method}.m"
            convert_to_m(source, path, FloatType.Q40, method)
            converted = open_model(path)
            print(f"{'q40 ' + method:<12} {perplexity(converted, ids):.3f}")
            converted.close()
    source.close()


def perplexity(source: ModelSource, ids: list[int]) -> float:
    """Of whole windows of `ids`, in f32 arithmetic."""
    options = GraphOptions(max_rows=WINDOW, seq_len=WINDOW, buffer_type=BufferType.F32)
    program = CpuDevice().compile(build_graph(source, options), source)
    return measure_perplexity(program, ids, WINDOW).perplexity


if __name__ == "__main__":
    main()
