"""The first bytes of a connection: who is there, which version is spoken, and does the other end know the key.

Both ends send a greeting of fixed size: magic, range of protocol versions, whether they have a key, release, a
fingerprint of all messages, and 32 fresh random bytes. With a key the end that dialled proves it first, by HMAC-SHA256
over a label and both greetings; then the other end does under another label. Keys for both directions are derived the
same way. Greetings are part of what is proved, so nothing in them can be changed on the way, and a key is never given
up silently: an end that has one talks to nobody without it.
"""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import secrets
import socket
import struct
import time
from dataclasses import dataclass

import dllama_gpu
from dllama_gpu.errors import DllamaError
from dllama_gpu.net.channel import SessionKeys
from dllama_gpu.net.dialect import FINGERPRINT_BYTES
from dllama_gpu.net.graph_messages import DIALECT
from dllama_gpu.net.messages import printable

# The blank line makes an HTTP server answer at once and not wait for the rest of a request.
MAGIC = b"DLLAMA-GPU\r\n\r\n"
LOWEST_VERSION = 1
HIGHEST_VERSION = 1
HANDSHAKE_SECONDS = 3.0

# magic, lowest, highest, has key, release, dialect, nonce
_GREETING = struct.Struct(f"<{len(MAGIC)}sHHB16s{FINGERPRINT_BYTES}s32s")
_PROOF_BYTES = hashlib.sha256().digest_size
_ACCEPTED, _REFUSED = b"\x01", b"\x00"
_KNOWN_STARTS = (
    ((b"HTTP/", b"GET ", b"POST ", b"HEAD ", b"PUT ", b"OPTIONS ", b"CONNECT ", b"DELETE ", b"PRI "), "HTTP"),
    ((b"\x16\x03", b"\x15\x03"), "TLS"),
    ((b"SSH-",), "SSH"),
    ((b"220 ", b"EHLO", b"HELO"), "SMTP or FTP"),
)


class HandshakeError(DllamaError):
    """The other end is no node of this cluster."""


class SilentVisitorError(HandshakeError):
    """The other end left without a word."""


@dataclass(frozen=True)
class _Greeting:
    raw: bytes
    lowest: int
    highest: int
    has_key: bool
    release: str
    dialect: bytes


def greet(
    connection: socket.socket,
    peer: str,
    key: bytes | None,
    *,
    dialled: bool,
    timeout: float = HANDSHAKE_SECONDS,
    versions: tuple[int, int] = (LOWEST_VERSION, HIGHEST_VERSION),
    dialect: bytes = DIALECT,
) -> SessionKeys | None:
    """Carries out the handshake on a fresh connection within `timeout` seconds; `dialled` says which end this is.

    Returns the connection's keys, None without a shared key. Raises HandshakeError with a sentence about `peer`.
    """
    reader = _Reader(connection, peer, time.monotonic() + timeout, timeout)
    own = _GREETING.pack(MAGIC, *versions, key is not None, _release(), dialect, secrets.token_bytes(32))
    try:
        if dialled:
            reader.send(own)
            other = reader.greeting()
        else:
            # A stranger learns nothing before it has said the magic words.
            other = reader.greeting()
            reader.send(own)
        _check_versions(peer, other, versions)
        _check_dialect(peer, other, dialect)
        _check_keys(peer, other, key, dialled)
        if key is None:
            return None
        transcript = own + other.raw if dialled else other.raw + own
        return _prove(reader, peer, key, transcript, dialled)
    except TimeoutError:
        raise HandshakeError(
            f"{peer} did not answer as a dllama-gpu node within {timeout:g} seconds; is it another program's port?"
        ) from None
    except OSError as error:
        raise HandshakeError(f"{peer} ended the connection ({error.strerror or error})") from None


