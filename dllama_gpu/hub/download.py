"""Downloads: several stretches at once, resumed after any interruption, verified before they get their name."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from pathlib import Path

from filelock import FileLock

from dllama_gpu.errors import DllamaError
from dllama_gpu.formats.shown import shown_text
from dllama_gpu.hub.client import HubClient, RemoteFile, TemporaryError, body_chunks
from dllama_gpu.hub.partial import Block, PartialFile, partial_path

Progress = Callable[[int, int], None]
"""Told (bytes done, bytes in all)."""

_RECORD = ".verified.json"
_CONNECTIONS = 4
_SPARE_BYTES = 64 << 20  # of the disk, for everybody else
_READ_BYTES = 1 << 20
_CONTENT_RANGE = re.compile(r"bytes (\d{1,16})-(\d{1,16})/(\d{1,16})")


class ChangedError(DllamaError):
    """The server has another file than it said, or what came is not what was promised."""


class _NoRangesError(Exception):
    """The server sends the whole file whatever stretch is asked for."""


def fetch(
    client: HubClient,
    urls: Sequence[str],
    target: Path,
    progress: Progress | None = None,
    verifying: Progress | None = None,
) -> None:
    """Makes `target` of the files at `urls`, one behind the other; returns at once where it is there, verified.

    Sizes and hashes are those that the server states. What is here of an interrupted download is used. Raises
    DllamaError when the files cannot be had, are not what was promised (after a second try), or do not fit the disk.
    """
    with FileLock(target.with_name(f".{target.name}.lock")):
        if is_verified(target):
            return
        for attempt in (1, 2):
            parts = [client.look_up(url, target.name) for url in urls]
            try:
                _fetch(client, parts, target, progress, verifying)
            except ChangedError:
                if attempt == 2:
                    raise
            else:
                return


def check_space_for_all(client: HubClient, urls: Mapping[Path, str]) -> None:
    """Raises DllamaError when what is not here yet of several files (by their targets) does not fit the disk."""
    missing = {target: url for target, url in urls.items() if not is_verified(target)}
    if len(missing) < 2:  # `fetch` checks each file itself
        return
    needed = 0
    for target, url in missing.items():
        present = max(map(_size, (target, partial_path(target))))
        needed += max(0, client.look_up(url, target.name).size - present)
    first = next(iter(missing))
    _check_space(first.parent, f"{first.name} with the other files of its model", needed)


def is_verified(target: Path) -> bool:
    """Whether a file was fetched, verified, and not touched since."""
    try:
        state = target.stat()
    except OSError:
        return False
    found = _read_record(target.parent).get(target.name)
    return isinstance(found, list) and found[1:] == [state.st_size, state.st_mtime_ns]


def _fetch(
    client: HubClient,
    parts: Sequence[RemoteFile],
    target: Path,
    progress: Progress | None,
    verifying: Progress | None,
) -> None:
    if target.exists() and target.stat().st_size == sum(part.size for part in parts):
        if _damage(target, parts, verifying) is None:
            _record(target, parts)
            return
        target.unlink()
    partial = PartialFile(target, parts)
    try:
        _check_space(target.parent, target.name, partial.total - partial.n_done)
        _Transfer(client, parts, partial, progress).run()
        partial.flush()
        damage = _damage(partial.path, parts, verifying)
        if damage is not None:
            partial.discard()
            raise ChangedError(f"{target.name} did not arrive as promised: {damage}; try again later")
        partial.finish()
    except ChangedError:
        partial.discard()
        raise
    except BaseException:
        partial.close()
        raise
    _record(target, parts)


class _Transfer:
    """Brings the missing blocks of one file, several at a time."""

    def __init__(
        self, client: HubClient, parts: Sequence[RemoteFile], partial: PartialFile, progress: Progress | None
    ) -> None:
        self._client = client
        self._parts = parts
        self._partial = partial
        self._progress = progress
        self._stop = threading.Event()
        self._reporting = threading.Lock()
        self._whole: dict[int, threading.Lock] = {number: threading.Lock() for number in range(len(parts))}
        self._without_ranges: set[int] = set()

    def run(self) -> None:
        missing = self._partial.missing()
        self._report()
        with ThreadPoolExecutor(_CONNECTIONS, "download") as pool:
            futures = [pool.submit(self._bring, block) for block in missing]
            try:
                done, _ = wait(futures, return_when=FIRST_EXCEPTION)
                for future in done:
                    future.result()
            finally:
                self._stop.set()
                for future in futures:
                    future.cancel()

    def _bring(self, block: Block) -> None:
        if block.part not in self._without_ranges:
            before = -1

            def progressed() -> bool:
                nonlocal before
                before, previous = self._partial.done(block), before
                return before > previous

            try:
                self._client.patiently(lambda: self._request(block), progressed, self._stop.is_set)
                return
            except _NoRangesError:
                self._without_ranges.add(block.part)
        with self._whole[block.part]:
            if not self._stop.is_set() and any(missing.part == block.part for missing in self._partial.missing()):
                self._client.patiently(lambda: self._request_whole(block.part), stopped=self._stop.is_set)

    def _request(self, block: Block) -> None:
        """Asks for what is missing of a block."""
        part, begin = self._parts[block.part], block.begin + self._partial.done(block)
        if begin == block.end or self._stop.is_set():
            return
        name = self._partial.target.name
        with self._client.get(part.url, name, {"Range": f"bytes={begin}-{block.end - 1}"}) as response:
            if response.status_code == 200:
                raise _NoRangesError
            found = _CONTENT_RANGE.fullmatch(response.headers.get("Content-Range", ""))
            if response.status_code != 206 or found is None or int(found[1]) != begin or int(found[3]) != part.size:
                said = shown_text(response.headers.get("Content-Range", f"HTTP {response.status_code}"))
                raise ChangedError(f"{name}: bytes {begin} on of {part.size} were asked for, but the answer is {said}")
            left = block.end - begin
            for chunk in body_chunks(response, name):
                self._write(block, chunk[:left])
                left -= len(chunk[:left])
                if left == 0 or self._stop.is_set():
                    return
        raise TemporaryError(f"{name}: the server stopped {left} bytes early")

    def _request_whole(self, number: int) -> None:
        """Asks for a whole part from its beginning, as nothing else can be had."""
        self._partial.forget(number)
        blocks = iter([block for block in self._partial.blocks if block.part == number])
        name, part = self._partial.target.name, self._parts[number]
        block = next(blocks, None)
        with self._client.get(part.url, name) as response:
            for chunk in body_chunks(response, name):
                while chunk and block is not None and not self._stop.is_set():
                    room = block.end - block.begin - self._partial.done(block)
                    self._write(block, chunk[:room])
                    chunk = chunk[room:]
                    if self._partial.done(block) == block.end - block.begin:
                        block = next(blocks, None)
                if chunk and block is None:
                    raise ChangedError(f"{name}: the server sends more than the {part.size} bytes that it promised")
        if block is not None and not self._stop.is_set():
            raise TemporaryError(f"{name}: the server stopped early")

    def _write(self, block: Block, data: bytes) -> None:
        self._partial.write(block, data)
        self._report()

    def _report(self) -> None:
        if self._progress is not None:
            with self._reporting:
                self._progress(self._partial.n_done, self._partial.total)


def _damage(path: Path, parts: Sequence[RemoteFile], progress: Progress | None) -> str | None:
    """What is wrong with the content, in words; None if it is what was promised, as far as that is known."""
    total, done = sum(part.size for part in parts), 0
    with path.open("rb") as file:
        for part in parts:
            digest = hashlib.sha256()
            if part.sha256 is None and part.git_sha1 is not None:
                digest = hashlib.sha1(b"blob %d\0" % part.size, usedforsecurity=False)
            left = part.size
            while left and (data := file.read(min(_READ_BYTES, left))):
                digest.update(data)
                left -= len(data)
                done += len(data)
                if progress is not None:
                    progress(done, total)
            if left:
                return f"{left} bytes are missing"
            wanted = part.sha256 or part.git_sha1
            if wanted is not None and digest.hexdigest() != wanted:
                return f"its hash is {digest.hexdigest()}, not {wanted}"
        return "it goes on behind its end" if file.read(1) else None


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _check_space(folder: Path, what: str, needed: int) -> None:
    free = shutil.disk_usage(folder).free
    if free < needed + _SPARE_BYTES:
        raise DllamaError(
            f"{what} needs {needed / 1e9:.2f} GB more on the disk of {folder}, and {free / 1e9:.2f} GB "
            "are free; free some space, or name another folder"
        )


def _record(target: Path, parts: Sequence[RemoteFile]) -> None:
    """Notes that the file was verified: what the server said it is, its size and its time of change."""
    state = target.stat()
    identity = " ".join(part.identity for part in parts)
    record = _read_record(target.parent) | {target.name: [identity, state.st_size, state.st_mtime_ns]}
    (target.parent / _RECORD).write_text(json.dumps(record), encoding="utf-8")


def _read_record(folder: Path) -> dict[str, object]:
    try:
        record = json.loads((folder / _RECORD).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return record if isinstance(record, dict) else {}
