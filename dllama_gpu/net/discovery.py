"""Finding workers by themselves: they answer questions over multicast DNS (DNS-SD; RFC 6762 and RFC 6763)."""

from __future__ import annotations

import contextlib
import ipaddress
import threading
import time
from collections.abc import Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

import ifaddr
from zeroconf import IPVersion, ServiceBrowser, ServiceInfo, ServiceStateChange, Zeroconf

from dllama_gpu.errors import DllamaError
from dllama_gpu.net.addresses import Address, dial, is_loopback
from dllama_gpu.net.messages import printable

SERVICE_TYPE = "_dllama-gpu._tcp.local."
FIND_SECONDS = 2.5
"""Questions are asked at once and after one and three seconds; a worker takes up to 0.12 s to answer."""
NO_MULTICAST = "multicast DNS cannot be used here"
_ASK_SECONDS = 0.5
_DIAL_SECONDS = 1.5
_MOST_WORKERS = 256
_LONGEST_TEXT = 120


@dataclass(frozen=True)
class FoundWorker:
    """A worker as it announces itself. `addresses` are those that it has, the likeliest for this machine first.

    `address` is the one that answered this machine, None if none did or nobody has tried.
    """

    host_name: str
    device: str
    release: str
    has_key: bool
    busy: bool
    addresses: tuple[Address, ...]
    address: Address | None = None


def open_zeroconf() -> Zeroconf:
    """Multicast DNS on all interfaces. Raises DllamaError, saying why, where that is impossible."""
    reason = ""
    for version in (IPVersion.All, IPVersion.V4Only):  # a system without IPv6 refuses the first
        try:
            return Zeroconf(ip_version=version)
        except OSError as error:
            reason = reason or error.strerror or str(error)
        except RuntimeError:  # zeroconf found no interface
            reason = reason or "this machine is in no network"
    raise DllamaError(f"{NO_MULTICAST} ({reason}); name the workers, --workers HOST:PORT")


def find_workers(seconds: float = FIND_SECONDS) -> list[FoundWorker]:
    """The workers that answer within `seconds`, by name, each with the address that this machine reaches it by.

    Raises DllamaError where this machine cannot ask.
    """
    names: dict[str, None] = {}
    enough = threading.Event()

    def heard(zeroconf: Zeroconf, service_type: str, name: str, state_change: ServiceStateChange) -> None:
        if state_change is ServiceStateChange.Removed:
            names.pop(name, None)
        elif len(names) < _MOST_WORKERS:
            names[name] = None
        else:
            enough.set()

    zeroconf = open_zeroconf()
    try:
        browser = ServiceBrowser(zeroconf, SERVICE_TYPE, handlers=[heard])
        enough.wait(seconds)
        browser.cancel()
        own = own_addresses()
        found = [_read(zeroconf, name, own) for name in list(names)]
    finally:
        zeroconf.close()
    workers = sorted(filter(None, found), key=lambda worker: (worker.host_name, str(worker.addresses[0])))
    if not workers:
        return []
    with ThreadPoolExecutor(min(16, len(workers))) as pool:
        return list(pool.map(lambda worker: replace(worker, address=_answering(worker.addresses)), workers))


def own_addresses() -> set[str]:
    """All addresses of this machine's interfaces."""
    ips = [entry.ip for adapter in ifaddr.get_adapters() for entry in adapter.ips]
    return {ip if isinstance(ip, str) else ip[0] for ip in ips}


def in_order(hosts: Collection[str], own: Collection[str]) -> list[str]:
    """The hosts to try, the likeliest first: IPv4, then IPv6, then what only one cable knows.

    An address that this machine has too, as every machine with Docker has 172.17.0.1, says nothing about another one;
    where there are only such, the worker is on this machine.
    """
    others = [host for host in hosts if host.partition("%")[0] not in own and not is_loopback(host)]
    return sorted(others or hosts, key=_rank)


def _rank(host: str) -> tuple[bool, bool, bool, str]:
    address = ipaddress.ip_address(host.partition("%")[0])
    return address.is_loopback, address.is_link_local, address.version == 6, host


def _read(zeroconf: Zeroconf, name: str, own: Collection[str]) -> FoundWorker | None:
    """What a worker says of itself; None when it says it no longer, or what it says makes no sense."""
    info = ServiceInfo(SERVICE_TYPE, name)
    if not info.load_from_cache(zeroconf) and not info.request(zeroconf, int(1000 * _ASK_SECONDS)):
        return None
    hosts = info.parsed_scoped_addresses()
    if not hosts or not info.port or not 0 < info.port < 1 << 16:
        return None
    texts = {key: _text(value) for key, value in info.properties.items()}
    return FoundWorker(
        host_name=texts.get(b"host") or printable(name.removesuffix("." + SERVICE_TYPE), _LONGEST_TEXT),
        device=texts.get(b"device", ""),
        release=texts.get(b"release", ""),
        has_key=texts.get(b"key") == "1",
        busy=texts.get(b"busy") == "1",
        addresses=tuple(Address(host, info.port) for host in in_order(hosts, own)),
    )


def _text(value: bytes | None) -> str:
    return printable((value or b"").decode("utf-8", "replace"), _LONGEST_TEXT)


def _answering(addresses: Sequence[Address]) -> Address | None:
    """The first that can be connected to."""
    deadline = time.monotonic() + _DIAL_SECONDS
    for number, address in enumerate(addresses):
        left = (deadline - time.monotonic()) / (len(addresses) - number)
        with contextlib.suppress(DllamaError):
            dial(address, max(left, 0.1)).close()
            return address
    return None
