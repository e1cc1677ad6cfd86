"""Names and addresses of nodes, and connections to them over IPv4 and IPv6."""

from __future__ import annotations

import contextlib
import errno
import ipaddress
import socket
import sys
import time
from dataclasses import dataclass

from dllama_gpu.errors import DllamaError

DEFAULT_PORT = 9999
_HIGHEST_PORT = 65535


@dataclass(frozen=True)
class Address:
    """A host (name or number) and a TCP port."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @classmethod
    def parse(cls, text: str, default_port: int = DEFAULT_PORT) -> Address:
        """Reads `host`, `host:port`, `[IPv6]:port` or a bare IPv6 address. Raises DllamaError for anything else."""
        host, port_text = text.strip(), ""
        if host.startswith("["):
            host, bracket, rest = host[1:].partition("]")
            port_text = rest.removeprefix(":")
            wrong = not bracket or (rest != "" and not rest.startswith(":"))
        else:
            if host.count(":") == 1:
                host, _, port_text = host.partition(":")
            wrong = False
        numeric = port_text.isascii() and port_text.isdigit() and len(port_text) <= len(str(_HIGHEST_PORT))
        wrong = wrong or (port_text != "" and not numeric)
        port = int(port_text) if numeric else default_port
        if wrong or not host or any(c.isspace() or c in "/[]" for c in host) or not 0 < port <= _HIGHEST_PORT:
            raise DllamaError(
                f"{text!r} is no address of a node; write host:port, such as 10.0.0.2:{DEFAULT_PORT}, "
                f"pi4.local or [fd00::2]:{DEFAULT_PORT}"
            )
        return cls(host, port)


def is_loopback(host: str) -> bool:
    """Whether `host` is a number that every machine uses for itself."""
    with contextlib.suppress(ValueError):
        address = ipaddress.ip_address(host.partition("%")[0])
        mapped = getattr(address, "ipv4_mapped", None)
        return (mapped or address).is_loopback
    return False


def is_link_local(host: str) -> bool:
    """Whether `host` is a number of IPv6 that only the machines on one cable know."""
    with contextlib.suppress(ValueError):
        address = ipaddress.ip_address(host.partition("%")[0])
        return address.version == 6 and address.is_link_local
    return False


def peer_of(connection: socket.socket) -> Address:
    """The other end of a connection; IPv4 in IPv6 is written as IPv4. Raises OSError when it is gone."""
    endpoint = connection.getpeername()
    host, port = endpoint[:2]
    if len(endpoint) == 4 and endpoint[3] and "%" not in host:  # link-local: it says nothing without the interface
        host = f"{host}%{endpoint[3]}"
    return Address(host.removeprefix("::ffff:"), port)


def dial(address: Address, timeout: float) -> socket.socket:
    """A connection to `address`, trying every number its name stands for within `timeout` seconds.

    Raises DllamaError naming the address and what went wrong.
    """
    deadline = time.monotonic() + timeout
    try:
        candidates = socket.getaddrinfo(address.host, address.port, type=socket.SOCK_STREAM)
    except (socket.gaierror, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise DllamaError(
            f"the name {address.host} of a node cannot be found ({reason}); check it, or give the node's number"
        ) from None
    failure: OSError | None = None
    for number, (family, kind, protocol, _, endpoint) in enumerate(candidates):
        connection = socket.socket(family, kind, protocol)
        try:
            # One that answers nothing must leave the others time.
            left = (deadline - time.monotonic()) / (len(candidates) - number)
            connection.settimeout(max(0.1, left))
            connection.connect(endpoint)
        except OSError as error:
            connection.close()
            failure = error
            continue
        prepare(connection)
        return connection
    raise DllamaError(f"no connection to {address}: {_explain(failure, timeout)}")


def _explain(error: OSError | None, timeout: float) -> str:
    if isinstance(error, ConnectionRefusedError):
        return (
            "nothing listens there (connection refused); start `dllama-gpu worker` on that machine, or check the port"
        )
    if isinstance(error, TimeoutError) or (error is not None and error.errno == errno.ETIMEDOUT):
        return f"no answer within {timeout:g} seconds; is the machine on, and does its firewall let the port through?"
    reason = "it has no address" if error is None else (error.strerror or str(error))
    return f"{reason}; check the address and the network"


def prepare(connection: socket.socket) -> None:
    """Sends small messages at once, and lets the system notice a machine that vanished while nothing is said."""
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    # First probe after 10 s of silence, then every 3 s, lost after 3: half a minute in all. Not all systems offer all.
    for option, value in (("TCP_KEEPIDLE", 10), ("TCP_KEEPALIVE", 10), ("TCP_KEEPINTVL", 3), ("TCP_KEEPCNT", 3)):
        if hasattr(socket, option):
            with contextlib.suppress(OSError):
                connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, option), value)


def listen(host: str | None, port: int) -> list[socket.socket]:
    """Listening sockets on `host`, or on all IPv4 and IPv6 addresses of this machine; port 0 chooses a free one.

    Raises DllamaError when the port is taken or the host is none of this machine's.
    """
    if host is not None:
        try:
            families = {entry[0] for entry in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)}
        except (socket.gaierror, UnicodeError) as error:
            reason = error.strerror if isinstance(error, OSError) else error
            raise DllamaError(f"--host {host} cannot be found ({reason}); give an address of this machine") from None
    else:
        families = {socket.AF_INET, socket.AF_INET6} if socket.has_ipv6 else {socket.AF_INET}
    sockets: list[socket.socket] = []
    failure: OSError | None = None
    for family in sorted(families):  # IPv4 first: its failure says more
        try:
            bound = _bind(family, host, port)
        except OSError as error:
            failure = error
            if error.errno == errno.EADDRINUSE:
                break
            continue
        sockets.append(bound)
        port = bound.getsockname()[1]
    if not sockets or (failure is not None and failure.errno == errno.EADDRINUSE):
        for opened in sockets:
            opened.close()
        where = Address(host or "all addresses", port)
        reason = failure.strerror or str(failure) if failure else "no address"
        taken = failure is not None and failure.errno == errno.EADDRINUSE
        remedy = (
            "another program uses this port; end it, or choose another --port"
            if taken
            else "give another --host or --port"
        )
        raise DllamaError(f"cannot listen on {where} ({reason}); {remedy}")
    return sockets


def _bind(family: int, host: str | None, port: int) -> socket.socket:
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        if sys.platform != "win32":  # there it would let two programs share the port
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        anywhere = "::" if family == socket.AF_INET6 else "0.0.0.0"
        endpoint = socket.getaddrinfo(host or anywhere, port, family, socket.SOCK_STREAM)[0][4]
        listener.bind(endpoint)
        listener.listen(64)
        listener.setblocking(False)
    except BaseException:
        listener.close()
        raise
    return listener
