"""Opening a model file or folder by what it contains, whatever its name."""

from __future__ import annotations

import struct
from pathlib import Path

from dllama_gpu.errors import DllamaError
from dllama_gpu.formats.mapped_file import MappedFile
from dllama_gpu.model import m_format
from dllama_gpu.model.float_type import FloatType
from dllama_gpu.model.gguf_file import GgufFile
from dllama_gpu.model.hf_folder import HfFolder, is_hf_folder
from dllama_gpu.model.llama_folder import PARAMS, LlamaFolder
from dllama_gpu.model.m_file import MFile
from dllama_gpu.model.reweighted import ReweightedSource
from dllama_gpu.model.source import ModelSource

_M_STARTS = tuple(struct.pack("<I", magic) for magic in (m_format.MAGIC, *m_format.OLD_MAGICS))
_TOKENIZER_STARTS = tuple(struct.pack("<I", magic) for magic in (0x567124, 0x567123))


FOLDER_WEIGHTS = FloatType.Q80
"""What the matrices of a folder become unless something else is asked for: half of f16's memory, next to no loss."""


def open_model(path: Path, weights: FloatType | None = None) -> ModelSource:
    """Opens a `.gguf` or `.m` file, recognised by its first bytes, or a folder of Hugging Face or Meta.

    With `weights` the matrices become that number format as they are read. By default files keep theirs, and those of
    a folder become `FOLDER_WEIGHTS`.

    Raises DllamaError when the model is missing, damaged, of another kind, not supported, or cannot become `weights`.
    """
    source = open_stored(path)
    if weights is None and isinstance(source, HfFolder | LlamaFolder):
        weights = FOLDER_WEIGHTS
    if weights is None:
        return source
    try:
        return ReweightedSource(source, weights)
    except DllamaError:
        source.close()
        raise


def open_stored(path: Path) -> ModelSource:
    """As `open_model`, but with every matrix in the number format that is stored."""
    if not path.is_dir():
        return _open_file(path)
    return LlamaFolder(path) if (path / PARAMS).is_file() and not is_hf_folder(path) else HfFolder(path)


def _open_file(path: Path) -> ModelSource:
    file = MappedFile(path)
    start = bytes(file.buffer[:64])
    file.close()
    if start.startswith(b"GGUF"):
        return GgufFile(path)
    if start.startswith(_M_STARTS):
        return MFile(path)
    raise DllamaError(f"{path} {_describe(start)}; give a model file in the format GGUF or .m")


def _describe(start: bytes) -> str:
    """What a file that is no model starts like."""
    if start.startswith(_TOKENIZER_STARTS):
        return "is a tokenizer file (.t), which belongs to --tokenizer"
    if start.startswith(b"PK\x03\x04"):
        return "is a zip archive (a PyTorch checkpoint or a Python wheel), not a model file"
    if start[8:9] == b"{" and int.from_bytes(start[:8], "little") < 1 << 32:
        return "is a safetensors file; give the folder that it is in, with its config.json,"
    if start.startswith(b"version https://git-lfs"):
        return "is only a Git LFS pointer, not the file itself (run `git lfs pull`)"
    if start.lstrip().lower().startswith((b"<!doctype", b"<html")):
        return "is a web page, so the download failed"
    return f"is no model file (it starts with {start[:8].hex(' ')})"
