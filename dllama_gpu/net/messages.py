"""What root and workers say to each other, except for weights and exchanges, which are raw bytes.

Every message is a tagged msgspec struct in MessagePack; decoding is strict: no unknown kind, no unknown field, no other
type. Nothing received is ever unpickled or executed.
"""

from __future__ import annotations

import msgspec

from dllama_gpu.errors import DllamaError
from dllama_gpu.graph.graph import Buffer, KvCache, Weight
from dllama_gpu.graph.profile import Link
from dllama_gpu.model.float_type import FloatType
from dllama_gpu.model.spec import ModelSpec
from dllama_gpu.net.measure import NodeSpeed

_KIB = 1 << 10
_MIB = 1 << 20
TOKEN_BYTES = 32
"""Length of the secret that admits a connection to a session."""
DIGEST_BYTES = 32


class Message(msgspec.Struct, frozen=True, tag=True, forbid_unknown_fields=True):
    """Base of all messages; the class name is the tag."""


class RootHello(Message, frozen=True):
    """A root asks for the worker. `token` names the session; `measure` lists the weights whose speed is asked for."""

    release: str
    token: bytes
    measure: tuple[FloatType, ...]


class PeerHello(Message, frozen=True):
    """Node `rank` of the session `token` opens its direct connection for exchanges."""

    token: bytes
    rank: int


class ProbeHello(Message, frozen=True):
    """A node of the session `token` wants to measure the way to this one; Ping and Pong follow until Bye."""

    token: bytes


class Welcome(Message, frozen=True):
    """The connection of a peer belongs to the session now."""


class NodeReport(Message, frozen=True):
    """What a worker offers.

    `memory` is the bytes it may use (None: unknown), `speeds` what its kernels reach with weights of the types asked
    for, `advertised` the host:port under which other nodes reach it, if not the one that the root dialled.
    """

    release: str
    host_name: str
    device: str
    cpu: str
    memory: int | None
    speeds: dict[FloatType, NodeSpeed]
    advertised: str | None


class Ping(Message, frozen=True):
    """Comes back as Pong with `reply` bytes; measures round trip and bandwidth."""

    payload: bytes
    reply: int


class Pong(Message, frozen=True):
    """Answer to Ping."""

    payload: bytes


class MeasureLink(Message, frozen=True):
    """Asks the worker to measure the way to another worker of the session."""

    host: str
    port: int


class LinkReport(Message, frozen=True):
    """Answer to MeasureLink; without a `link`, `failure` says why there is none."""

    link: Link | None
    failure: str = ""


class PeerTable(Message, frozen=True):
    """Where the nodes of the session are: `addresses` (host, port) by rank, rank 0 (the root) without one.

    `timeout` bounds the seconds without a byte in an exchange; `link` is the slowest measured one, by which all nodes
    choose the way of their exchanges alike.
    """

    rank: int
    addresses: tuple[tuple[str, int] | None, ...]
    timeout: float
    link: Link | None


class Connected(Message, frozen=True):
    """The worker is connected to all other nodes."""


