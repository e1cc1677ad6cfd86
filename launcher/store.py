"""The folder of downloaded models: a file is there whole and verified, or not at all."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from dllama_gpu.errors import DllamaError
from launcher.catalogue import ModelEntry, ModelFile
from launcher.console import Console
from launcher.lock import exclusive
from launcher.sources import FetchContext, Source

_CHUNK_BYTES = 1 << 20
_RECORD_NAME = ".verified.json"


def ensure_model(models: Path, entry: ModelEntry, python: Path, console: Console) -> Path:
    """Fetches what is missing or damaged of `entry` into its folder under `models`, and returns that folder.

    A file verified before is recognized by its size and time; any other is read and hashed. `python` has pip.
    Raises DllamaError when no source gives the right bytes.
    """
    folder = models / entry.name
    if all(is_verified(folder, file) for file in entry.files):
        return folder
    with exclusive(models / f".{entry.name}.lock", console):
        folder.mkdir(exist_ok=True)
        with _scratch(folder) as scratch:
            for file in entry.files:
                _ensure_file(folder, file, FetchContext(python, scratch, console))
    return folder


def is_verified(folder: Path, file: ModelFile) -> bool:
    """Whether the file was verified and has not been touched since."""
    try:
        state = (folder / file.name).stat()
    except FileNotFoundError:
        return False
    return _read_record(folder).get(file.name) == [file.sha256, state.st_size, state.st_mtime_ns]


def _ensure_file(folder: Path, file: ModelFile, context: FetchContext) -> None:
    path = folder / file.name
    if is_verified(folder, file):
        return
    if path.exists():
        with context.console.step(f"verifying {file.name}"):
            damage = _damage(path, file)
        if not damage:
            _record(folder, file)
            return
        context.console.say(f"{path} is damaged ({damage}); it is fetched again")
        path.unlink()
    _check_space(folder, file)
    reasons = []
    for source in file.sources:
        try:
            _fetch(path, file, source, context)
        except DllamaError as error:
            reasons.append(str(error))
        else:
            _record(folder, file)
            return
    raise DllamaError(f"Cannot get {file.name}. " + " ".join(reasons))


def _fetch(path: Path, file: ModelFile, source: Source, context: FetchContext) -> None:
    """Writes the source's bytes under a passing name and renames them when size and hash are right."""
    part = context.scratch / path.name
    digest = hashlib.sha256()
    size = 0
    with (
        source.open(context) as stream,
        part.open("wb") as target,
        context.console.step(f"unpacking {file.name}") as step,
    ):
        while size <= file.size and (chunk := stream.read(_CHUNK_BYTES)):
            target.write(chunk)
            digest.update(chunk)
            size += len(chunk)
            step.note_bytes(size, file.size)
    if (size, digest.hexdigest()) != (file.size, file.sha256):
        raise DllamaError(
            f"For {file.name}, {source.describe()} gave {size} bytes with SHA-256 {digest.hexdigest()}; "
            f"{file.size} bytes with {file.sha256} were expected."
        )
    part.replace(path)


@contextmanager
def _scratch(folder: Path) -> Iterator[Path]:
    """A folder for passing files; what a killed process left in it goes first."""
    scratch = folder / ".scratch"
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir()
    try:
        yield scratch
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _damage(path: Path, file: ModelFile) -> str | None:
    """What is wrong with the file at `path`, in words; None if it is right."""
    size = path.stat().st_size
    if size != file.size:
        return f"{size} bytes, not {file.size}"
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while chunk := stream.read(_CHUNK_BYTES):
            digest.update(chunk)
    return None if digest.hexdigest() == file.sha256 else f"SHA-256 {digest.hexdigest()}, not {file.sha256}"


def _check_space(folder: Path, file: ModelFile) -> None:
    """A source may need the file's size a second time for what it comes packed in."""
    needed, free = 2 * file.size, shutil.disk_usage(folder).free
    if free < needed:
        raise DllamaError(
            f"{file.name} needs {needed / 1e9:.1f} GB on the disk of {folder} while it is fetched, "
            f"and {free / 1e9:.1f} GB are free; free some space and run this again."
        )


def _record(folder: Path, file: ModelFile) -> None:
    state = (folder / file.name).stat()
    record = _read_record(folder) | {file.name: [file.sha256, state.st_size, state.st_mtime_ns]}
    (folder / _RECORD_NAME).write_text(json.dumps(record), encoding="utf-8")


def _read_record(folder: Path) -> dict[str, object]:
    """File name -> [SHA-256, size, modification time in ns] of verified files; empty where it cannot be understood."""
    try:
        record = json.loads((folder / _RECORD_NAME).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return record if isinstance(record, dict) else {}
