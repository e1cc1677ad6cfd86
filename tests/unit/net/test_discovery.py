import threading

import pytest
from zeroconf import IPVersion

from dllama_gpu.cli.workers import table, usable_workers, why_not
from dllama_gpu.errors import DllamaError
from dllama_gpu.net import announcement as announcement_module
from dllama_gpu.net import discovery
from dllama_gpu.net.addresses import Address
from dllama_gpu.net.announcement import Announcement, announced_hosts
from dllama_gpu.net.discovery import FoundWorker, find_workers, in_order, open_zeroconf

OWN = {"127.0.0.1", "::1", "10.0.0.1", "172.17.0.1", "fd00::1", "fe80::1"}


def worker(*hosts: str, answers: bool = True, has_key: bool = False, busy: bool = False) -> FoundWorker:
    addresses = tuple(Address(host, 9999) for host in hosts)
    return FoundWorker("pi", "cpu", "1.0", has_key, busy, addresses, addresses[0] if answers else None)


def test_addresses_are_tried_from_the_likeliest_on() -> None:
    hosts = ["fe80::2%2", "fd00::2", "10.0.0.2"]
    assert in_order(hosts, OWN) == ["10.0.0.2", "fd00::2", "fe80::2%2"]


def test_an_address_that_this_machine_has_too_is_not_another_machine() -> None:
    assert in_order(["172.17.0.1", "10.0.0.2", "127.0.0.1"], OWN) == ["10.0.0.2"]
    assert in_order(["10.0.0.1", "172.17.0.1"], OWN) == ["10.0.0.1", "172.17.0.1"], "a worker on this machine"
    assert in_order(["fe80::1%3", "127.0.0.1"], OWN)[0] == "fe80::1%3"


def test_a_worker_announces_where_it_listens() -> None:
    assert announced_hosts([Address("0.0.0.0", 1), Address("::", 1)], OWN) == OWN - {"127.0.0.1", "::1"}
    assert announced_hosts([Address("0.0.0.0", 1)], OWN) == {"10.0.0.1", "172.17.0.1"}
    assert announced_hosts([Address("10.0.0.1", 1)], OWN) == {"10.0.0.1"}
    assert announced_hosts([Address("127.0.0.1", 1)], OWN) == {"127.0.0.1"}
    assert announced_hosts([Address("0.0.0.0", 1)], {"127.0.0.1"}) == {"127.0.0.1"}
    assert announced_hosts([Address("0.0.0.0", 1)], set()) == set()


def test_why_a_worker_cannot_be_used_is_said() -> None:
    usable = worker("10.0.0.2")
    assert why_not(usable, has_key=False) is None
    assert "key" in (why_not(usable, has_key=True) or "")
    assert "wants a key" in (why_not(worker("10.0.0.2", has_key=True), has_key=False) or "")
    assert why_not(worker("10.0.0.2", has_key=True), has_key=True) is None
    assert "another root" in (why_not(worker("10.0.0.2", busy=True), has_key=False) or "")
    assert "firewall" in (why_not(worker("10.0.0.2", answers=False), has_key=False) or "")


def test_auto_takes_the_usable_ones_and_names_the_others(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    found = [worker("10.0.0.2"), worker("10.0.0.3", busy=True), worker("127.0.0.1"), worker("fd00::4")]
    monkeypatch.setattr(discovery, "find_workers", lambda: found)
    assert usable_workers(has_key=False) == ["10.0.0.2:9999", "[fd00::4]:9999"]
    said = capsys.readouterr().err
    assert "10.0.0.3:9999: another root uses it" in said
    assert "127.0.0.1:9999: it listens on this machine's loopback alone" in said
    found[:] = [worker("127.0.0.1")]
    assert usable_workers(has_key=False) == ["127.0.0.1:9999"]
    found[:] = [worker("10.0.0.2", busy=True)]
    with pytest.raises(DllamaError, match="no worker that this node can use"):
        usable_workers(has_key=False)
    found.clear()
    with pytest.raises(DllamaError, match="--workers auto: no worker answered"):
        usable_workers(has_key=False)


def test_the_table_says_what_is_to_be_known() -> None:
    lines = table([worker("10.0.0.2", has_key=True), worker("fd00::4", busy=True), worker("10.0.0.5", answers=False)])
    cells = [line.split() for line in lines.splitlines()]
    assert cells[0] == ["NAME", "ADDRESS", "STATE", "KEY", "RELEASE", "DEVICE"]
    assert cells[1] == ["pi", "10.0.0.2:9999", "free", "needed", "1.0", "cpu"]
    assert cells[2][1:4] == ["[fd00::4]:9999", "busy", "none"]
    assert cells[3][2] == "unreachable"


def refuse(*, ip_version: IPVersion) -> None:
    raise OSError(19, "No such device")


def test_where_multicast_is_impossible_a_root_is_told_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(discovery, "Zeroconf", refuse)
    with pytest.raises(DllamaError, match=r"^multicast DNS cannot be used here \(No such device\); name the workers"):
        find_workers(0.1)


def test_a_machine_without_a_network_is_told_so(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_interfaces(*, ip_version: IPVersion) -> None:
        raise RuntimeError("No interfaces to listen on")

    monkeypatch.setattr(discovery, "Zeroconf", no_interfaces)
    with pytest.raises(DllamaError, match="this machine is in no network"):
        open_zeroconf()


def test_a_system_without_ipv6_uses_ipv4(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[IPVersion] = []

    def only_ipv4(*, ip_version: IPVersion) -> str:
        asked.append(ip_version)
        if ip_version is not IPVersion.V4Only:
            raise OSError(97, "Address family not supported by protocol")
        return "open"

    monkeypatch.setattr(discovery, "Zeroconf", only_ipv4)
    assert str(open_zeroconf()) == "open"
    assert asked == [IPVersion.All, IPVersion.V4Only]


def test_where_multicast_is_impossible_a_worker_says_so_once_and_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(discovery, "Zeroconf", refuse)
    monkeypatch.setattr(announcement_module, "_LOOK_SECONDS", 0.01)
    said: list[str] = []
    tries = threading.Semaphore(0)
    monkeypatch.setattr(announcement_module, "own_addresses", lambda: tries.release() or {"127.0.0.1"})
    announcement = Announcement([Address("127.0.0.1", 9999)], {"host": "pi"}, said.append)
    for _ in range(3):
        assert tries.acquire(timeout=10)
    announcement.close()
    assert said == [
        "roots cannot find this worker by themselves (No such device); name it to them, --workers HOST:PORT"
    ]
