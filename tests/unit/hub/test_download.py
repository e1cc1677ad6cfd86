"""Downloads from a hub with bad habits."""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from dllama_gpu.errors import DllamaError
from dllama_gpu.hub import partial
from dllama_gpu.hub.client import HubClient
from dllama_gpu.hub.download import fetch, is_verified
from tests.support.hub_server import Hub, Served, serve_hub

DATA = random.Random(3).randbytes(300_001)
NAME = "some/model/file.bin"


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(partial, "_BLOCK_BYTES", 65_536)
    for variable in ("HF_TOKEN", "HF_ENDPOINT"):
        monkeypatch.delenv(variable, raising=False)


@pytest.fixture
def hub() -> Iterator[Hub]:
    with serve_hub({NAME: Served(DATA)}) as running:
        yield running


@pytest.fixture
def waits() -> list[float]:
    """How long was waited, all in all."""
    return []


@pytest.fixture
def client(hub: Hub, waits: list[float]) -> HubClient:
    return HubClient(hub.endpoint, sleep=waits.append)


def url(hub: Hub, name: str = NAME) -> str:
    organisation, repository, file = name.split("/", 2)
    return f"{hub.endpoint}/{organisation}/{repository}/resolve/main/{file}"


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir() if not path.name.startswith(".")}


def test_a_file_comes_in_several_ranges_and_is_not_asked_for_again(hub: Hub, client: HubClient, tmp_path: Path) -> None:
    target, seen = tmp_path / "x", []
    fetch(client, [url(hub)], target, lambda done, total: seen.append((done, total)))
    assert target.read_bytes() == DATA
    assert len({found for _, _, found, _ in hub.requests if found}) == 5
    assert seen[-1] == (len(DATA), len(DATA))
    assert names(tmp_path) == {"x"}
    n_requests = len(hub.requests)
    fetch(client, [url(hub)], target)
    assert len(hub.requests) == n_requests


@pytest.mark.parametrize("identity", [None, "git", "abc", ""])
def test_identities_of_every_kind_are_understood(hub: Hub, client: HubClient, tmp_path: Path, identity: str) -> None:
    hub.files[NAME].identity = identity
    fetch(client, [url(hub)], tmp_path / "x")
    assert (tmp_path / "x").read_bytes() == DATA


def test_empty_files_and_files_in_parts(hub: Hub, client: HubClient, tmp_path: Path) -> None:
    hub.files |= {"a/b/empty": Served(b"", "git"), "a/b/aa": Served(DATA[:100_000]), "a/b/ab": Served(DATA[100_000:])}
    fetch(client, [url(hub, "a/b/empty")], tmp_path / "empty")
    assert (tmp_path / "empty").read_bytes() == b""
    fetch(client, [url(hub, "a/b/aa"), url(hub, "a/b/ab")], tmp_path / "whole")
    assert (tmp_path / "whole").read_bytes() == DATA


def test_cut_connections_are_taken_up_where_they_ended(hub: Hub, client: HubClient, tmp_path: Path) -> None:
    hub.files[NAME].cuts = [0, 10, 30_000, 65_535, 1, 2, 3, 40_000, 7, 50_000]
    fetch(client, [url(hub)], tmp_path / "x")
    assert (tmp_path / "x").read_bytes() == DATA


def test_a_server_that_is_busy_is_waited_for_as_it_asks(
    hub: Hub, client: HubClient, tmp_path: Path, waits: list[float]
) -> None:
    hub.files[NAME].refusals = [(503, {}), (429, {"Retry-After": "7"}), (500, {"Retry-After": "soon"}), (503, {})]
    fetch(client, [url(hub)], tmp_path / "x")
    assert (tmp_path / "x").read_bytes() == DATA
    assert 7 <= sum(waits) < 20


def test_a_long_wait_is_told(hub: Hub, tmp_path: Path) -> None:
    told: list[str] = []
    hub.files[NAME].refusals = [(503, {}), (429, {"Retry-After": "7"})]
    fetch(HubClient(hub.endpoint, sleep=lambda _: None, waiting=told.append), [url(hub)], tmp_path / "x")
    assert len(told) == 1
    assert "is busy (HTTP 429); the next try is in 7 s" in told[0]