def _prove(reader: _Reader, peer: str, key: bytes, transcript: bytes, dialled: bool) -> SessionKeys:
    def derived(label: bytes) -> bytes:
        return hmac.digest(key, b"dllama-gpu " + label + b"\0" + transcript, "sha256")

    ours, theirs = derived(b"proof of the dialling end"), derived(b"proof of the listening end")
    wrong = f"wrong key: {peer} has another one; give all nodes the same --key-file or DLLAMA_GPU_KEY"
    if dialled:
        reader.send(ours)
        if reader.exactly(1) != _ACCEPTED or not hmac.compare_digest(reader.exactly(_PROOF_BYTES), theirs):
            raise HandshakeError(wrong)
    else:
        if not hmac.compare_digest(reader.exactly(_PROOF_BYTES), ours):
            with contextlib.suppress(OSError):
                reader.send(_REFUSED)
            raise HandshakeError(wrong)
        reader.send(_ACCEPTED + theirs)
    outward, inward = derived(b"from the dialling end"), derived(b"from the listening end")
    return SessionKeys(outward, inward) if dialled else SessionKeys(inward, outward)


def _check_versions(peer: str, other: _Greeting, versions: tuple[int, int]) -> None:
    lowest, highest = versions
    if other.lowest > highest or other.highest < lowest:
        raise HandshakeError(
            f"{peer} runs dllama-gpu {other.release}, which speaks protocol {_span(other.lowest, other.highest)}, and "
            f"this is {dllama_gpu.__version__}, which speaks {_span(lowest, highest)}; install the same release on both"
        )


def _check_dialect(peer: str, other: _Greeting, dialect: bytes) -> None:
    if other.dialect != dialect:
        own = dllama_gpu.__version__
        which = f"another state of {own}" if other.release == own else f"dllama-gpu {other.release}, and this is {own}"
        raise HandshakeError(f"{peer} runs {which}; their messages differ, so update both to the same release")


def _check_keys(peer: str, other: _Greeting, key: bytes | None, dialled: bool) -> None:
    if other.has_key and key is None:
        remedy = "give the same one here with --key-file or DLLAMA_GPU_KEY" if dialled else "start this one with it too"
        raise HandshakeError(f"{peer} has a key and this node has none; {remedy}")
    if key is not None and not other.has_key:
        raise HandshakeError(
            f"{peer} has no key, but this node was given one and talks only to nodes that know it; "
            "start the other one with the same --key-file or DLLAMA_GPU_KEY"
        )


def _span(lowest: int, highest: int) -> str:
    return str(lowest) if lowest == highest else f"{lowest} to {highest}"


def _release() -> bytes:
    return dllama_gpu.__version__.encode()[:16]


class _Reader:
    """A connection with one deadline for everything."""

    def __init__(self, connection: socket.socket, peer: str, deadline: float, timeout: float) -> None:
        self.connection = connection
        self.peer = peer
        self.deadline = deadline
        self.timeout = timeout

    def send(self, data: bytes) -> None:
        self._wait()
        self.connection.sendall(data)

    def exactly(self, n_bytes: int) -> bytes:
        data = b""
        while len(data) < n_bytes:
            data += self._some(n_bytes - len(data))
        return data

    def greeting(self) -> _Greeting:
        data = b""
        while len(data) < _GREETING.size:
            data += self._some(_GREETING.size - len(data), first=not data)
            if not data.startswith(MAGIC[: len(data)]):
                raise HandshakeError(self._stranger(data))
        _, lowest, highest, has_key, release, dialect, _ = _GREETING.unpack(data)
        shown = printable(release.rstrip(b"\0").decode("ascii", "replace"))
        return _Greeting(data, lowest, highest, bool(has_key), shown, dialect)

    def _some(self, n_bytes: int, *, first: bool = False) -> bytes:
        self._wait()
        data = self.connection.recv(n_bytes)
        if not data:
            kind = SilentVisitorError if first else HandshakeError
            raise kind(f"{self.peer} closed the connection before it said who it is")
        return data

    def _wait(self) -> None:
        left = self.deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError
        self.connection.settimeout(left)

    def _stranger(self, data: bytes) -> str:
        for starts, protocol in _KNOWN_STARTS:
            if any(data.startswith(start[: len(data)]) for start in starts):
                return f"{self.peer} speaks {protocol}, so it is no dllama-gpu node; check address and port"
        shown = " ".join(f"{byte:02x}" for byte in data[:8])
        return f"{self.peer} is no dllama-gpu node (it begins with the bytes {shown}); check address and port"
