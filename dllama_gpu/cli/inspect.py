"""`dllama-gpu inspect`: shows what a model or tokenizer holds."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import fields
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dllama_gpu.cli.arguments import Options, Parser
from dllama_gpu.cli.display import size_text
from dllama_gpu.cli.failures import SUCCESS
from dllama_gpu.cli.terminal_text import one_line
from dllama_gpu.errors import DllamaError

if TYPE_CHECKING:
    from dllama_gpu.formats.gguf_header import GgufHeader
    from dllama_gpu.model.source import ModelSource, TensorInfo
    from dllama_gpu.tokenizer.tokenizer import Tokenizer

PROGRAM = "dllama-gpu inspect"
DESCRIPTION = """Show what a model or tokenizer holds: shape, number formats, tensors, special tokens, chat template.

PATH is a .m, .t or GGUF file, a Hugging Face or Meta folder, a tokenizer.json or a tokenizer.model.
A GGUF file of a kind that cannot be run is shown as far as its own header goes."""

_SHOWN_TENSORS = 12
_LABEL_WIDTH = 26


def add_arguments(parser: Parser) -> None:
    """Declares the options."""
    parser.add_argument("path", type=Path, metavar="PATH", help="the file or folder to look into")
    parser.add_argument("--tensors", action="store_true", help="list every tensor, not the first few")
    parser.add_argument("--metadata", action="store_true", help="list every metadata field of a GGUF file")


def run(options: Options) -> int:
    """Looks and prints."""
    path: Path = options.path
    if not path.exists():
        raise DllamaError(f"{path} does not exist; check the path")
    header = _gguf_header(path) if path.is_file() else None
    if header is not None and options.metadata:
        _print_metadata(header.metadata)
    shown = _model_section(path, header, options)
    shown = _tokenizer_section(path, required=not shown) or shown
    return SUCCESS


def _gguf_header(path: Path) -> GgufHeader | None:
    from dllama_gpu.formats.gguf_header import MAGIC, read_gguf_header
    from dllama_gpu.formats.mapped_file import MappedFile

    file = MappedFile(path)
    try:
        return read_gguf_header(file) if file.buffer[:4] == MAGIC else None
    finally:
        file.close()


def _model_section(path: Path, header: GgufHeader | None, options: Options) -> bool:
    """Prints the model; False where there is none, but perhaps a tokenizer."""
    from dllama_gpu.model.open import open_stored

    if path.is_dir() and not ((path / "config.json").is_file() or (path / "params.json").is_file()):
        return False
    if path.is_file() and header is None and not _is_m_file(path):
        return False
    try:
        source = open_stored(path)
    except DllamaError as error:
        if header is None:
            raise
        print(one_line(f"cannot be run: {error}"))
        _print_tensors(_gguf_rows(header), options.tensors)
        return True
    try:
        _print_model(source, options.tensors)
    finally:
        source.close()
    return True


def _is_m_file(path: Path) -> bool:
    with path.open("rb") as file:
        return int.from_bytes(file.read(4), "little") in (0x0A00ABCD, 0xABCD00, 0xABCD01)


def _print_model(source: ModelSource, every_tensor: bool) -> None:
    _print("model", str(source.path))
    for field in fields(source.spec):
        value = getattr(source.spec, field.name)
        if value != field.default or field.name in ("norm_epsilon", "rope_theta", "rope_style"):
            _print(field.name, _shown(value))
    sizes: Counter[str] = Counter()
    n_weights = 0
    for info in source.tensors.values():
        sizes[info.float_type.value] += info.n_bytes
        n_weights += info.n_rows * info.n_columns
    _print("weights", f"{n_weights:,} in {len(source.tensors)} tensors, {size_text(sum(sizes.values()))}")
    for name, size in sizes.most_common():
        _print(f"  {name}", size_text(size))
    _print_tensors(map(_row, source.tensors.values()), every_tensor)


def _row(info: TensorInfo) -> tuple[str, str, str]:
    return info.name, info.float_type.value, " x ".join(map(str, info.shape))


def _gguf_rows(header: GgufHeader) -> Iterable[tuple[str, str, str]]:
    for tensor in header.tensors.values():
        yield tensor.name, tensor.ggml_type.name, " x ".join(map(str, tensor.shape))


def _print_tensors(rows: Iterable[tuple[str, str, str]], every_tensor: bool) -> None:
    listed = list(rows)
    for name, type_name, shape in listed if every_tensor else listed[:_SHOWN_TENSORS]:
        print(one_line(f"  {name:<40} {type_name:<6} {shape}"))
    if not every_tensor and len(listed) > _SHOWN_TENSORS:
        print(f"  and {len(listed) - _SHOWN_TENSORS} more (--tensors lists them)")


def _print_metadata(metadata: Mapping[str, Any]) -> None:
    from dllama_gpu.formats.shown import shown_value

    for key, value in metadata.items():
        print(one_line(f"  {key:<44} {shown_value(value)}"))


def _tokenizer_section(path: Path, *, required: bool) -> bool:
    """Prints the tokenizer. Raises DllamaError where there is none and nothing else was found."""
    from dllama_gpu.tokenizer.open_tokenizer import open_tokenizer

    try:
        tokenizer = open_tokenizer(path)
    except DllamaError as error:
        if required:
            raise
        print(one_line(f"no tokenizer: {error}"))
        return False
    _print_tokenizer(tokenizer)
    return True


def _print_tokenizer(tokenizer: Tokenizer) -> None:
    def named(token_id: int) -> str:
        return f"{token_id} {tokenizer.token_bytes(token_id).decode('utf-8', 'replace')!r}"

    _print("tokenizer", f"{tokenizer.vocab_size} tokens, {len(tokenizer.special_ids)} of them special or added")
    _print("BOS", "none" if tokenizer.bos_id is None else named(tokenizer.bos_id))
    _print("put before a text", "yes" if tokenizer.add_bos else "no")
    _print("ends an answer", ", ".join(map(named, tokenizer.eos_ids)) or "nothing")
    template = tokenizer.chat_template
    _print("chat template", "none" if template is None else f"{len(template)} characters")
    for line in (template or "").splitlines():
        print(one_line(f"  | {line}"))


def _print(label: str, text: str) -> None:
    print(one_line(f"{label:<{_LABEL_WIDTH}} {text}"))


def _shown(value: object) -> str:
    if isinstance(value, Enum):
        return str(value.value)
    if hasattr(value, "__dataclass_fields__"):
        return ", ".join(f"{name} {getattr(value, name):g}" for name in value.__dataclass_fields__)
    return str(value)
