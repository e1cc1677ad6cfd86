"""The worker: listens, serves one root at a time, and outlives every one of them."""

from __future__ import annotations

import contextlib
import gc
import selectors
import socket
import threading
import time
from collections.abc import Callable

from dllama_gpu.errors import DllamaError
from dllama_gpu.net.addresses import DEFAULT_PORT, Address, listen, peer_of, prepare
from dllama_gpu.net.channel import Channel
from dllama_gpu.net.handshake import HANDSHAKE_SECONDS, SilentVisitorError, greet
from dllama_gpu.net.links import answer_probe
from dllama_gpu.net.messages import Failure, PeerHello, ProbeHello, RootHello, Welcome
from dllama_gpu.net.session import Node, Session

_MOST_STRANGERS = 128
_STRANGER_SECONDS = 2 * HANDSHAKE_SECONDS
_PROBE_SECONDS = 60.0  # megabytes over a slow radio
_STOP_SECONDS = 15.0
_ENDING_SECONDS = 1.0


class WorkerServer:
    """Listens on `host` (None: every address of this machine) and `port` (0: a free one) from construction on.

    `told_busy` hears whenever a root begins to use the worker, and when that ends. `serve` runs until `stop`, which
    any thread or signal handler may call. Raises DllamaError from the constructor when it cannot listen.
    """

    def __init__(
        self,
        node: Node,
        host: str | None = None,
        port: int = DEFAULT_PORT,
        told_busy: Callable[[bool], None] = lambda busy: None,
    ) -> None:
        self._node = node
        self._told_busy = told_busy
        self._listeners = listen(host, port)
        self._wake_out, self._wake_in = socket.socketpair()
        self._wake_in.setblocking(False)
        self._stopping = False
        self._lock = threading.Lock()
        self._idle = threading.Condition(self._lock)
        self._session: Session | None = None
        self._strangers = 0
        self._threads: set[threading.Thread] = set()

    @property
    def addresses(self) -> list[Address]:
        """Where it listens."""
        return [Address(*listener.getsockname()[:2]) for listener in self._listeners]

    @property
    def wake_fileno(self) -> int:
        """A socket for signal.set_wakeup_fd: a byte in it makes `serve` look whether it was stopped."""
        return self._wake_in.fileno()

    def serve(self) -> None:
        """Accepts connections until `stop` was called; everything that is open then is closed."""
        with selectors.DefaultSelector() as selector:
            for readable in (*self._listeners, self._wake_out):
                selector.register(readable, selectors.EVENT_READ)
            while not self._stopping:
                for ready, _ in selector.select():
                    if ready.fileobj is self._wake_out:
                        self._wake_out.recv(4096)
                    elif isinstance(ready.fileobj, socket.socket):
                        self._accept(ready.fileobj)
        self._close()

    def stop(self) -> None:
        """Makes `serve` return."""
        self._stopping = True
        with contextlib.suppress(OSError):
            self._wake_in.send(b"x")

    def _accept(self, listener: socket.socket) -> None:
        try:
            connection, _ = listener.accept()
        except BlockingIOError:
            return
        except OSError as error:  # out of file descriptors, or the stranger is gone already
            self._node.log(f"a connection could not be accepted ({error.strerror or error})")
            time.sleep(0.1)
            return
        with self._lock:
            if self._strangers >= _MOST_STRANGERS:
                connection.close()
                return
            self._strangers += 1
            thread = threading.Thread(target=self._receive_stranger, args=(connection,), daemon=True)
            self._threads.add(thread)
        try:
            thread.start()
        except RuntimeError as error:  # the system has no more threads for now
            self._node.log(f"a connection could not be served ({error})")
            connection.close()
            with self._lock:
                self._strangers -= 1
                self._threads.discard(thread)

    def _receive_stranger(self, connection: socket.socket) -> None:
        """Finds out who connected; a root is served in this thread."""
        session: Session | None = None
        try:
            session = self._admit(connection)
        except SilentVisitorError:  # looked whether somebody listens
            pass
        except (DllamaError, OSError) as error:
            self._node.log(str(error))
        except Exception as error:  # whatever a stranger provokes, the worker goes on
            self._node.log(f"a connection failed in a way that should not happen: {type(error).__name__}: {error}")
        finally:
            with self._lock:
                self._strangers -= 1
        if session is not None:
            self._run(session)
        with self._lock:
            self._threads.discard(threading.current_thread())

    def _admit(self, connection: socket.socket) -> Session | None:
        """Handshake and first message. Returns the session of a root; connections of other nodes join theirs."""
        handed_over = False
        try:
            connection.setblocking(True)
            prepare(connection)
            name = str(peer_of(connection))
            deadline = time.monotonic() + _STRANGER_SECONDS
            keys = greet(connection, name, self._node.key, dialled=False)
            channel = Channel(connection, name, keys, deadline=deadline)
            hello = channel.receive(RootHello, PeerHello, ProbeHello)
            if isinstance(hello, PeerHello):
                handed_over = self._admit_peer(channel, hello)
                return None
            if isinstance(hello, ProbeHello):
                self._require_session(channel, hello.token)
                channel.deadline = time.monotonic() + _PROBE_SECONDS
                answer_probe(channel)
                return None
            assert isinstance(hello, RootHello)
            session = self._begin(channel, hello)
            handed_over = session is not None
            channel.deadline = None
            return session
        finally:
            if not handed_over:
                connection.close()

    def _admit_peer(self, channel: Channel, hello: PeerHello) -> bool:
        session = self._require_session(channel, hello.token)
        channel.send(Welcome())
        # Only now: behind the welcome the connection carries exchanges alone.
        if not session.offer_peer(hello.token, hello.rank, channel.connection):
            raise DllamaError(f"{channel.peer} wanted to join as node {hello.rank}, whose place is taken")
        return True

    def _require_session(self, channel: Channel, token: bytes) -> Session:
        session = self._session
        if session is None or not session.knows(token):
            channel.send(Failure("no session with this token runs here, so no node may join it"))
            raise DllamaError(f"{channel.peer} wanted to join a session that does not run here")
        return session

    def _begin(self, channel: Channel, hello: RootHello) -> Session | None:
        with self._idle:
            # A root that comes back at once finds its earlier session just ending.
            self._idle.wait_for(lambda: self._session is None, _ENDING_SECONDS)
            other = self._session
            if other is None and not self._stopping:
                self._session = Session(self._node, channel, hello)
                return self._session
        if other is None:
            channel.send(Failure("this worker is being stopped"))
        elif other.knows(hello.token):
            channel.send(Failure("it takes part already, under another name or address; name every worker once"))
        else:
            channel.send(Failure(f"busy: it works for the root at {other.root}; try again when that is done"))
            self._node.log(f"{channel.peer} was turned away: busy with the root at {other.root}")
        return None

    def _run(self, session: Session) -> None:
        self._node.log(f"working for the root at {session.root}")
        self._told_busy(True)
        end = "the root is done"
        try:
            session.run()
        except DllamaError as error:
            end = str(error)
        except Exception as error:
            end = f"this should not have happened: {type(error).__name__}: {error}; please report it"
        gc.collect()  # a traceback's frames may still hold the model
        with self._idle:
            self._session = None
            self._idle.notify_all()
        self._told_busy(False)
        self._node.log(f"session ended: {end}; waiting for a root")

    def _close(self) -> None:
        for listener in self._listeners:
            listener.close()
        with self._lock:
            session, threads = self._session, list(self._threads)
        if session is not None:
            session.interrupt()
        deadline = time.monotonic() + _STOP_SECONDS
        for thread in threads:
            thread.join(max(0.0, deadline - time.monotonic()))
        self._wake_in.close()
        self._wake_out.close()
