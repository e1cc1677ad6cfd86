"""Types of the native module; see native/bindings.cpp."""

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

HEADER_BYTES: int
MAX_NODES: int
MAX_PAYLOAD_BYTES: int

class Wire:
    F32: Wire
    F16: Wire
    Q80: Wire

class Algorithm:
    DIRECT: Algorithm
    REDUCE_SCATTER_ALL_GATHER: Algorithm

class Reason:
    CLOSED: Reason
    RESET: Reason
    LOST: Reason
    TIMED_OUT: Reason
    OUT_OF_STEP: Reason
    WRONG_AUTHENTICATION: Reason
    FRAME_TOO_LONG: Reason
    STOPPED: Reason

class LinkStats:
    @property
    def bytes_sent(self) -> int: ...
    @property
    def bytes_received(self) -> int: ...
    @property
    def waiting_seconds(self) -> float: ...
    @property
    def receiving_seconds(self) -> float: ...
    @property
    def sending_seconds(self) -> float: ...

class MeshTotals:
    @property
    def n_exchanges(self) -> int: ...
    @property
    def seconds(self) -> float: ...
    @property
    def waiting_seconds(self) -> float: ...

Failure = tuple[int, Reason, str]

class Mesh:
    def __init__(
        self, rank: int, sockets: Mapping[int, tuple[int, tuple[bytes, bytes] | None]], timeout: float
    ) -> None: ...
    def all_reduce(
        self, rows: npt.NDArray[np.float32], contributes: bool, wire: Wire, algorithm: Algorithm
    ) -> Failure | None: ...
    def broadcast(self, rows: npt.NDArray[np.float32]) -> Failure | None: ...
    def gather(self, payload: bytes, max_bytes: int) -> tuple[Failure | None, list[bytes]]: ...
    def stop(self) -> None: ...
    def stats(self) -> dict[int, LinkStats]: ...
    def totals(self) -> MeshTotals: ...

def siphash(key: bytes, pieces: Sequence[bytes]) -> bytes: ...