class StepMessage(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One op or exchange of a graph: the name of its class, and its fields."""

    kind: str
    fields: msgspec.Raw


class GraphMessage(Message, frozen=True):
    """The worker's share of the model. `wire` is the number format of exchanges."""

    model: str
    spec: ModelSpec
    wire: FloatType
    buffers: tuple[Buffer, ...]
    caches: tuple[KvCache, ...]
    weights: tuple[Weight, ...]
    steps: tuple[StepMessage, ...]
    max_rows: int
    n_slots: int
    seq_len: int
    max_logit_rows: int | None


class SliceHashes(Message, frozen=True):
    """BLAKE2b digests of the weights' slices, in the order in which they first appear in the graph."""

    digests: tuple[bytes, ...]


class SliceWanted(Message, frozen=True):
    """Slices (index, first byte) that the worker does not have; the root sends their bytes in this order.

    An empty list ends the transfer.
    """

    slices: tuple[tuple[int, int], ...]


class Loading(Message, frozen=True):
    """The worker is at work on its weights: bytes `done` of `total` since the last change of stage."""

    done: int
    total: int


class Ready(Message, frozen=True):
    """The weights are loaded; steps may come."""


class StepBatch(Message, frozen=True):
    """A batch; columns are little-endian int32, temperatures float32."""

    tokens: bytes
    slots: bytes
    positions: bytes
    logit_rows: bytes
    temperatures: bytes


class FetchLogits(Message, frozen=True):
    """Asks for the first rows of this node's logits of the last step; raw float32 (n_rows, width) follows."""

    n_rows: int


class FetchStatistics(Message, frozen=True):
    """Asks for NodeStatistics."""


class PhaseStatistics(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a node's steps of one kind cost.

    Of the `step_seconds` of its `n_steps` steps with `n_rows` rows in all, `exchange_seconds` went into exchanges, and
    of these `waiting_seconds` into waiting for other nodes to begin to send. Bytes are those of exchanges.
    """

    n_steps: int = 0
    n_rows: int = 0
    step_seconds: float = 0.0
    exchange_seconds: float = 0.0
    waiting_seconds: float = 0.0
    bytes_sent: int = 0
    bytes_received: int = 0

    @property
    def compute_seconds(self) -> float:
        """Spent on the node's own share."""
        return self.step_seconds - self.exchange_seconds


class NodeStatistics(Message, frozen=True):
    """What a node did since its weights were loaded: `decode` steps, of which every row wants logits, and others."""

    prefill: PhaseStatistics
    decode: PhaseStatistics


class StartTrace(Message, frozen=True):
    """From now on the node writes down when it computes, waits and exchanges."""


class ReadClock(Message, frozen=True):
    """Asks for ClockTime."""


class ClockTime(Message, frozen=True):
    """What the node's clock shows, in seconds since a moment of its own."""

    seconds: float


class FetchTrace(Message, frozen=True):
    """Asks for TracePiece from record number `first` on."""

    first: int


class TracePiece(Message, frozen=True):
    """Records of `net.trace.RECORD`, none behind the last; `n_untold` steps found no room."""

    records: bytes
    n_untold: int


class Bye(Message, frozen=True):
    """The root needs the worker no longer."""


class Failure(Message, frozen=True):
    """Why the sender gives up. `lost_rank` is the node that left, where that is the reason."""

    sentence: str
    lost_rank: int | None = None


AnyMessage = (
    RootHello
    | PeerHello
    | ProbeHello
    | Welcome
    | NodeReport
    | Ping
    | Pong
    | MeasureLink
    | LinkReport
    | PeerTable
    | Connected
    | GraphMessage
    | SliceHashes
    | SliceWanted
    | Loading
    | Ready
    | StepBatch
    | FetchLogits
    | FetchStatistics
    | NodeStatistics
    | StartTrace
    | ReadClock
    | ClockTime
    | FetchTrace
    | TracePiece
    | Bye
    | Failure
)

# Largest encodings in bytes; graphs of the largest models with many experts stay well below theirs.
_LIMITS: dict[type[Message], int] = {
    Ping: 4 * _MIB + _KIB,
    Pong: 4 * _MIB + _KIB,
    PeerTable: 64 * _KIB,
    GraphMessage: 64 * _MIB,
    SliceHashes: 16 * _MIB,
    SliceWanted: 16 * _MIB,
    StepBatch: 4 * _MIB,
    TracePiece: 1 * _MIB,
}
_USUAL_LIMIT = 8 * _KIB
_LONGEST_SENTENCE = 1000
MAX_PING_BYTES = 4 * _MIB

_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(AnyMessage)


def size_limit(kind: type[Message]) -> int:
    """Bytes that an encoded message of this kind may have."""
    return _LIMITS.get(kind, _USUAL_LIMIT)


def encode(message: Message) -> bytes:
    """The message's bytes."""
    return _encoder.encode(message)


def decode(data: bytes | bytearray | memoryview) -> AnyMessage:
    """The message in `data`. Raises DllamaError when it is none, or larger than its kind may be."""
    try:
        message: AnyMessage = _decoder.decode(data)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError, OverflowError) as error:
        raise DllamaError(f"a message cannot be understood ({printable(str(error), 200)})") from None
    limit = size_limit(type(message))
    if len(data) > limit:
        raise DllamaError(f"a {type(message).__name__} message has {len(data)} bytes, more than the {limit} allowed")
    return message


def printable(text: str, limit: int = _LONGEST_SENTENCE) -> str:
    """Text of another node, safe to show: one line, no control characters, not endless."""
    shown = "".join(character if character.isprintable() else "?" for character in text[:limit])
    return shown + ("…" if len(text) > limit else "")
