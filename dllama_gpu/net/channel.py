"""Messages and raw bytes over one connection: framed, numbered, limited, with deadlines, authenticated with a key.

A frame is a header (payload length, sequence number, kind), the payload, and with a key 16 bytes of keyed BLAKE2b over
both. The two directions have different keys, so a frame can be neither repeated, reordered nor sent back.
"""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import socket
import struct
import time
from dataclasses import dataclass
from typing import TypeVar

from dllama_gpu.errors import DllamaError
from dllama_gpu.net.messages import (
    AnyMessage,
    Failure,
    Message,
    decode,
    encode,
    printable,
    size_limit,
)

_HEADER = struct.Struct("<IQB")  # payload bytes, sequence number, kind
_CONTROL, _RAW = 0, 1
_MAC_BYTES = 16
RAW_FRAME_BYTES = 1 << 20
DEFAULT_TIMEOUT = 10.0

Kind = TypeVar("Kind", bound=Message)


class ChannelError(DllamaError):
    """A connection that can no longer be used; `reason` says why without naming the peer."""

    def __init__(self, peer: str, reason: str) -> None:
        super().__init__(f"{peer}: {reason}")
        self.reason = reason


class PeerGoneError(ChannelError):
    """The other end closed the connection, vanished or fell silent."""


class RemoteFailureError(DllamaError):
    """The other end explained why it gives up."""

    def __init__(self, peer: str, failure: Failure) -> None:
        super().__init__(f"{peer}: {printable(failure.sentence)}")
        self.lost_rank = failure.lost_rank


@dataclass(frozen=True)
class SessionKeys:
    """Keys of one connection, 32 bytes each."""

    send: bytes
    receive: bytes


