"""What the small JSON files beside a Hugging Face tokenizer say: special tokens, chat template."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dllama_gpu.errors import DllamaError
from dllama_gpu.formats.json_file import JsonFields
from dllama_gpu.formats.shown import shown_value

LARGEST_JSON = 256 << 20  # bytes; Gemma's tokenizer.json has 33 MB
_LARGEST_TEMPLATE = 1 << 20
_LARGEST_ID = 1 << 24


@dataclass(frozen=True)
class AddedToken:
    """A token that was added after training, as a whole."""

    token_id: int
    text: str
    special: bool


@dataclass(frozen=True)
class HfSettings:
    """Special tokens by their texts, as `tokenizer_config.json` names them, and by id, as the model's own files do."""

    bos_text: str | None = None
    eos_text: str | None = None
    bos_id: int | None = None
    eos_ids: tuple[int, ...] = ()
    add_bos: bool | None = None
    add_prefix_space: bool | None = None
    chat_template: str | None = None
    added: tuple[AddedToken, ...] = ()

    def find_bos(self, ids: Mapping[str, int]) -> int | None:
        """The BOS id among the tokens `ids` (by text)."""
        return ids.get(self.bos_text, self.bos_id) if self.bos_text is not None else self.bos_id

    def find_eos(self, ids: Mapping[str, int]) -> tuple[int, ...]:
        """The EOS ids, the tokenizer's own choice first."""
        own = [] if self.eos_text is None or self.eos_text not in ids else [ids[self.eos_text]]
        return tuple(dict.fromkeys([*own, *self.eos_ids]))


def read_hf_settings(folder: Path) -> HfSettings:
    """Reads the files of `folder` that are there. Raises DllamaError when one of them is damaged."""
    own = _optional(folder / "tokenizer_config.json")
    model, generation = _optional(folder / "config.json"), _optional(folder / "generation_config.json")
    eos_ids = [*_ids(generation, "eos_token_id"), *_ids(model, "eos_token_id")]
    bos_ids = [*_ids(generation, "bos_token_id"), *_ids(model, "bos_token_id")]
    return HfSettings(
        bos_text=_token_text(own, "bos_token"),
        eos_text=_token_text(own, "eos_token"),
        bos_id=bos_ids[0] if bos_ids else None,
        eos_ids=tuple(dict.fromkeys(eos_ids)),
        add_bos=own.flag("add_bos_token", False) if own.get("add_bos_token") is not None else None,
        add_prefix_space=own.flag("add_prefix_space", True) if own.get("add_prefix_space") is not None else None,
        chat_template=_chat_template(folder, own),
        added=_added_tokens(folder, own),
    )


def added_token(entry: Any, path: Path, token_id: Any = None) -> AddedToken:
    """One added token as the library writes it. Raises DllamaError, naming the file, when it is not well-formed."""
    found = entry if isinstance(entry, dict) else {}
    number, text = found.get("id", token_id), found.get("content")
    if isinstance(number, bool) or not isinstance(number, int) or not 0 <= number < _LARGEST_ID:
        raise DllamaError(f"{path}: an added token has the id {shown_value(number)}, which is none")
    if not isinstance(text, str) or not text:
        raise DllamaError(f"{path}: the added token {number} has the text {shown_value(text)}, which is none")
    return AddedToken(number, text, found.get("special") is True)


def _optional(path: Path) -> JsonFields:
    return JsonFields.read(path, LARGEST_JSON) if path.is_file() else JsonFields(path, {})


def _token_text(config: JsonFields, name: str) -> str | None:
    value = config.get(name)
    if isinstance(value, dict):
        value = value.get("content")
    if value is not None and not isinstance(value, str):
        raise DllamaError(f"{config.path}: {name} is {shown_value(value)}, but a token's text is wanted")
    return value


def _ids(config: JsonFields, name: str) -> list[int]:
    value = config.get(name, [])
    values = value if isinstance(value, list) else [value]
    for item in values:
        if isinstance(item, bool) or not isinstance(item, int) or not 0 <= item < _LARGEST_ID:
            raise DllamaError(f"{config.path}: {name} is {shown_value(item)}, but a token's id is wanted")
    return values


def _chat_template(folder: Path, config: JsonFields) -> str | None:
    path = folder / "chat_template.jinja"
    if path.is_file():
        try:
            if path.stat().st_size > _LARGEST_TEMPLATE:
                raise DllamaError(f"{path} has more than {_LARGEST_TEMPLATE} bytes, too many for a chat template")
            return path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise DllamaError(f"{path} cannot be read as text ({error})") from error
    value = config.get("chat_template")
    if isinstance(value, list):  # several with names
        named = {item.get("name"): item.get("template") for item in value if isinstance(item, dict)}
        value = named.get("default")
    if value is not None and not isinstance(value, str):
        raise DllamaError(f"{config.path}: chat_template is {shown_value(value)}, but a text is wanted")
    return value


def _added_tokens(folder: Path, config: JsonFields) -> tuple[AddedToken, ...]:
    """Tokens that are not in the vocabulary's own file."""
    added: dict[int, AddedToken] = {}
    plain = _optional(folder / "added_tokens.json")
    for text, token_id in plain.fields.items():
        token = added_token({"id": token_id, "content": text, "special": True}, plain.path)
        added[token.token_id] = token
    for number, entry in config.nested("added_tokens_decoder").fields.items():
        token = added_token(entry, config.path, int(number) if number.isdecimal() and len(number) < 10 else number)
        added[token.token_id] = token
    return tuple(added[token_id] for token_id in sorted(added))