def test_a_server_that_stays_busy_is_given_up_and_what_came_is_kept(
    hub: Hub, client: HubClient, tmp_path: Path
) -> None:
    hub.files[NAME].cuts = [65_000, 65_000, 65_000, *[0] * 200]
    with pytest.raises(DllamaError, match=r"tried 8 times\. Run this again later, it goes on here"):
        fetch(client, [url(hub)], tmp_path / "x")
    assert names(tmp_path) == {"x.partial", "x.partial.json"}
    n_kept = sum(json.loads((tmp_path / "x.partial.json").read_text())["done"])
    assert n_kept >= 3 * 32_768
    hub.files[NAME].cuts = []
    hub.requests.clear()
    fetch(client, [url(hub)], tmp_path / "x")
    assert (tmp_path / "x").read_bytes() == DATA
    assert hub.n_bytes_asked() == len(DATA) - n_kept


def test_what_ctrl_c_interrupts_goes_on_later(hub: Hub, client: HubClient, tmp_path: Path) -> None:
    def interrupt(done: int, _total: int) -> None:
        if done > 100_000:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fetch(client, [url(hub)], tmp_path / "x", interrupt)
    n_kept = sum(json.loads((tmp_path / "x.partial.json").read_text())["done"])
    assert n_kept > 100_000
    hub.requests.clear()
    fetch(client, [url(hub)], tmp_path / "x")
    assert (tmp_path / "x").read_bytes() == DATA
    assert hub.n_bytes_asked() == len(DATA) - n_kept


def test_what_was_killed_goes_on_later(hub: Hub, tmp_path: Path) -> None:
    data = random.Random(4).randbytes(20 << 20)
    hub.listings["some/model"] = {"siblings": [{"rfilename": "a.gguf"}]}
    hub.files["some/model/a.gguf"] = Served(data, seconds_per_chunk=0.1)
    command = [sys.executable, "-m", "dllama_gpu.cli.main", "download", "hf:some/model", "--into", str(tmp_path)]
    environment = os.environ | {"HF_ENDPOINT": hub.endpoint}
    state = tmp_path / "some--model" / "a.gguf.partial.json"
    with subprocess.Popen(command, env=environment) as process:
        while not state.exists() and process.poll() is None:
            time.sleep(0.05)
        process.kill()
    hub.files["some/model/a.gguf"].seconds_per_chunk = 0.0
    hub.requests.clear()
    finished = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert (finished.returncode, finished.stdout.strip()) == (0, str(tmp_path / "some--model" / "a.gguf"))
    assert (tmp_path / "some--model" / "a.gguf").read_bytes() == data
    assert 0 < hub.n_bytes_asked() < len(data)


@pytest.mark.parametrize("damage", ["state", "data", "counts", "identity"])
def test_what_is_left_of_an_earlier_try_is_believed_only_where_it_fits(
    hub: Hub, client: HubClient, tmp_path: Path, damage: str
) -> None:
    hub.files[NAME].cuts = [65_000, *[0] * 200]
    with pytest.raises(DllamaError):
        fetch(client, [url(hub)], tmp_path / "x")
    state_path = tmp_path / "x.partial.json"
    state = json.loads(state_path.read_text())
    if damage == "state":
        state_path.write_text("[" * 100_000)
    elif damage == "data":
        (tmp_path / "x.partial").write_bytes(b"")
    elif damage == "counts":
        state_path.write_text(json.dumps(state | {"done": [10**9] * len(state["done"])}))
    else:
        hub.files[NAME].data = DATA[::-1]
    hub.files[NAME].cuts = []
    hub.requests.clear()
    fetch(client, [url(hub)], tmp_path / "x")
    assert (tmp_path / "x").read_bytes() == hub.files[NAME].data
    assert hub.n_bytes_asked() == len(DATA)


def test_a_server_without_ranges_is_read_from_the_beginning(hub: Hub, client: HubClient, tmp_path: Path) -> None:
    hub.files[NAME].ranges = False
    hub.files[NAME].cuts = [0, 0, 0, 0, 200_000, 5]
    fetch(client, [url(hub)], tmp_path / "x")
    assert (tmp_path / "x").read_bytes() == DATA


def test_a_file_that_changes_meanwhile_is_fetched_anew(hub: Hub, client: HubClient, tmp_path: Path) -> None:
    hub.files[NAME].changes_to = DATA[::-1]
    fetch(client, [url(hub)], tmp_path / "x")
    assert (tmp_path / "x").read_bytes() == DATA[::-1]
    hub.files[NAME].changes_to = DATA[:1000]  # and with another length
    (tmp_path / "x").unlink()
    fetch(client, [url(hub)], tmp_path / "x")
    assert (tmp_path / "x").read_bytes() == DATA[:1000]


