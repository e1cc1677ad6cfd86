"""Conversion of a model to the `.m` format."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from dllama_gpu.errors import DllamaError
from dllama_gpu.model import m_format
from dllama_gpu.model.codecs import QuantizationMethod, dequantize, quantize, row_chunks
from dllama_gpu.model.float_type import FloatType
from dllama_gpu.model.m_file import MFileWriter
from dllama_gpu.model.source import ModelSource

Progress = Callable[[int, int], None]
"""Told (bytes written, bytes in all) after each piece."""

_PIECE_ELEMENTS = 1 << 22  # the pieces' numbers, 16 MiB as float32, bound the memory needed


def converted_size(source: ModelSource, out_path: Path, weight_type: FloatType) -> int:
    """Bytes of the tensors that `convert_to_m` writes. Raises DllamaError when the format cannot express them."""
    spec = replace(source.spec, weight_type=weight_type, tied_embeddings=False)
    m_format.header_from_spec(spec, out_path)
    return m_format.tensors_size(spec)


def convert_to_m(
    source: ModelSource,
    out_path: Path,
    weight_type: FloatType = FloatType.Q40,
    method: QuantizationMethod = "search",
    progress: Progress | None = None,
) -> None:
    """Writes `source` as a `.m` file whose matrices are `weight_type` (F32, F16, Q40 or Q80).

    The embedding and all vectors become F32. Tied embeddings are stored a second time as the head, as the format wants.
    A tensor that already has the type it gets is copied byte for byte; others are decoded and encoded again, Q40 by
    `method` (see `codecs.quantize`). The file gets its name only when it is complete.

    Raises DllamaError when the format cannot express the model, when a tensor holds numbers that cannot be encoded, and
    when the disk refuses.
    """
    if out_path.exists() and source.path.exists() and out_path.samefile(source.path):
        raise DllamaError(f"{out_path} is the model to convert itself; give another name for the result")
    with MFileWriter(out_path, replace(source.spec, weight_type=weight_type)) as writer:
        total = sum(info.n_bytes for info in writer.tensors.values())
        done = 0
        for name, target in writer.tensors.items():
            source_name = "embedding" if name == "head" and source.spec.tied_embeddings else name
            found = source.tensors[source_name]
            blocks = source.read(source_name)
            for rows in row_chunks(target.n_rows, target.n_columns, _PIECE_ELEMENTS):
                piece = blocks[rows]
                if found.float_type is not target.float_type:
                    values = dequantize(piece, found.float_type)
                    try:
                        piece = quantize(values, target.float_type, method)
                    except DllamaError as error:
                        place = f"{source.path}: the tensor {source_name}, from row {rows.start} on"
                        raise DllamaError(f"{place}: {error}; the file is damaged") from error
                writer.write(name, piece)
                done += piece.nbytes
                if progress is not None:
                    progress(done, total)
            del blocks  # a converted copy is not kept while the next tensor is made
            source.release(source_name)
