from __future__ import annotations

import contextlib
import socket

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dllama_gpu.errors import DllamaError
from dllama_gpu.net.addresses import Address, dial, is_loopback, listen


@pytest.mark.parametrize(
    ("text", "host", "port"),
    [
        ("10.0.0.2", "10.0.0.2", 9999),
        ("10.0.0.2:80", "10.0.0.2", 80),
        ("pi4.local:1234", "pi4.local", 1234),
        ("fd00::2", "fd00::2", 9999),
        ("[fd00::2]", "fd00::2", 9999),
        (" [fe80::1%eth0]:7 ", "fe80::1%eth0", 7),
    ],
)
def test_addresses_are_read_as_people_write_them(text: str, host: str, port: int) -> None:
    address = Address.parse(text)
    assert (address.host, address.port) == (host, port)
    assert Address.parse(str(address)) == address


@pytest.mark.parametrize(
    "text", ["", ":80", "a:b", "a:0", "a:65536", "[::1", "[::1]x", "http://a", "a b", "a:-1", "a:²", "a:" + "9" * 5000]
)
def test_what_is_no_address_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(DllamaError, match="write host:port"):
        Address.parse(text)


@given(st.text(max_size=30))
def test_any_text_is_an_address_or_a_sentence(text: str) -> None:
    with contextlib.suppress(DllamaError):
        assert 0 < Address.parse(text).port < 65536


def test_loopback_is_known_in_all_its_forms() -> None:
    assert all(map(is_loopback, ("127.0.0.1", "127.1.2.3", "::1", "::ffff:127.0.0.1")))
    assert not any(map(is_loopback, ("10.0.0.1", "fd00::1", "localhost", "fe80::1%eth0")))


def test_a_closed_port_is_told_with_the_way_out() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
        with pytest.raises(
            DllamaError, match=rf"no connection to 127.0.0.1:{port}: nothing listens .* start `dllama-gpu"
        ):
            dial(Address("127.0.0.1", port), 2.0)


def test_an_unknown_name_is_told() -> None:
    with pytest.raises(DllamaError, match=r"the name no-such-host\.invalid of a node cannot be found"):
        dial(Address("no-such-host.invalid", 9999), 2.0)


def test_a_port_in_use_is_told() -> None:
    listeners = listen("127.0.0.1", 0)
    port = listeners[0].getsockname()[1]
    with pytest.raises(DllamaError, match="choose another --port"):
        listen("127.0.0.1", port)
    for listener in listeners:
        listener.close()


@pytest.mark.parametrize("host", ["127.0.0.1", "::1", "localhost"])
def test_ipv4_ipv6_and_names_are_listened_to_and_dialled(host: str) -> None:
    try:
        listeners = listen(host, 0)
    except DllamaError:
        assert host == "::1", "a machine without IPv6"
        pytest.skip("this machine has no IPv6")
    connection = dial(Address(host, listeners[0].getsockname()[1]), 2.0)
    connection.close()
    for listener in listeners:
        listener.close()


def test_all_addresses_are_listened_to_on_one_port() -> None:
    listeners = listen(None, 0)
    assert len({listener.getsockname()[1] for listener in listeners}) == 1
    dial(Address("127.0.0.1", listeners[0].getsockname()[1]), 2.0).close()
    for listener in listeners:
        listener.close()
