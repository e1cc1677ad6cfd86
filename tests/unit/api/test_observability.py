from __future__ import annotations

import io
import json
import logging
import re
from collections.abc import Iterator
from dataclasses import dataclass

import pytest
from prometheus_client.parser import text_string_to_metric_families

from dllama_gpu.api.logs import set_up_logging
from dllama_gpu.net.messages import NodeStatistics, PhaseStatistics
from tests.unit.api.conftest import Running, eventually


@dataclass(frozen=True)
class FakeNode:
    name: str
    host: str | None = None
    device: str = "cpu"
    share: float = 0.5
    weight_bytes: int = 100
    kv_cache_bytes: int = 50
    memory_bytes: int | None = None
    is_lost: bool = False


@pytest.fixture
def log(monkeypatch: pytest.MonkeyPatch) -> Iterator[io.StringIO]:
    """What is logged as JSON, while the test runs."""
    stream = io.StringIO()
    monkeypatch.setattr("sys.stderr", stream)
    before = {
        name: (logging.getLogger(name).handlers, logging.getLogger(name).level) for name in ("dllama_gpu", "uvicorn")
    }
    set_up_logging("debug", "json")
    yield stream
    for name, (handlers, level) in before.items():
        logging.getLogger(name).handlers = handlers
        logging.getLogger(name).setLevel(level)
        logging.getLogger(name).propagate = True


def lines_of(log: io.StringIO, path: str) -> list[dict]:
    lines = [json.loads(line) for line in log.getvalue().splitlines()]
    return [line for line in lines if line.get("path") == path]


def test_an_id_of_the_clients_own_is_kept_and_logged(api: Running, log: io.StringIO):
    response = api.client.post("/v1/completions", json={"prompt": "Once"}, headers={"X-Request-Id": "mine-1"})
    assert response.headers["x-request-id"] == "mine-1"
    assert api.engine.last.request_id == "mine-1"
    assert eventually(lambda: bool(lines_of(log, "/v1/completions")))
    [line] = lines_of(log, "/v1/completions")
    assert (line["request_id"], line["status"], line["method"], line["level"]) == ("mine-1", 200, "POST", "info")
    assert line["prompt_tokens"] == len(api.engine.last.prompt)
    assert line["cached_tokens"] == 3
    assert line["seconds"] >= 0


@pytest.mark.parametrize("given", [None, "has blanks", "x" * 65, "ü"])
def test_other_ids_are_replaced(api: Running, given: str | None):
    headers = {} if given is None else {"X-Request-Id": given.encode()}
    ids = [api.client.get("/health", headers=headers).headers["x-request-id"] for _ in range(2)]
    assert all(re.fullmatch(r"req-[0-9a-f]{16}", one) for one in ids)
    assert ids[0] != ids[1]


def test_why_a_request_was_refused_is_logged(api: Running, log: io.StringIO):
    api.text(5)
    assert eventually(lambda: bool(lines_of(log, "/v1/completions")))
    [line] = lines_of(log, "/v1/completions")
    assert line["status"] == 400
    assert "prompt" in line["error"]


def test_lines_for_people_are_single_lines_whatever_a_client_sent(log: io.StringIO, capsys: pytest.CaptureFixture[str]):
    set_up_logging("info", "text")
    fields = {"path": "/a b\nc", "status": 200, "id": "x=y"}
    logging.getLogger("dllama_gpu.api").info("request", extra={"fields": fields})
    [line] = capsys.readouterr().err.splitlines()
    assert line.endswith('info request path="/a b\\nc" status=200 id="x=y"')


