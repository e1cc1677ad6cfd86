"""The models that are measured, each as a GGUF file with Q4_0 in every matrix, made when first needed."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from benchmarks.q40_gguf import write_q40_gguf
from benchmarks.synthetic import SHAPES, write_gguf
from dllama_gpu.errors import DllamaError
from dllama_gpu.model.codecs import Bytes, dequantize, quantize, row_chunks
from dllama_gpu.model.float_type import FloatType
from dllama_gpu.model.open import open_model
from dllama_gpu.model.source import ModelSource, TensorInfo
from launcher.catalogue import DEFAULT_MODEL, find_model
from launcher.console import Console
from launcher.store import ensure_model

_MODELS = Path(__file__).parent.parent / "models"
_REAL = "smollm2"
MODEL_NAMES = (_REAL, *SHAPES)
"""`smollm2` is the default model itself, the others are random weights of a published shape."""

_PIECE_ELEMENTS = 1 << 21


def model_file(name: str) -> Path:
    """The file of the model `name`, one of MODEL_NAMES; it is made, and the default model fetched, when missing.

    Raises DllamaError for another name, and when no source gives the default model.
    """
    if name not in MODEL_NAMES:
        raise DllamaError(f"there is no benchmark model {name!r}; the models are {', '.join(MODEL_NAMES)}")
    path = _MODELS / "benchmark" / f"{name}.q4_0.gguf"
    if path.exists():
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    if name in SHAPES:
        write_gguf(path, SHAPES[name])
    else:
        entry = find_model(DEFAULT_MODEL)
        folder = ensure_model(_MODELS, entry, Path(sys.executable), Console())
        _requantize(folder / entry.model_file, path)
    return path


def _requantize(model: Path, path: Path) -> None:
    """Writes `model` with every matrix in Q4_0 by the plain absolute-maximum rule, the embedding too."""
    source = open_model(model)
    try:
        spec = replace(source.spec, weight_type=FloatType.Q40)
        write_q40_gguf(path, spec, f"{model.stem}, requantized", lambda info: _requantized_rows(source, info))
    finally:
        source.close()


def _requantized_rows(source: ModelSource, info: TensorInfo) -> Iterator[Bytes]:
    stored = source.read(info.name)
    found = source.tensors[info.name].float_type
    for rows in row_chunks(info.n_rows, info.n_columns, _PIECE_ELEMENTS):
        yield quantize(dequantize(stored[rows], found), info.float_type)
