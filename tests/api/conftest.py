from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.api_server import ApiServerProcess


@pytest.fixture(scope="session")
def server(smollm2_gguf: Path) -> Iterator[ApiServerProcess]:
    """A real server with SmolLM2, four slots and a short context."""
    started = ApiServerProcess(smollm2_gguf, "--slots", "4", "--max-seq-len", "1024", "--model-name", "smol")
    try:
        yield started
    finally:
        assert started.stop() == 0, started.log
