"""A tokenizer from a file or folder, whichever kind it is."""

from __future__ import annotations

from pathlib import Path

from dllama_gpu.errors import DllamaError
from dllama_gpu.formats import gguf_header
from dllama_gpu.tokenizer import t_file
from dllama_gpu.tokenizer.gguf_vocabulary import t_file_from_gguf, tokenizer_from_gguf
from dllama_gpu.tokenizer.hf_tokenizer import TOKENIZER_JSON, t_file_from_hf, tokenizer_from_hf
from dllama_gpu.tokenizer.model_file import (
    TOKENIZER_MODEL,
    is_tiktoken,
    t_file_from_model_file,
    tokenizer_from_model_file,
)
from dllama_gpu.tokenizer.t_file import TokenizerFile
from dllama_gpu.tokenizer.t_vocabulary import tokenizer_from_t_file
from dllama_gpu.tokenizer.tokenizer import Tokenizer

_MODEL_MAGICS = (0x0A00ABCD, 0xABCD00, 0xABCD01)
_T_MAGICS = (t_file.MAGIC, t_file.OLD_MAGIC)
_WANTED = "a `.t` or GGUF file, a tokenizer.json, a tokenizer.model, or the folder of one"


def open_tokenizer(path: Path) -> Tokenizer:
    """The tokenizer in a `.t`, GGUF, `tokenizer.json` or `tokenizer.model` file, or in a folder with one of the latter.

    The content decides, not the name. Raises DllamaError, saying what the file is and what to give instead, when it is
    none of these or is damaged.
    """
    path, head = _find(path)
    if head.startswith(gguf_header.MAGIC):
        return tokenizer_from_gguf(path)
    if _is_json(head):
        return tokenizer_from_hf(path)
    if _is_model_file(head):
        return tokenizer_from_model_file(path)
    return tokenizer_from_t_file(t_file.read_t_file(path))


def t_file_from(path: Path) -> TokenizerFile:
    """The `.t` file that stands for what `open_tokenizer` opens. Raises DllamaError where there can be none, too."""
    path, head = _find(path)
    if head.startswith(gguf_header.MAGIC):
        return t_file_from_gguf(path)
    if _is_json(head):
        return t_file_from_hf(path)
    if _is_model_file(head):
        return t_file_from_model_file(path)
    return t_file.read_t_file(path)


def _is_json(head: bytes) -> bool:
    return head.lstrip().startswith(b"{")


def _is_model_file(head: bytes) -> bool:
    """A serialized SentencePiece model begins with its first piece: field 1, a message."""
    return is_tiktoken(head) or (head[:1] == b"\n" and head[2:3] == b"\n")


def _find(path: Path) -> tuple[Path, bytes]:
    """The file to read, and its beginning. Raises DllamaError when it is of no kind that holds a tokenizer."""
    if path.is_dir():
        found = next((path / name for name in (TOKENIZER_JSON, TOKENIZER_MODEL) if (path / name).is_file()), None)
        if found is None:
            raise DllamaError(
                f"{path} is a folder with neither {TOKENIZER_JSON} nor {TOKENIZER_MODEL}; give the tokenizer's file"
            )
        path = found
    try:
        with path.open("rb") as file:
            head = file.read(1024)
    except FileNotFoundError as error:
        raise DllamaError(f"there is no tokenizer {path}; check the path") from error
    except OSError as error:
        raise DllamaError(f"cannot read the tokenizer {path}: {error.strerror}") from error
    magic = int.from_bytes(head[:4], "little")
    if magic in _MODEL_MAGICS:
        raise DllamaError(f"{path} is a model, not a tokenizer; give its `.t` file to --tokenizer")
    known = head.startswith(gguf_header.MAGIC) or magic in _T_MAGICS or _is_json(head) or _is_model_file(head)
    if not known:
        raise DllamaError(f"{path} holds no tokenizer (it begins with {head[:4]!r}); give {_WANTED}")
    return path, head
