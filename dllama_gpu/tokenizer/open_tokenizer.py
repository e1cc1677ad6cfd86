"""A tokenizer from a file, whichever kind it is."""

from __future__ import annotations

from pathlib import Path

from dllama_gpu.errors import DllamaError
from dllama_gpu.formats import gguf_header
from dllama_gpu.tokenizer import t_file
from dllama_gpu.tokenizer.gguf_vocabulary import tokenizer_from_gguf
from dllama_gpu.tokenizer.t_vocabulary import tokenizer_from_t_file
from dllama_gpu.tokenizer.tokenizer import Tokenizer

_MODEL_MAGICS = (0x0A00ABCD, 0xABCD00, 0xABCD01)


def open_tokenizer(path: Path) -> Tokenizer:
    """The tokenizer in a `.t` or GGUF file; the content decides, not the name.

    Raises DllamaError, saying what the file is and what to give instead, when it is neither or is damaged.
    """
    if path.is_dir():
        raise DllamaError(f"{path} is a folder; give the tokenizer's file, a `.t` or a GGUF file")
    try:
        with path.open("rb") as file:
            head = file.read(64)
    except FileNotFoundError as error:
        raise DllamaError(f"there is no tokenizer {path}; check the path") from error
    except OSError as error:
        raise DllamaError(f"cannot read the tokenizer {path}: {error.strerror}") from error
    if head.startswith(gguf_header.MAGIC):
        return tokenizer_from_gguf(path)
    magic = int.from_bytes(head[:4], "little")
    if magic in _MODEL_MAGICS:
        raise DllamaError(f"{path} is a model, not a tokenizer; give its `.t` file to --tokenizer")
    if head.lstrip().startswith(b"{"):
        raise DllamaError(
            f"{path} is JSON, probably a Hugging Face tokenizer.json, which is not read directly; "
            "give the model's GGUF file, or the `.t` file that `dllama-gpu convert gguf` makes of it",
        )
    if magic not in (t_file.MAGIC, t_file.OLD_MAGIC):
        raise DllamaError(f"{path} is neither a `.t` nor a GGUF file (it begins with {head[:4]!r}); give one of these")
    return tokenizer_from_t_file(t_file.read_t_file(path))
