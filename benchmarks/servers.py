"""Servers that the benchmark starts, ours and llama-cpp-python's, each alone on the machine."""

from __future__ import annotations

import contextlib
import http.client
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from dllama_gpu.errors import DllamaError

_REPOSITORY = Path(__file__).parent.parent
_START_SECONDS = 120.0


@contextlib.contextmanager
def our_server(model: Path, n_threads: int, n_slots: int, seq_len: int, *options: str) -> Iterator[int]:
    """`dllama-gpu api`; gives its port."""
    port = _free_port()
    command = [sys.executable, "-m", "dllama_gpu.cli.main", "api", "--model", str(model), "--port", str(port)]
    command += ["--nthreads", str(n_threads), "--slots", str(n_slots), "--max-seq-len", str(seq_len)]
    with _server([*command, "--device", "cpu", "--log-level", "warning", *options], port):
        yield port


@contextlib.contextmanager
def peer_server(python: str, model: Path, n_threads: int, seq_len: int) -> Iterator[int]:
    """llama-cpp-python's server in the interpreter `python`; gives its port."""
    port = _free_port()
    command = [python, "-m", "llama_cpp.server", "--model", str(model), "--port", str(port), "--n_ctx", str(seq_len)]
    command += ["--n_threads", str(n_threads), "--n_threads_batch", str(n_threads), "--verbose", "false"]
    # Otherwise a second request ends the first one.
    with _server([*command, "--interrupt_requests", "false"], port):
        yield port


def why_no_peer_server(python: str) -> str | None:
    """None when the interpreter `python` has llama-cpp-python's server, else a sentence."""
    try:
        found = subprocess.run(
            [python, "-c", "import llama_cpp.server.app"], capture_output=True, text=True, check=False
        )
    except OSError as error:
        return f"{python} cannot be run ({error.strerror})"
    last = (found.stderr.strip().splitlines() or [""])[-1]
    return None if found.returncode == 0 else f"{python} has no llama_cpp.server ({last})"


@contextlib.contextmanager
def _server(command: Sequence[str], port: int) -> Iterator[None]:
    with tempfile.TemporaryFile() as log:
        environment = dict(os.environ, PYTHONUNBUFFERED="1")
        process = subprocess.Popen(
            command, cwd=_REPOSITORY, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log
        )
        try:
            deadline = time.monotonic() + _START_SECONDS
            while not _answers(port):
                if process.poll() is not None or time.monotonic() > deadline:
                    log.seek(0)
                    said = log.read()[-2000:].decode(errors="replace")
                    raise DllamaError(f"the server {' '.join(command)} did not start:\n{said}")
                time.sleep(0.1)
            yield
        finally:
            process.terminate()
            try:
                process.wait(timeout=30)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _answers(port: int) -> bool:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    try:
        connection.request("GET", "/v1/models")
        return connection.getresponse().status == 200
    except OSError:
        return False
    finally:
        connection.close()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
