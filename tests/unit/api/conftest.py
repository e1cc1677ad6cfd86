from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from dllama_gpu.api.app import make_app
from dllama_gpu.api.server import ApiServer
from dllama_gpu.api.service import Service, Settings
from dllama_gpu.engine.sampling import SamplingParams
from dllama_gpu.model.gguf_file import GgufFile
from dllama_gpu.net.addresses import listen
from dllama_gpu.tokenizer.chat_template import ChatTemplate
from dllama_gpu.tokenizer.gguf_vocabulary import tokenizer_from_gguf
from dllama_gpu.tokenizer.tokenizer import Tokenizer
from tests.unit.api.fake_engine import FakeEngine

CONTEXT = 512


@dataclass
class Running:
    """A server of the test's own, with what is behind it."""

    engine: FakeEngine
    service: Service
    server: ApiServer
    client: httpx.Client
    port: int

    def chat(self, content: str = "Hi", **fields: Any) -> httpx.Response:
        body = {"messages": [{"role": "user", "content": content}], **fields}
        return self.client.post("/v1/chat/completions", json=body)

    def text(self, prompt: Any = "Once", **fields: Any) -> httpx.Response:
        return self.client.post("/v1/completions", json={"prompt": prompt, **fields})

    def connect(self) -> socket.socket:
        """A connection without any manners."""
        return socket.create_connection(("127.0.0.1", self.port), timeout=20)


Serve = Callable[..., AbstractContextManager[Running]]


@pytest.fixture(scope="session")
def tokenizer(smollm2_gguf: Path) -> Tokenizer:
    source = GgufFile(smollm2_gguf)
    try:
        return tokenizer_from_gguf(smollm2_gguf, source.metadata)
    finally:
        source.close()


@contextmanager
def running(service: Service, engine: FakeEngine, drain_seconds: float = 0.0) -> Iterator[Running]:
    listeners = listen("127.0.0.1", 0)
    port = listeners[0].getsockname()[1]
    server = ApiServer(make_app(service), service.active, drain_seconds)
    thread = threading.Thread(target=server.run, kwargs={"sockets": listeners}, daemon=True)
    thread.start()
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=20) as client:
            yield Running(engine, service, server, client, port)
    finally:
        server.should_exit = True
        thread.join(20)
        assert not thread.is_alive()


@pytest.fixture(scope="session")
def serve(tokenizer: Tokenizer) -> Serve:
    """Runs a server with these settings."""

    @contextmanager
    def start(drain_seconds: float = 0.0, template: ChatTemplate | None = None, **settings: Any) -> Iterator[Running]:
        engine = FakeEngine(tokenizer)
        chosen = {"model_names": ("tiny", "other"), "sampling": SamplingParams(temperature=0.6, top_k=7), **settings}
        service = Service(
            engine=engine,
            tokenizer=tokenizer,
            template=template or ChatTemplate.for_tokenizer(tokenizer),
            context=CONTEXT,
            settings=Settings(**chosen),
            created=1,
        )
        with running(service, engine, drain_seconds) as started:
            yield started

    return start


@pytest.fixture(scope="session")
def _shared(serve: Serve) -> Iterator[Running]:
    with serve() as started:
        yield started


@pytest.fixture
def api(_shared: Running) -> Running:
    """A server with usual settings, whose engine starts afresh."""
    _shared.engine.reset()
    return _shared


def eventually(condition: Callable[[], bool], seconds: float = 10.0) -> bool:
    """Whether the condition becomes true in time."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.01)
    return True
