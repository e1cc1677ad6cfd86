"""`dllama-gpu api` as a process, as a user starts it."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
import threading
from pathlib import Path

from tests.support.worker_process import wait_until

REPOSITORY = Path(__file__).resolve().parents[2]


class ApiServerProcess:
    """A server for `model` on a port that the system chose; `log` collects what it says."""

    def __init__(self, model: Path, *options: str) -> None:
        command = [sys.executable, "-m", "dllama_gpu.cli.main", "api", "--model", str(model), "--port", "0", *options]
        self.process = subprocess.Popen(command, cwd=REPOSITORY, stderr=subprocess.PIPE, text=True)
        self.log: list[str] = []
        self.url = ""
        self._reader = threading.Thread(target=self._read_log, daemon=True)
        self._reader.start()
        wait_until(lambda: bool(self.url) or self.process.poll() is not None, "a server that listens")
        assert self.url, f"the server did not start: {self.log}"

    @property
    def port(self) -> int:
        return int(self.url.rsplit(":", 1)[1])

    def memory(self) -> int:
        """Bytes that it has in memory (Linux)."""
        status = Path(f"/proc/{self.process.pid}/status").read_text(encoding="utf-8")
        return int(re.search(r"^VmRSS:\s+(\d+) kB", status, re.MULTILINE)[1]) << 10  # type: ignore[index]

    def open_files(self) -> int:
        """File descriptors that it has open (Linux)."""
        return len(list(Path(f"/proc/{self.process.pid}/fd").iterdir()))

    def stop(self, number: signal.Signals = signal.SIGTERM) -> int:
        """Ends it by a signal and returns its exit status."""
        self.process.send_signal(number)
        try:
            return self.process.wait(timeout=30)
        finally:
            self.process.kill()
            self._reader.join(timeout=10)
            assert self.process.stderr is not None
            self.process.stderr.close()

    def _read_log(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.log.append(line.rstrip())
            if found := re.match(r"serving +(\S+)", line):
                self.url = found[1]
