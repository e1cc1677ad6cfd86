"""A file on its way: what of it is here already, kept beside it so that any interruption loses little."""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from dllama_gpu.errors import DllamaError
from dllama_gpu.hub.client import RemoteFile

_BLOCK_BYTES = 16 << 20
_SAVE_EVERY_SECONDS = 2.0


@dataclass(frozen=True)
class Block:
    """A stretch of one part: bytes `begin` to `end` of the part stand from `offset` on in the whole."""

    index: int
    part: int
    begin: int
    end: int
    offset: int


def partial_path(target: Path) -> Path:
    """Where what is here of `target` is kept."""
    return target.with_name(f"{target.name}.partial")


class PartialFile:
    """`NAME.partial`, made of the `parts` one behind the other, and `NAME.partial.json`, which says what is done.

    What was begun with other parts, or cannot be understood, is started anew. May be used by several threads.
    """

    def __init__(self, target: Path, parts: Sequence[RemoteFile]) -> None:
        """Raises DllamaError when the files cannot be written."""
        self.target = target
        self.path = partial_path(target)
        self._state_path = target.with_name(f"{target.name}.partial.json")
        self._description = [[part.identity, part.size] for part in parts]
        self.blocks = _blocks(parts)
        self.total = sum(part.size for part in parts)
        self._lock = threading.Lock()
        self._saved = time.monotonic()
        self._done = self._restore() or [0] * len(self.blocks)
        self._n_done = sum(self._done)
        try:
            self._file = self.path.open("r+b" if self.path.exists() else "w+b")
            if not any(self._done):
                self._file.truncate(0)
        except OSError as error:
            raise _refused(target, error) from error

    @property
    def n_done(self) -> int:
        """Bytes that are here."""
        return self._n_done

    def done(self, block: Block) -> int:
        """Bytes of a block that are here, from its beginning on."""
        return self._done[block.index]

    def missing(self) -> list[Block]:
        """The blocks that are not complete."""
        return [block for block in self.blocks if self._done[block.index] < block.end - block.begin]

    def forget(self, part: int) -> None:
        """Marks all of a part as missing."""
        with self._lock:
            for block in self.blocks:
                if block.part == part:
                    self._n_done -= self._done[block.index]
                    self._done[block.index] = 0

    def write(self, block: Block, data: bytes) -> None:
        """Adds `data` behind what is here of a block. Raises DllamaError when the disk refuses."""
        with self._lock:
            try:
                self._file.seek(block.offset + self._done[block.index])
                self._file.write(data)
            except OSError as error:
                raise _refused(self.target, error) from error
            self._done[block.index] += len(data)
            self._n_done += len(data)
            if time.monotonic() - self._saved >= _SAVE_EVERY_SECONDS:
                self._save()

    def flush(self) -> None:
        """Hands all that was written to the system. Raises DllamaError when the disk refuses."""
        try:
            self._file.flush()
        except OSError as error:
            raise _refused(self.target, error) from error

    def close(self) -> None:
        """Writes what is known, and closes the file; it stays for the next time."""
        with self._lock, suppress(OSError):
            self._save()
            self._file.close()

    def finish(self) -> None:
        """Gives the file its own name. Raises DllamaError when the system refuses."""
        try:
            self._file.flush()
            os.fsync(self._file.fileno())
            self._file.close()
            self.path.replace(self.target)
            self._state_path.unlink(missing_ok=True)
        except OSError as error:
            raise _refused(self.target, error) from error

    def discard(self) -> None:
        """Deletes what is here."""
        with suppress(OSError):
            self._file.close()
        self.path.unlink(missing_ok=True)
        self._state_path.unlink(missing_ok=True)

    def _save(self) -> None:
        self._file.flush()
        state = {"parts": self._description, "block_bytes": _BLOCK_BYTES, "done": self._done}
        passing = self._state_path.with_name(f"{self._state_path.name}.new")
        passing.write_text(json.dumps(state), encoding="utf-8")
        passing.replace(self._state_path)
        self._saved = time.monotonic()

    def _restore(self) -> list[int] | None:
        """Bytes done by block, if they are known and can be believed."""
        try:
            state = json.loads(self._state_path.read_text(encoding="utf-8"))
            size = self.path.stat().st_size
        except (OSError, ValueError, RecursionError):
            return None
        if not isinstance(state, dict) or [state.get("parts"), state.get("block_bytes")] != [
            self._description,
            _BLOCK_BYTES,
        ]:
            return None
        done = state.get("done")
        if not isinstance(done, list) or len(done) != len(self.blocks):
            return None
        for block, count in zip(self.blocks, done, strict=True):
            if (
                type(count) is not int
                or not 0 <= count <= block.end - block.begin
                or (count and block.offset + count > size)
            ):
                return None
        return done


def _blocks(parts: Sequence[RemoteFile]) -> tuple[Block, ...]:
    blocks: list[Block] = []
    offset = 0
    for number, part in enumerate(parts):
        for begin in range(0, part.size, _BLOCK_BYTES):
            end = min(begin + _BLOCK_BYTES, part.size)
            blocks.append(Block(len(blocks), number, begin, end, offset + begin))
        offset += part.size
    return tuple(blocks)


def _refused(target: Path, error: OSError) -> DllamaError:
    return DllamaError(f"{target} cannot be written ({error.strerror or error}); is the disk full, or not yours?")
