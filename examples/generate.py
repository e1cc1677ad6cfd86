"""Continues a text with a model file: the whole way from ids to text in one page.

Run it as:
python examples/generate.py models/smollm2_135m_instruct/SmolLM2-135M-Instruct.Q4_1.gguf "The capital of France"
"""

import sys
from pathlib import Path

from dllama_gpu.cpu.device import CpuDevice
from dllama_gpu.engine.generation import Generation, GenerationRequest
from dllama_gpu.engine.loading import build_graph, open_with_tokenizer
from dllama_gpu.engine.sampling import SamplingParams
from dllama_gpu.graph.options import GraphOptions


def main(model_path: str, prompt: str, max_tokens: int = 32) -> None:
    """Prints the prompt and what the model makes of it, greedily."""
    with open_with_tokenizer(Path(model_path)) as model:
        # A graph is the model as plain data; a device turns it into a program and loads its weights.
        graph = build_graph(model.source, GraphOptions(seq_len=512))
        program = CpuDevice().compile(graph, model.source)
        request = GenerationRequest(
            prompt=model.tokenizer.encode(prompt),
            max_tokens=max_tokens,
            sampling=SamplingParams(temperature=0.0),
            end_ids=frozenset(model.tokenizer.eos_ids),
        )
        text = model.tokenizer.stream()  # never splits a character
        print(prompt, end="", flush=True)
        for token in Generation(program, request).tokens():
            print(text.push(token), end="", flush=True)
        print(text.flush())


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