def test_a_mistake_of_ours_is_500_with_a_traceback_in_the_log(
    api: Running, log: io.StringIO, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(api.engine, "statistics", lambda: 1 / 0)
    response = api.client.get("/api/cluster")
    assert response.status_code == 500
    assert response.json()["error"]["code"] == "internal_error"
    assert response.headers["x-request-id"] in log.getvalue()
    assert "ZeroDivisionError" in log.getvalue()
    assert api.chat().status_code == 200


def samples(api: Running) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    text = api.client.get("/metrics").text
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def test_metrics_say_what_the_engine_counts(api: Running):
    phase = PhaseStatistics(
        n_steps=2,
        n_rows=4,
        step_seconds=10.0,
        exchange_seconds=4.0,
        waiting_seconds=1.0,
        bytes_sent=7,
        bytes_received=8,
    )
    api.engine.nodes = (NodeStatistics(PhaseStatistics(), phase), NodeStatistics(PhaseStatistics(), phase))
    told = samples(api)
    assert told["dllama_gpu_ready", ()] == 1
    assert told["dllama_gpu_slots", ()] == 2
    assert told["dllama_gpu_requests_queued", ()] == 2
    assert told["dllama_gpu_generated_tokens_total", ()] == 60
    assert told["dllama_gpu_requests_finished_total", (("reason", "end_token"),)] == 4
    assert told["dllama_gpu_time_to_first_token_seconds_count", ()] == 3
    assert told["dllama_gpu_time_to_first_token_seconds_bucket", (("le", "0.025"),)] == 3
    assert told["dllama_gpu_time_to_first_token_seconds_bucket", (("le", "0.01"),)] == 0
    node = (("node", ""), ("phase", "decode"), ("rank", "1"))
    assert told["dllama_gpu_node_compute_seconds_total", node] == 6
    assert told["dllama_gpu_node_network_seconds_total", node] == 3
    assert told["dllama_gpu_node_sent_bytes_total", node] == 7


def test_requests_are_counted_by_route_so_that_strangers_make_no_new_series(api: Running):
    for path in ("/v1/models/tiny", "/nothing/1", "/nothing/2"):
        api.client.get(path)
    api.client.request("BREW", "/coffee")
    told = {key: value for key, value in samples(api).items() if key[0] == "dllama_gpu_http_requests_total"}
    paths = {dict(labels)["path"] for _, labels in told}
    assert {"/v1/models/{name:path}", "other"} <= paths
    assert not any("nothing" in path or "coffee" in path for path in paths)
    assert {dict(labels)["method"] for _, labels in told} <= {"GET", "POST", "OPTIONS", "other"}


@pytest.mark.parametrize(("state", "status"), [("ready", 200), ("recovering", 200), ("down", 503)])
def test_health_tells_whether_requests_are_taken(api: Running, state: str, status: int):
    api.engine.state = state
    response = api.client.get("/health")
    assert response.status_code == status
    assert response.json()["status"] == ("ok" if state == "ready" else state)


def test_the_cluster_is_described_for_the_page(api: Running):
    phase = PhaseStatistics(
        n_steps=2,
        n_rows=4,
        step_seconds=10.0,
        exchange_seconds=4.0,
        waiting_seconds=1.0,
        bytes_sent=8,
        bytes_received=8,
    )
    api.engine.nodes = (NodeStatistics(PhaseStatistics(), phase), NodeStatistics(PhaseStatistics(), PhaseStatistics()))
    nodes = (FakeNode("root"), FakeNode("10.0.0.2:9999"), FakeNode("10.0.0.3:9999", is_lost=True))
    original = api.service.nodes
    object.__setattr__(api.service, "nodes", lambda: nodes)
    try:
        told = api.client.get("/api/cluster").json()
    finally:
        object.__setattr__(api.service, "nodes", original)
    assert told["slots"] == {"total": 2, "busy": 1}
    assert told["queue"] == {"waiting": 2, "limit": 64}
    assert told["tokens_per_second"] == {"decode": 41.5, "prefill": 300.0}
    assert [node["state"] for node in told["nodes"]] == ["ok", "ok", "lost"]
    first, second, third = told["nodes"]
    assert (first["compute_ms"], first["waiting_ms"], first["network_ms"]) == (1500.0, 250.0, 750.0)
    assert first["sent_bytes_per_token"] == 2
    assert second["compute_ms"] is None
    assert third["compute_ms"] is None


def test_the_description_names_every_path_and_its_requests(api: Running):
    described = api.client.get("/openapi.json").json()
    assert described["openapi"].startswith("3.1")
    for path in ("/v1/chat/completions", "/v1/completions", "/tokenize", "/detokenize"):
        schema = described["paths"][path]["post"]["requestBody"]["content"]["application/json"]["schema"]
        name = schema["$ref"].rsplit("/", 1)[1]
        assert described["components"]["schemas"][name]["additionalProperties"] == {"type": "null"}
