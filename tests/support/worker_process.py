"""Workers as real processes on loopback, for tests of the cluster.

    python -m tests.support.worker_process [--key KEY] [--cache FOLDER] [--memory BYTES] [--host HOST]
        [--advertise HOST:PORT]

prints the port it listens on and serves until its standard input ends; what it logs goes to standard error.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

from dllama_gpu.cpu.device import CpuDevice
from dllama_gpu.net.addresses import Address
from dllama_gpu.net.session import Node
from dllama_gpu.net.store import SliceStore
from dllama_gpu.net.worker import WorkerServer

_REPOSITORY = Path(__file__).resolve().parents[2]
_PATIENCE_SECONDS = 30.0


class WorkerProcess:
    """A worker in a process of its own; `log` collects its sentences."""

    def __init__(
        self,
        *,
        key: str | None = None,
        cache: Path | None = None,
        memory: int | None = None,
        host: str = "127.0.0.1",
        advertise: str | None = None,
    ) -> None:
        command = [sys.executable, "-m", "tests.support.worker_process"]
        options = {"--key": key, "--cache": cache, "--memory": memory, "--host": host, "--advertise": advertise}
        for name, value in options.items():
            if value is not None:
                command += [name, str(value)]
        self._host = host
        environment = dict(os.environ, PYTHONUNBUFFERED="1")
        self.process = subprocess.Popen(
            command,
            cwd=_REPOSITORY,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert self.process.stdout is not None
        self.log: list[str] = []
        self._reader = threading.Thread(target=self._read_log, daemon=True)
        self._reader.start()
        self.port = int(self.process.stdout.readline() or self._died())

    @property
    def address(self) -> str:
        """As a user writes it."""
        return str(Address(self._host, self.port))

    def await_log(self, text: str) -> None:
        """Returns when the worker has said something with `text` in it."""
        wait_until(lambda: any(text in line for line in list(self.log)), f"{text!r} in {self.log}")

    def kill(self) -> None:
        """Ends the process without any warning to it."""
        self.process.kill()
        self.process.wait()

    def stop(self) -> int:
        """Ends the process the friendly way and returns its exit status."""
        if self.process.poll() is None:
            assert self.process.stdin is not None
            self.process.stdin.close()
        try:
            return self.process.wait(timeout=_PATIENCE_SECONDS)
        except subprocess.TimeoutExpired:
            self.kill()
            raise
        finally:
            self._reader.join(timeout=1)
            for pipe in (self.process.stdout, self.process.stderr):
                assert pipe is not None
                pipe.close()

    def _died(self) -> str:
        self._reader.join(timeout=5)
        raise AssertionError(f"the worker did not start: {self.log}")

    def _read_log(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.log.append(line.rstrip())


def wait_until(condition: Callable[[], bool], what: str) -> None:
    """Returns when `condition` holds; fails after a long time."""
    deadline = time.monotonic() + _PATIENCE_SECONDS
    while not condition():
        assert time.monotonic() < deadline, f"waited in vain for {what}"
        time.sleep(0.01)


def main() -> None:
    """The worker's end."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--key")
    parser.add_argument("--cache", type=Path)
    parser.add_argument("--memory", type=int)
    parser.add_argument("--host")
    parser.add_argument("--advertise", type=Address.parse)
    options = parser.parse_args()

    def log(text: str) -> None:
        print(text, file=sys.stderr, flush=True)

    node = Node(
        make_device=lambda: CpuDevice(1),
        make_store=lambda: SliceStore(options.cache, warn=log),
        memory=lambda: options.memory,
        key=options.key.encode() if options.key else None,
        advertised=options.advertise,
        log=log,
    )
    server = WorkerServer(node, options.host, 0)
    threading.Thread(target=lambda: (sys.stdin.read(), server.stop()), daemon=True).start()
    print(server.addresses[0].port, flush=True)
    server.serve()


if __name__ == "__main__":
    main()