@pytest.mark.parametrize(
    ("served", "message"),
    [
        (Served(DATA, "0" * 64), "did not arrive as promised: its hash is"),
        (Served(DATA, "0" * 40), "did not arrive as promised: its hash is"),
        (Served(DATA, claimed_size=len(DATA) - 1), "were asked for, but the answer is bytes"),
        (Served(DATA, claimed_size=len(DATA) + 1), "were asked for, but the answer is bytes"),
        (Served(DATA, claimed_size=len(DATA) - 1, ranges=False), "sends more than the 300000 bytes that it promised"),
        (Served(DATA, claimed_size=len(DATA) + 1, ranges=False), "the server stopped early; tried 8 times"),
        (Served(DATA, wrong_ranges=True), "were asked for, but the answer is bytes"),
    ],
)
def test_what_is_not_what_was_promised_never_gets_the_name(
    hub: Hub, client: HubClient, tmp_path: Path, served: Served, message: str
) -> None:
    hub.files[NAME] = served
    with pytest.raises(DllamaError, match=message):
        fetch(client, [url(hub)], tmp_path / "x")
    assert "x" not in names(tmp_path)


def test_a_file_that_is_there_is_verified_and_kept_or_replaced(hub: Hub, client: HubClient, tmp_path: Path) -> None:
    target = tmp_path / "x"
    target.write_bytes(DATA)
    fetch(client, [url(hub)], target)
    assert hub.n_bytes_asked() == 0
    assert is_verified(target)
    target.write_bytes(DATA[:-1] + b"?")
    assert not is_verified(target)
    fetch(client, [url(hub)], target)
    assert target.read_bytes() == DATA


@pytest.mark.parametrize(
    ("status", "message"),
    [
        (401, "set HF_TOKEN to a token of yours"),
        (403, "private, gated or not there"),
        (404, "check the name"),
        (418, "HTTP 418"),
    ],
)
def test_refusals_are_explained(hub: Hub, client: HubClient, tmp_path: Path, status: int, message: str) -> None:
    hub.files[NAME].refusals = [(status, {})]
    with pytest.raises(DllamaError, match=message):
        fetch(client, [url(hub)], tmp_path / "x")
    assert names(tmp_path) == set()


def test_nobody_there_is_a_sentence(tmp_path: Path) -> None:
    with serve_hub({}) as hub:
        pass
    with pytest.raises(DllamaError, match=r"no answer from 127\.0\.0\.1:\d+ .*; tried 8 times"):
        fetch(HubClient(hub.endpoint, sleep=lambda _: None), [url(hub)], tmp_path / "x")


def test_the_token_goes_to_the_hub_alone(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "secret")
    hub.files[NAME].needs_token = "secret"
    with serve_hub(hub.files) as cdn:
        hub.other_host = cdn.endpoint.replace("127.0.0.1", "localhost")
        fetch(HubClient(hub.endpoint), [url(hub)], tmp_path / "x")
        assert (tmp_path / "x").read_bytes() == DATA
        assert {token for _, _, _, token in hub.requests} == {"Bearer secret"}
        assert {token for _, _, _, token in cdn.requests} == {None}


def test_redirects_without_end_are_refused(hub: Hub, client: HubClient, tmp_path: Path) -> None:
    hub.files[NAME].refusals = [(307, {"Location": url(hub)})] * 20
    with pytest.raises(DllamaError, match="redirected without end"):
        fetch(client, [url(hub)], tmp_path / "x")


def test_room_on_the_disk_is_asked_for_first(
    hub: Hub, client: HubClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=1 << 20))
    with pytest.raises(DllamaError, match=r"x needs 0\.00 GB more on the disk of .*free some space"):
        fetch(client, [url(hub)], tmp_path / "x")
    assert hub.n_bytes_asked() == 0


def test_endpoints_that_are_none_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    for endpoint in ("ftp://x", "hub.example.org", "http://"):
        with pytest.raises(DllamaError, match="is no address like https://"):
            HubClient(endpoint)
    monkeypatch.setenv("HF_ENDPOINT", "https://mirror.example.org/")
    assert HubClient().file_url("a/b", "c d.m") == "https://mirror.example.org/a/b/resolve/main/c%20d.m"
