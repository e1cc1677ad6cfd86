"""The most likely next tokens after a text, with their probabilities.

Run it as:
python examples/next_token.py models/smollm2_135m_instruct/SmolLM2-135M-Instruct.Q4_1.gguf "Roses are"
"""

import math
import sys
from pathlib import Path

from dllama_gpu.cpu.device import CpuDevice
from dllama_gpu.engine.loading import build_graph, open_with_tokenizer
from dllama_gpu.graph.batch import Batch, Row
from dllama_gpu.graph.options import GraphOptions


def main(model_path: str, text: str, n_shown: int = 5) -> None:
    """Prints `n_shown` lines, the best first."""
    with open_with_tokenizer(Path(model_path)) as model:
        ids = model.tokenizer.encode(text)
        graph = build_graph(model.source, GraphOptions(seq_len=len(ids), max_rows=len(ids), n_candidates=n_shown))
        program = CpuDevice().compile(graph, model.source)
        # One step computes the whole text; only its last token wants logits.
        rows = [Row(token, 0, position, position == len(ids) - 1) for position, token in enumerate(ids)]
        program.run(Batch.of(rows))
        log_sum_exp = float(program.buffer("log_sum_exp", 1)[0, 0])
        values, candidates = program.buffer("candidate_values", 1)[0], program.buffer("candidate_ids", 1)[0]
        for logit, token in zip(values.tolist(), candidates.tolist(), strict=True):
            print(f"{math.exp(logit - log_sum_exp):7.1%}  {model.tokenizer.decode([token])!r}")


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
