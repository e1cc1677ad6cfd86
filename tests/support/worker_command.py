"""`dllama-gpu worker` as a process, as a user starts it."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path

from tests.support.worker_process import wait_until

REPOSITORY = Path(__file__).resolve().parents[2]


class WorkerCommand:
    """A worker with one thread on `port`, or one that the system chose; `log` collects what it says.

    `python` is the command that runs Python, in `folder`: in another network namespace, or for another processor.
    """

    def __init__(
        self,
        cache: Path,
        *options: str,
        host: str = "127.0.0.1",
        python: Sequence[str] = (sys.executable,),
        folder: Path = REPOSITORY,
        announce: bool = False,
        port: int = 0,
    ) -> None:
        command = [*python, "-m", "dllama_gpu.cli.main", "worker", "--host", host, "--port", str(port)]
        command += ["--nthreads", "1", "--cache-dir", str(cache), *options]
        if not announce:  # other tests may be looking for workers
            command += ["--no-announce"]
        self.process = subprocess.Popen(command, cwd=folder, stderr=subprocess.PIPE, text=True)
        self.log: list[str] = []
        self.address = ""
        self._reader = threading.Thread(target=self._read_log, daemon=True)
        self._reader.start()
        wait_until(lambda: bool(self.address) or self.process.poll() is not None, "a worker that listens")
        assert self.address, f"the worker did not start: {self.log}"

    def await_log(self, text: str) -> None:
        """Returns when the worker has said something with `text` in it."""
        wait_until(lambda: any(text in line for line in list(self.log)), f"{text!r} in {self.log}")

    def kill(self) -> None:
        """Ends it without any warning to it."""
        self.process.kill()
        self.process.wait()
        self._reader.join(timeout=10)
        assert self.process.stderr is not None
        self.process.stderr.close()

    def stop(self) -> int:
        """Ends it as Ctrl-C does and returns its exit status."""
        self.process.send_signal(signal.SIGINT)
        try:
            return self.process.wait(timeout=10)
        finally:
            self.process.kill()
            self._reader.join(timeout=10)
            assert self.process.stderr is not None
            self.process.stderr.close()

    def _read_log(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.log.append(line.rstrip())
            if found := re.match(r"listening +(\S+)", line):
                self.address = found[1]


class Workers:
    """Worker processes, each on a port and with a cache of its own for good."""

    def __init__(self, folder: Path, n_workers: int) -> None:
        self._folder = folder
        self.running = [WorkerCommand(folder / str(number)) for number in range(n_workers)]
        self.addresses = [worker.address for worker in self.running]

    def kill(self, number: int) -> None:
        self.running[number].kill()

    def restart(self, number: int) -> None:
        port = int(self.addresses[number].rpartition(":")[2])
        self.running[number] = WorkerCommand(self._folder / str(number), port=port)

    def stop(self) -> None:
        for worker in self.running:
            if worker.process.poll() is None:
                worker.stop()