class Channel:
    """One end of a connection to `peer` (its name in messages), used by one thread at a time.

    `timeout` bounds the seconds without a byte moving. `deadline` (of time.monotonic) bounds everything until it is set
    to None: the first messages of a stranger.
    """

    def __init__(
        self,
        connection: socket.socket,
        peer: str,
        keys: SessionKeys | None = None,
        *,
        timeout: float = DEFAULT_TIMEOUT,
        deadline: float | None = None,
    ) -> None:
        self.peer = peer
        self.timeout = timeout
        self.deadline = deadline
        self.bytes_sent = 0
        self.bytes_received = 0
        self._connection = connection
        self._keys = keys
        self._sent = 0
        self._received = 0

    @property
    def connection(self) -> socket.socket:
        """The socket; nothing that came in is kept outside of it between two calls."""
        return self._connection

    def send(self, message: Message) -> None:
        """Sends a message. Raises PeerGoneError."""
        self._send_frame(_CONTROL, encode(message))

    def send_raw(self, data: bytes | memoryview) -> None:
        """Sends bytes in frames of at most RAW_FRAME_BYTES. Raises PeerGoneError."""
        view = memoryview(data).cast("B")
        for begin in range(0, len(view), RAW_FRAME_BYTES):
            self._send_frame(_RAW, view[begin : begin + RAW_FRAME_BYTES])

    def receive(self, *kinds: type[Kind], wait: bool = False) -> Kind:
        """The next message, which must be of one of `kinds`; `wait` takes any time for it to begin.

        Raises PeerGoneError, RemoteFailureError when it is a Failure and that is not among `kinds`, and ChannelError
        for everything that is no such message.
        """
        limit = max(size_limit(Failure), *(size_limit(kind) for kind in kinds))
        data = self._receive_frame(_CONTROL, limit, wait)
        try:
            message: AnyMessage = decode(data)
        except DllamaError as error:
            raise ChannelError(self.peer, str(error)) from None
        if isinstance(message, kinds):
            return message
        if isinstance(message, Failure):
            raise RemoteFailureError(self.peer, message)
        wanted = " or ".join(kind.__name__ for kind in kinds)
        raise ChannelError(self.peer, f"{type(message).__name__} was sent where {wanted} was due")

    def receive_raw(self) -> bytearray:
        """The next raw frame, of 1 to RAW_FRAME_BYTES. Raises PeerGoneError or ChannelError."""
        return self._receive_frame(_RAW, RAW_FRAME_BYTES, False)

    def receive_raw_into(self, target: memoryview) -> None:
        """Fills `target` from raw frames. Raises ChannelError when they do not end with it."""
        done = 0
        while done < len(target):
            frame = self.receive_raw()
            if done + len(frame) > len(target):
                raise ChannelError(self.peer, f"more than the {len(target)} bytes that were due")
            target[done : done + len(frame)] = frame
            done += len(frame)

    def pending(self, seconds: float) -> bool:
        """Whether something (a message or the end) can be read within `seconds`."""
        try:
            self._connection.settimeout(max(seconds, 0.001))
            self._connection.recv(1, socket.MSG_PEEK)
        except TimeoutError:
            return False
        except OSError:
            return True
        return True

    def interrupt(self) -> None:
        """Ends the connection from another thread: whoever waits on it gets PeerGoneError."""
        with contextlib.suppress(OSError):
            self._connection.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Closes the connection."""
        self._connection.close()

    def _send_frame(self, kind: int, payload: bytes | memoryview) -> None:
        header = _HEADER.pack(len(payload), self._sent, kind)
        parts = [header, payload]
        if self._keys is not None:
            parts.append(_mac(self._keys.send, header, payload))
        self._sent += 1
        try:
            # Small frames leave in one piece, large ones without a copy.
            for part in [b"".join(parts)] if len(payload) < 16384 else parts:
                self._send_all(memoryview(part))
        except TimeoutError:
            raise PeerGoneError(self.peer, f"took no data for {self.timeout:g} seconds") from None
        except OSError as error:
            raise PeerGoneError(self.peer, _closed(error)) from None

    def _send_all(self, view: memoryview) -> None:
        while view:
            self._set_timeout(self.timeout)
            n_bytes = self._connection.send(view)
            self.bytes_sent += n_bytes
            view = view[n_bytes:]

    def _receive_frame(self, kind: int, limit: int, wait: bool) -> bytearray:
        header = self._read(_HEADER.size, wait)
        length, number, found = _HEADER.unpack(header)
        # Unauthenticated until the MAC was compared, so nothing is believed but the length, which is limited.
        if length > limit:
            raise ChannelError(self.peer, f"a frame of {length} bytes was sent where {limit} are allowed")
        payload = self._read(length, False)
        if self._keys is not None:
            mac = self._read(_MAC_BYTES, False)
            if not hmac.compare_digest(mac, _mac(self._keys.receive, header, payload)):
                raise ChannelError(self.peer, "a frame was altered on the way (its authentication code is wrong)")
        if number != self._received or found != kind or (kind == _RAW and not payload):
            raise ChannelError(self.peer, f"frame {number} of kind {found} came where frame {self._received} was due")
        self._received += 1
        return payload

    def _read(self, n_bytes: int, wait: bool) -> bytearray:
        data = bytearray(n_bytes)
        view = memoryview(data)
        done = 0
        try:
            while done < n_bytes:
                self._set_timeout(None if wait and done == 0 else self.timeout)
                n_read = self._connection.recv_into(view[done:])
                if n_read == 0:
                    raise PeerGoneError(self.peer, "the connection was closed")
                done += n_read
                self.bytes_received += n_read
        except TimeoutError:
            raise PeerGoneError(self.peer, f"no answer for {self.timeout:g} seconds") from None
        except OSError as error:
            raise PeerGoneError(self.peer, _closed(error)) from None
        return data

    def _set_timeout(self, seconds: float | None) -> None:
        if self.deadline is not None:
            left = self.deadline - time.monotonic()
            if left <= 0:
                raise TimeoutError
            seconds = left if seconds is None else min(seconds, left)
        self._connection.settimeout(seconds)


def _mac(key: bytes, header: bytes | bytearray, payload: bytes | bytearray | memoryview) -> bytes:
    code = hashlib.blake2b(header, digest_size=_MAC_BYTES, key=key)
    code.update(payload)
    return code.digest()


def _closed(error: OSError) -> str:
    if isinstance(error, ConnectionResetError | BrokenPipeError):
        return "connection reset"
    return f"connection lost ({error.strerror or error})"
