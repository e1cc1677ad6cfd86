"""A switch in user space between network namespaces, which delays packets and limits their rate, as `tc netem` does.

    python -m tests.support.slow_switch SECONDS BITS_PER_SECOND NAMESPACE=ADDRESS …

Gives every namespace a device `eth0` (TUN), says "ready" and passes IPv4 packets on until it is killed. Each machine
sends one packet after the other at the given rate; each then takes the given seconds.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import heapq
import itertools
import os
import select
import socket
import struct
import sys
import threading
import time
from pathlib import Path

_CLONE_NEWNET = 0x40000000
_TUNSETIFF = 0x400454CA
_IFF_TUN, _IFF_NO_PI = 0x0001, 0x1000
_PR_SET_TIMERSLACK = 29
_LARGEST_PACKET = 1 << 16


def open_tun(namespace: str) -> int:
    """The other end of a new `eth0` in the namespace."""
    found: list[int] = []

    def enter_and_open() -> None:
        with Path("/run/netns", namespace).open() as entrance:
            if ctypes.CDLL(None, use_errno=True).setns(entrance.fileno(), _CLONE_NEWNET) != 0:
                raise OSError(ctypes.get_errno(), f"no way into {namespace}")
        device = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
        fcntl.ioctl(device, _TUNSETIFF, struct.pack("16sH22s", b"eth0", _IFF_TUN | _IFF_NO_PI, b""))
        found.append(device)

    # A thread of its own enters the namespace, and takes it to its end.
    thread = threading.Thread(target=enter_and_open)
    thread.start()
    thread.join()
    return found[0]


def forward(devices: dict[int, bytes], seconds: float, bits_per_second: float) -> None:
    """Passes packets between the devices, by the address of each, without end."""
    by_address = {address: device for device, address in devices.items()}
    free_from = dict.fromkeys(devices, 0.0)
    under_way: list[tuple[float, int, int, bytes]] = []
    numbers = itertools.count()
    while True:
        patience = max(0.0, under_way[0][0] - time.perf_counter()) if under_way else None
        readable, _, _ = select.select(list(devices), [], [], patience)
        for device in readable:
            packet = os.read(device, _LARGEST_PACKET)
            target = by_address.get(packet[16:20])
            if target is None or packet[0] >> 4 != 4:
                continue
            free_from[device] = max(free_from[device], time.perf_counter()) + 8 * len(packet) / bits_per_second
            heapq.heappush(under_way, (free_from[device] + seconds, next(numbers), target, packet))
        while under_way and under_way[0][0] <= time.perf_counter():
            _, _, target, packet = heapq.heappop(under_way)
            with contextlib.suppress(OSError):  # as a switch drops what finds no way
                os.write(target, packet)


def main() -> None:
    """See the top of this file."""
    seconds, bits_per_second = float(sys.argv[1]), float(sys.argv[2])
    ends = [argument.split("=") for argument in sys.argv[3:]]
    devices = {open_tun(namespace): socket.inet_aton(address) for namespace, address in ends}
    ctypes.CDLL(None).prctl(_PR_SET_TIMERSLACK, 1000, 0, 0, 0)  # wake up in time: nanoseconds of slack
    print("ready", flush=True)
    forward(devices, seconds, bits_per_second)


if __name__ == "__main__":
    main()
