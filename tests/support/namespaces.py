"""Several machines on one Linux system: network namespaces, each with a cable to a common switch.

Needs root and `ip` (Debian: iproute2). The plain switch is a bridge between veth pairs. A slow one is the same with
`tc netem` on every cable, or, where the kernel has no netem, `tests.support.slow_switch`, which passes packets on by
itself.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

_PREFIX = "dllama-test"
_REPOSITORY = Path(__file__).resolve().parents[2]
_TUN = Path("/dev/net/tun")


@dataclass(frozen=True)
class Slow:
    """What a cable does: seconds that a packet is under way between two machines, and bits per second of each."""

    seconds: float = 150e-6
    bits_per_second: float = 1e9


class UnavailableError(Exception):
    """This system cannot have such machines; says why."""


def check_available(*, slow: bool = False) -> None:
    """Raises UnavailableError where `Network` cannot work."""
    if not sys.platform.startswith("linux"):
        raise UnavailableError("network namespaces are Linux's")
    if os.geteuid() != 0:
        raise UnavailableError("only root may make network namespaces")
    if not shutil.which("ip"):
        raise UnavailableError("ip is not installed (Debian: iproute2)")
    try:
        with Network(2):
            pass
    except subprocess.CalledProcessError as error:
        raise UnavailableError(f"no network namespaces here: {error.stderr.strip()}") from None
    if slow and not has_netem() and not _TUN.exists():
        raise UnavailableError(f"the kernel has neither netem nor {_TUN}")


def has_netem() -> bool:
    """Whether `tc netem` works: not every kernel is built with it."""
    if not shutil.which("tc"):
        return False
    name = f"{_PREFIX}-{os.getpid()}-probe"
    _ip("netns", "add", name)
    try:
        probe = ["tc", "-n", name, "qdisc", "add", "dev", "lo", "root", "netem", "delay", "1ms"]
        return subprocess.run(probe, capture_output=True).returncode == 0
    finally:
        _ip("netns", "del", name)


class Network:
    """`n_machines` machines, 0 to n-1, whose only way to each other is the switch. Use as a context manager."""

    def __init__(self, n_machines: int, slow: Slow | None = None) -> None:
        self._names = [f"{_PREFIX}-{os.getpid()}-{number}" for number in range(n_machines)]
        self._switch = f"{_PREFIX}-{os.getpid()}-switch"
        self._slow = slow
        self._forwarder: subprocess.Popen[str] | None = None

    def address(self, machine: int) -> str:
        """The machine's IPv4 address."""
        return f"10.77.0.{machine + 1}"

    @property
    def made_of(self) -> str:
        """What delays packets, for reports."""
        return "tc netem" if has_netem() else "a switch of our own in user space, for this kernel has no netem"

    def command(self, machine: int, *command: str) -> list[str]:
        """`command` as it runs on that machine."""
        return ["ip", "netns", "exec", self._names[machine], *command]

    def cut(self, machine: int) -> None:
        """Pulls the machine's cable out of the switch. Not for a slow network."""
        _ip("-n", self._switch, "link", "set", f"port{machine}", "down")

    def mend(self, machine: int) -> None:
        """Puts it back in."""
        _ip("-n", self._switch, "link", "set", f"port{machine}", "up")

    def keep_apart(self, *machines: int) -> None:
        """Lets these machines no longer reach each other, as a Wi-Fi does that keeps its guests apart."""
        for machine in machines:
            _ip("-n", self._switch, "link", "set", f"port{machine}", "type", "bridge_slave", "isolated", "on")

    def __enter__(self) -> Network:
        _remove_leftovers()
        try:
            for name in (*self._names, self._switch):
                _ip("netns", "add", name)
                _ip("-n", name, "link", "set", "lo", "up")
            if self._slow is None or has_netem():
                self._lay_cables()
            else:
                self._start_forwarder(self._slow)
        except BaseException:
            self._remove()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._remove()

    def _lay_cables(self) -> None:
        _ip("-n", self._switch, "link", "add", "bridge", "type", "bridge")
        _ip("-n", self._switch, "link", "set", "bridge", "up")
        for machine, name in enumerate(self._names):
            port = f"port{machine}"
            _ip("link", "add", "eth0", "netns", name, "type", "veth", "peer", "name", port, "netns", self._switch)
            _ip("-n", self._switch, "link", "set", port, "master", "bridge", "up")
            _ip("-n", name, "address", "add", f"{self.address(machine)}/24", "dev", "eth0")
            _ip("-n", name, "link", "set", "eth0", "up")
            if self._slow is not None:
                delay = ["delay", f"{1e6 * self._slow.seconds:.0f}us", "rate", f"{self._slow.bits_per_second:.0f}bit"]
                _run(["tc", "-n", name, "qdisc", "add", "dev", "eth0", "root", "netem", *delay])

    def _start_forwarder(self, slow: Slow) -> None:
        command = [sys.executable, "-m", "tests.support.slow_switch", str(slow.seconds), str(slow.bits_per_second)]
        command += [f"{name}={self.address(machine)}" for machine, name in enumerate(self._names)]
        self._forwarder = subprocess.Popen(
            command, cwd=_REPOSITORY, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        assert self._forwarder.stdout is not None
        if self._forwarder.stdout.readline() != "ready\n":
            raise subprocess.CalledProcessError(1, command, stderr="the user-space switch did not start")
        for machine, name in enumerate(self._names):
            _ip("-n", name, "address", "add", f"{self.address(machine)}/24", "dev", "eth0")
            _ip("-n", name, "link", "set", "eth0", "mtu", "9000", "up")

    def _remove(self) -> None:
        if self._forwarder is not None:
            self._forwarder.kill()
            self._forwarder.communicate()
        for name in (*self._names, self._switch):
            with contextlib.suppress(subprocess.CalledProcessError):
                _ip("netns", "del", name)


def _remove_leftovers() -> None:
    """Namespaces of test runs that were killed."""
    for name in re.findall(rf"^({_PREFIX}-\d+-\w+)", _ip("netns", "list"), re.MULTILINE):
        if not Path(f"/proc/{name.split('-')[2]}").exists():
            with contextlib.suppress(subprocess.CalledProcessError):  # another run was faster
                _ip("netns", "del", name)


def _ip(*arguments: str) -> str:
    return _run(["ip", *arguments])


def _run(command: Sequence[str]) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout
