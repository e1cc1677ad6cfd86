"""Measures llama.cpp through the package llama-cpp-python: `python -m benchmarks.peers.llama_cpp JOB`.

JOB is a `Job` as JSON; prints a `Measurement`. The C functions are called directly, so that what the package does in
Python for every token (copying the logits, above all) is not charged to llama.cpp. All parameters but the sizes and
the threads are llama.cpp's own defaults. On a GPU all layers are there; GGML_VK_VISIBLE_DEVICES says which GPU.
"""

from __future__ import annotations

import ctypes
import re
import sys
import time
from collections.abc import Sequence
from typing import Any

from benchmarks.measure import CPU, Job, job_from_json, measure, to_json
from benchmarks.peers.bindings import library, llama_cpp

_ALL_LAYERS = 999


class LlamaCppRunner:
    """A llama.cpp context; see `benchmarks.measure.Runner`. Exits with a sentence when the model cannot be loaded."""

    def __init__(self, job: Job) -> None:
        self._log: list[str] = []
        # Kept alive as long as the library may call it.
        self._log_callback = llama_cpp.llama_log_callback(
            lambda level, text, _: self._log.append(text.decode(errors="replace"))
        )
        llama_cpp.llama_log_set(self._log_callback, ctypes.c_void_p(0))
        llama_cpp.llama_backend_init()
        model_parameters = llama_cpp.llama_model_default_params()
        model_parameters.n_gpu_layers = 0 if job.device == CPU else _ALL_LAYERS
        self._model = llama_cpp.llama_model_load_from_file(job.model.encode(), model_parameters)
        if not self._model:
            sys.exit(f"llama.cpp cannot load {job.model}: {self._last_words()}")
        parameters = llama_cpp.llama_context_default_params()
        parameters.n_ctx = job.seq_len
        parameters.n_batch = max(parameters.n_batch, job.prompt_tokens)
        parameters.n_threads = parameters.n_threads_batch = job.n_threads
        self._context = llama_cpp.llama_init_from_model(self._model, parameters)
        if not self._context:
            sys.exit(f"llama.cpp cannot make a context: {self._last_words()}")
        if job.device != CPU and not self._gpu_buffers():
            sys.exit("this build of llama.cpp has no Vulkan, or refuses this GPU; see --peer-library")
        self._batch = llama_cpp.llama_batch_init(job.prompt_tokens, 0, 1)
        self.vocab_size = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(self._model))
        self.program = f"{library} ({self._code_path()})"

    def clear(self) -> None:
        """Empties the KV cache."""
        llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(self._context), True)

    def prepare(self, tokens: Sequence[int], position: int) -> None:
        """Fills the batch, with logits for the last token only."""
        batch = self._batch
        batch.n_tokens = len(tokens)
        for i, token in enumerate(tokens):
            batch.token[i] = token
            batch.pos[i] = position + i
            batch.n_seq_id[i] = 1
            batch.seq_id[i][0] = 0
            batch.logits[i] = i == len(tokens) - 1

    def compute(self) -> None:
        """One call of llama_decode, and the wait until it is done."""
        status = llama_cpp.llama_decode(self._context, self._batch)
        if status != 0:
            sys.exit(f"llama.cpp failed with status {status}: {self._last_words()}")
        llama_cpp.llama_synchronize(self._context)

    def logits(self) -> Sequence[float]:
        """Logits (vocab_size,) of the last token."""
        logits: Any = llama_cpp.llama_get_logits_ith(self._context, -1)
        found: list[float] = logits[: self.vocab_size]
        return found

    def _last_words(self) -> str:
        return "; ".join(line.strip() for line in self._log[-3:])

    def _code_path(self) -> str:
        """Instruction sets compiled in, and how much of the model was repacked for them."""
        described = llama_cpp.llama_print_system_info().decode()
        features = re.findall(r"(\w+) = 1\b", described)
        repacked = re.findall(r"CPU_REPACK model buffer size = *([\d.]+) MiB", "".join(self._log))
        on_gpu = "".join(f"; {mib} MiB on {name}" for name, mib in self._gpu_buffers())
        return f"{' '.join(features)}; repacked {sum(map(float, repacked)):.0f} MiB{on_gpu}"

    def _gpu_buffers(self) -> list[tuple[str, str]]:
        """Names of GPUs and the MiB of weights on each."""
        return re.findall(r"(Vulkan\d+) model buffer size = *([\d.]+) MiB", "".join(self._log))


def main() -> None:
    """Measures the job on the command line."""
    job = job_from_json(sys.argv[1])
    start = time.perf_counter()
    runner = LlamaCppRunner(job)
    print(to_json(measure(runner, job, time.perf_counter() - start)))


if __name__ == "__main__":
    main()
