"""Both ends of the way of the weights: hashes first, then only what the worker does not have."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import TypeVar

from dllama_gpu.errors import DllamaError
from dllama_gpu.graph.graph import BufferType, Graph
from dllama_gpu.model.source import ModelSource
from dllama_gpu.net.channel import RAW_FRAME_BYTES, Channel, ChannelError
from dllama_gpu.net.messages import Loading, Message, SliceHashes, SliceWanted
from dllama_gpu.net.slices import WeightSlice, graph_slices, read_slice
from dllama_gpu.net.store import DamagedSliceError, HeldSlice, SliceStore

_ROUNDS = 3  # a slice that arrives damaged as often as this is not the network's accident
_REPORT_SECONDS = 0.5
PATIENCE_SECONDS = 60.0
"""Without a byte while weights are on their way: reading, converting and packing a large tensor takes its time."""
Kind = TypeVar("Kind", bound=Message)


def graph_bytes(graph: Graph) -> int:
    """Bytes of memory that a graph's weights, KV caches and activations take, the device's own work space aside."""
    rows = sum(buffer.width * (2 if buffer.type is BufferType.Q80 else 4) for buffer in graph.buffers)
    return graph.weight_bytes() + graph.kv_cache_bytes() + rows * graph.max_rows


def send_slices(
    channel: Channel,
    source: ModelSource,
    pieces: Sequence[WeightSlice],
    digests: Mapping[WeightSlice, bytes],
    progress: Callable[[int], None],
) -> int:
    """The root's end: brings `pieces` to a worker; `progress` is told the bytes that it has of them.

    Returns the bytes of weights sent. Raises DllamaError.
    """
    total = sum(piece.n_bytes for piece in pieces)
    channel.send(SliceHashes(tuple(digests[piece] for piece in pieces)))
    sent = 0
    while True:
        wanted = receive_patiently(channel, SliceWanted, lambda done: progress(max(0, min(done, total)))).slices
        for index, begin in wanted:
            if not (0 <= index < len(pieces) and 0 <= begin < pieces[index].n_bytes):
                raise ChannelError(channel.peer, f"byte {begin} of slice {index} was asked for, which does not exist")
        left = sum(pieces[index].n_bytes - begin for index, begin in wanted)
        progress(total - left)
        if not wanted:
            return sent
        for index, begin in wanted:
            for chunk in read_slice(source, pieces[index], begin, RAW_FRAME_BYTES):
                channel.send_raw(chunk.data)
                left -= chunk.nbytes
                sent += chunk.nbytes
                progress(total - left)


def receive_slices(channel: Channel, graph: Graph, store: SliceStore) -> dict[str, HeldSlice]:
    """The worker's end: every slice of `graph` (a local one) by name, from the store or from the root, verified.

    Raises DllamaError when a slice does not arrive undamaged, or the connection fails.
    """
    pieces = graph_slices(graph)
    digests = channel.receive(SliceHashes).digests
    if len(digests) != len(pieces) or any(len(digest) != 32 for digest in digests):
        raise ChannelError(channel.peer, f"{len(digests)} hashes were sent for {len(pieces)} slices of weights")
    held = _find_slices(channel, pieces, digests, store)
    for _ in range(_ROUNDS):
        missing = [index for index, piece in enumerate(pieces) if piece.part.tensor not in held]
        # The same content under two names is sent once a name: it is rare (norms of equal numbers) and small.
        store.make_room(sum(pieces[index].n_bytes for index in missing), digests)
        offsets = tuple((index, store.arrived(digests[index], pieces[index].n_bytes)) for index in missing)
        channel.send(SliceWanted(offsets))
        if not missing:
            return held
        for index, begin in offsets:
            slice_ = _receive_slice(channel, store, digests[index], pieces[index].n_bytes, begin)
            if slice_ is not None:
                held[pieces[index].part.tensor] = slice_
    raise DllamaError(
        f"weights arrived damaged {_ROUNDS} times; is the model file being changed, or the network or memory faulty?"
    )


def _find_slices(
    channel: Channel, pieces: Sequence[WeightSlice], digests: Sequence[bytes], store: SliceStore
) -> dict[str, HeldSlice]:
    """Those that the store has, by name. Several are hashed at a time; this thread tells the root that it goes on."""
    report, done = ProgressReports(channel, sum(piece.n_bytes for piece in pieces)), _Sum()
    pool = ThreadPoolExecutor(min(4, os.cpu_count() or 1))
    try:
        searches = [
            pool.submit(store.find, digest, piece.n_bytes, done.add)
            for piece, digest in zip(pieces, digests, strict=True)
        ]
        pending: set[Future[HeldSlice | None]] = set(searches)
        while pending:
            _, pending = wait(pending, _REPORT_SECONDS)
            report.advance(done.total, report.total)
        found = [search.result() for search in searches]
    finally:
        pool.shutdown(cancel_futures=True)
    return {piece.part.tensor: held for piece, held in zip(pieces, found, strict=True) if held is not None}


class _Sum:
    """Bytes that several threads add up."""

    def __init__(self) -> None:
        self.total = 0
        self._lock = threading.Lock()

    def add(self, n_bytes: int) -> None:
        with self._lock:
            self.total += n_bytes


def _receive_slice(channel: Channel, store: SliceStore, digest: bytes, n_bytes: int, begin: int) -> HeldSlice | None:
    writer = store.receive(digest, n_bytes, begin)
    try:
        while writer.missing:
            writer.write(channel.receive_raw())
    except BaseException:
        writer.abandon()
        raise
    try:
        return writer.finish()
    except DamagedSliceError:
        return None


class ProgressReports:
    """Tells the root now and then that work goes on, so that it does not take the worker for lost."""

    def __init__(self, channel: Channel, total: int) -> None:
        self.total = total
        self._channel = channel
        self._told = time.monotonic()

    def advance(self, done: int, total: int) -> None:
        """So many bytes are done in all."""
        now = time.monotonic()
        if now - self._told >= _REPORT_SECONDS:
            self._told = now
            self._channel.send(Loading(done, total))


def wait_patiently(channel: Channel, kind: type[Kind]) -> Kind:
    """The answer to a question that takes its time. Raises DllamaError."""
    usual, channel.timeout = channel.timeout, max(channel.timeout, PATIENCE_SECONDS)
    try:
        return channel.receive(kind)
    finally:
        channel.timeout = usual


def receive_patiently(channel: Channel, kind: type[Kind], told: Callable[[int], None] | None = None) -> Kind:
    """The next message of `kind`, however many Loading reports come before it, of whose bytes `told` hears.

    Raises DllamaError.
    """
    while True:
        message = channel.receive(kind, Loading)
        if isinstance(message, kind):
            return message
        if told is not None and isinstance(message, Loading):
            told(message.done)
