"""Requests made up from our own OpenAPI description, right and wrong ones: none of them is a 500."""

from __future__ import annotations

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis import GenerationMode

from tests.support.api_server import ApiServerProcess

MAX_EXAMPLES = 40
METHODS = {
    "/v1/chat/completions": "POST",
    "/v1/completions": "POST",
    "/tokenize": "POST",
    "/detokenize": "POST",
    "/v1/models": "GET",
    "/v1/models/{name}": "GET",
    "/health": "GET",
    "/metrics": "GET",
    "/api/cluster": "GET",
}


@pytest.fixture(scope="module")
def schema(server: ApiServerProcess) -> schemathesis.BaseSchema:
    return schemathesis.openapi.from_url(f"{server.url}/openapi.json")


def test_every_path_of_the_description_is_tried(schema: schemathesis.BaseSchema):
    assert set(schema) == {*METHODS, "/openapi.json"}


@pytest.mark.parametrize(
    ("path", "mode"),
    [
        *((path, GenerationMode.POSITIVE) for path in METHODS),
        *((path, GenerationMode.NEGATIVE) for path, method in METHODS.items() if method == "POST"),
    ],
)
def test_no_request_makes_the_server_fail(
    server: ApiServerProcess, schema: schemathesis.BaseSchema, path: str, mode: GenerationMode
):
    operation = schema[path][METHODS[path]]
    n_examples = MAX_EXAMPLES if METHODS[path] == "POST" else 5
    statuses = set()

    @given(case=operation.as_strategy(generation_mode=mode))
    @settings(
        max_examples=n_examples,
        deadline=None,
        derandomize=True,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    def check(case: schemathesis.Case) -> None:
        # What is right would otherwise take as long as the context is.
        if (
            isinstance(case.body, dict)
            and isinstance(case.body.get("max_tokens"), int | None)
            and "completions" in path
        ):
            case.body["max_tokens"] = 1
            case.body.pop("max_completion_tokens", None)
        response = case.call(base_url=server.url, timeout=60)
        statuses.add(response.status_code)
        assert response.status_code < 500, (case.body, response.text)
        if response.status_code >= 400:
            assert response.json()["error"]["message"]

    check()
    if mode is GenerationMode.POSITIVE and path != "/v1/models/{name}":
        assert statuses - {200} <= {400, 404}
