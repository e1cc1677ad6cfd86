"""Which files of a repository make a model: `hf:org/repo` and `hf:org/repo:file.gguf`."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import quote

import msgspec

from dllama_gpu.errors import DllamaError
from dllama_gpu.formats.shown import shown_text
from dllama_gpu.hub.client import HubClient

PREFIX = "hf:"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}/[A-Za-z0-9][A-Za-z0-9._-]{0,95}")
_MOST_FILES = 20_000
_INDEX = "model.safetensors.index.json"
_SINGLE = "model.safetensors"
_SELECTION = ".selection.json"
_SHARD = re.compile(r"model-\d{5}-of-\d{5}\.safetensors")
_SPLIT = re.compile(r"-(\d{5})-of-(\d{5})\.gguf$", re.IGNORECASE)
_SMALL_FILES = (
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "added_tokens.json",
    "special_tokens_map.json",
    "chat_template.jinja",
)
# What runs as it lies in the file comes first, then what loses least for its size.
_GGUF_ORDER = ("Q4_0", "Q4_1", "Q8_0", "Q4_K_M", "Q4_K_S", "Q5_K_M", "Q6_K", "Q5_K_S", "Q3_K_M", "BF16", "F16", "F32")


@dataclass(frozen=True)
class HubName:
    """`hf:REPOSITORY` or `hf:REPOSITORY:FILE`."""

    repository: str
    file: str | None = None

    @property
    def folder(self) -> str:
        """A name for the folder of its files here."""
        return self.repository.replace("/", "--")


@dataclass(frozen=True)
class Selection:
    """What to fetch: files of the repository at `revision`, and the one to run, or None for the folder of all."""

    repository: str
    revision: str
    files: tuple[str, ...]
    model: str | None
    remark: str | None = None


def parse_hub_name(text: str) -> HubName:
    """Reads `hf:org/repo` or `hf:org/repo:file.gguf`. Raises DllamaError for anything else."""
    repository, _, file = text.removeprefix(PREFIX).partition(":")
    if not text.startswith(PREFIX) or not _NAME.fullmatch(repository) or ".." in repository:
        raise DllamaError(f"{shown_text(text)!r} is no name like hf:org/repo or hf:org/repo:file.gguf")
    if file and not _is_safe(file):
        raise DllamaError(f"{shown_text(file)!r} is no name of a file in a repository")
    return HubName(repository, file or None)


def select_files(client: HubClient, name: HubName) -> Selection:
    """Asks the hub what the repository holds and chooses. Raises DllamaError when there is nothing to run."""
    answer = client.json(f"/api/models/{quote(name.repository)}", name.repository)
    listed = answer.get("siblings") if isinstance(answer, dict) else None
    if not isinstance(listed, list) or len(listed) > _MOST_FILES:
        raise DllamaError(f"{name.repository}: {client.endpoint} does not say which files it has")
    files = [found for entry in listed if (found := _file_name(entry)) is not None]
    sha = answer.get("sha")
    revision = sha if isinstance(sha, str) and re.fullmatch(r"[0-9a-f]{40}", sha) else "main"
    chosen, model, remark = _choose(name, files)
    return Selection(name.repository, revision, tuple(chosen), model, remark)


def read_selection(folder: Path, name: HubName) -> Selection | None:
    """What was fetched for `name` earlier, so that it runs without asking the hub again; None if that is not known."""
    try:
        found = msgspec.json.decode((folder / _SELECTION).read_bytes(), type=dict[str, Selection])
    except (OSError, msgspec.MsgspecError, RecursionError):
        return None
    selection = found.get(name.file or "")
    safe = selection is not None and selection.repository == name.repository and all(map(_is_safe, selection.files))
    return selection if safe else None


def write_selection(folder: Path, name: HubName, selection: Selection) -> None:
    """Notes in `folder` what was fetched for `name`."""
    try:
        known = msgspec.json.decode((folder / _SELECTION).read_bytes(), type=dict[str, Selection])
    except (OSError, msgspec.MsgspecError, RecursionError):
        known = {}
    (folder / _SELECTION).write_bytes(msgspec.json.encode(known | {name.file or "": selection}))


def _choose(name: HubName, files: Sequence[str]) -> tuple[list[str], str | None, str | None]:
    """Files to fetch, the one to run (None: the folder), and what the person may want to know."""
    ggufs = sorted(file for file in files if file.lower().endswith(".gguf"))
    if name.file is not None:
        if name.file not in files:
            raise DllamaError(f"{name.repository} has no file {name.file}{_others(ggufs)}")
        parts = _parts(name.repository, name.file, files)
        return parts, parts[0], None
    shards = [file for file in files if file in (_SINGLE, _INDEX) or _SHARD.fullmatch(file)]
    if "config.json" in files and (_SINGLE in shards or _INDEX in shards):
        weights = [file for file in shards if file == _SINGLE] if _INDEX not in shards else shards
        return [*(file for file in _SMALL_FILES if file in files), *weights], None, None
    models = [file for file in ggufs if "mmproj" not in file.lower() and _is_first(file)]
    if models:
        best = min(models, key=_preference)
        others = f"{best} of {len(models)} models in GGUF; {PREFIX}{name.repository}:FILE takes another one"
        return _parts(name.repository, best, files), best, others if models[1:] else None
    raise DllamaError(
        f"{name.repository} has neither safetensors with a config.json nor GGUF files; choose another one"
    )


def _preference(file: str) -> tuple[int, str]:
    upper = file.upper()
    ranks = [rank for rank, kind in enumerate(_GGUF_ORDER) if re.search(rf"[-_./]{kind}(?=[-_./])", upper)]
    return (ranks[0] if ranks else len(_GGUF_ORDER), file)


def _is_first(file: str) -> bool:
    split = _SPLIT.search(file)
    return split is None or int(split[1]) == 1


def _parts(repository: str, file: str, files: Sequence[str]) -> list[str]:
    """All parts of a model that is split, in order; the file alone where it is not."""
    split = _SPLIT.search(file)
    if split is None:
        return [file]
    stem, count = file[: split.start()], int(split[2])
    parts = [f"{stem}-{number:05}-of-{split[2]}{file[split.end() - 5 :]}" for number in range(1, count + 1)]
    missing = sorted(set(parts) - set(files))
    if missing or not parts:
        raise DllamaError(
            f"{repository} has no file {(missing or [file])[0]}, one of {count} parts; choose another model"
        )
    return parts


def _others(ggufs: Sequence[str]) -> str:
    return f"; it has {', '.join(ggufs[:20])}" if ggufs else "; check the name"


def _file_name(entry: Any) -> str | None:
    """A file's path in the repository; None for what could not be one, or would lead out of a folder."""
    name = entry.get("rfilename") if isinstance(entry, dict) else None
    return name if isinstance(name, str) and _is_safe(name) else None


def _is_safe(name: str) -> bool:
    parts = PurePosixPath(name).parts
    plain = name.isprintable() and not any(character in name for character in '\\:*?"<>|') and len(name) < 256
    return plain and bool(parts) and not name.startswith("/") and all(part.strip(". ") for part in parts)
