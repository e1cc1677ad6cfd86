"""A worker's answer to those who look for workers, kept true while it runs."""

from __future__ import annotations

import contextlib
import ipaddress
import secrets
import socket
import threading
from collections.abc import Callable, Collection, Sequence

from zeroconf import Error, ServiceInfo, Zeroconf

from dllama_gpu.errors import DllamaError
from dllama_gpu.net.addresses import Address, is_loopback
from dllama_gpu.net.discovery import NO_MULTICAST, SERVICE_TYPE, open_zeroconf, own_addresses

_LOOK_SECONDS = 20.0
_LONGEST_LABEL = 40
_LONGEST_TEXT = 120


class Announcement:
    """Announces a worker that listens at `listening` until `close`, in a thread of its own.

    `texts` says what it is: `host`, `device`, `release`, `key`. Interfaces that come, go or get other addresses are
    followed. `log` is told, once, when the worker cannot be found this way, and why.
    """

    def __init__(self, listening: Sequence[Address], texts: dict[str, str], log: Callable[[str], None]) -> None:
        self._listening = tuple(listening)
        self._texts = {key: text[:_LONGEST_TEXT] for key, text in texts.items()}
        self._log = log
        self._warned = False
        self._busy = False
        self._closing = False
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._run, name="announcement", daemon=True)
        self._thread.start()

    def set_busy(self, busy: bool) -> None:
        """Whether a root uses the worker now."""
        with self._changed:
            self._busy = busy
            self._changed.notify()

    def close(self) -> None:
        """Takes the announcement back."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        self._thread.join(timeout=3.0)

    def _run(self) -> None:
        zeroconf: Zeroconf | None = None
        info: ServiceInfo | None = None
        told: tuple[tuple[str, ...], bool] | None = None
        while not self._closing:
            busy, hosts = self._busy, tuple(sorted(announced_hosts(self._listening, own_addresses())))
            try:
                if zeroconf is None or info is None or told is None or told[0] != hosts:
                    # Its sockets stay with the interfaces that were there when it was made.
                    self._end(zeroconf)
                    told, zeroconf = None, open_zeroconf()
                    info = self._info(hosts, busy)
                    zeroconf.register_service(info, allow_name_change=True)
                elif told[1] != busy:
                    info = self._info(hosts, busy, info)
                    zeroconf.update_service(info)
                told = hosts, busy
            except (DllamaError, Error, OSError, RuntimeError) as error:
                told = None
                self._warn(error)
            with self._changed:
                if not self._closing and self._busy == busy:
                    self._changed.wait(_LOOK_SECONDS)
        self._end(zeroconf)

    def _info(self, hosts: Sequence[str], busy: bool, earlier: ServiceInfo | None = None) -> ServiceInfo:
        port = self._listening[0].port
        label = "".join(c if c.isalnum() or c == "-" else "-" for c in self._texts.get("host", ""))[:_LONGEST_LABEL]
        return ServiceInfo(
            SERVICE_TYPE,
            earlier.name if earlier else f"{label or 'worker'}-{port}.{SERVICE_TYPE}",
            port=port,
            properties={**self._texts, "busy": "1" if busy else "0"},
            addresses=[_packed(host) for host in hosts],
            # Machines with the same name must not be taken for one with many addresses.
            server=earlier.server if earlier else f"dllama-gpu-{secrets.token_hex(6)}.local.",
        )

    def _warn(self, error: Exception) -> None:
        if not self._warned:
            reason = str(error).removeprefix(NO_MULTICAST).partition(";")[0].strip(" ()") or type(error).__name__
            self._log(f"roots cannot find this worker by themselves ({reason}); name it to them, --workers HOST:PORT")
        self._warned = True

    @staticmethod
    def _end(zeroconf: Zeroconf | None) -> None:
        if zeroconf is not None:
            with contextlib.suppress(Error, OSError, RuntimeError):
                zeroconf.close()  # says goodbye for what is registered


def announced_hosts(listening: Sequence[Address], own: Collection[str]) -> set[str]:
    """The numbers by which a worker that listens at `listening` can be reached, of those that this machine has.

    Those of loopback only where there is no other: nobody else can use them.
    """
    hosts: set[str] = set()
    for address in listening:
        if address.host in ("0.0.0.0", "::"):
            version = 6 if address.host == "::" else 4
            hosts |= {host for host in own if ipaddress.ip_address(host).version == version}
        else:
            hosts.add(address.host)
    return {host for host in hosts if not is_loopback(host)} or hosts


def _packed(host: str) -> bytes:
    number = host.partition("%")[0]
    return socket.inet_pton(socket.AF_INET6 if ":" in number else socket.AF_INET, number)
