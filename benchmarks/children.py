"""Processes that the benchmark starts: each measures one thing once, alone, and is gone before the next begins."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import MappingProxyType

from benchmarks.measure import Job, Measurement, measurement_from_json, to_json
from dllama_gpu.errors import DllamaError

_REPOSITORY = Path(__file__).parent.parent
_LONGEST_SECONDS = 1800
# Ends with its parent, however that ends (where a process without one gets another, as on Linux and macOS).
_BUSY = "import os\nparent = os.getppid()\nwhile os.getppid() == parent: pass"
OURS = "benchmarks.ours"
PEER = "benchmarks.peers.llama_cpp"
_NONE: Mapping[str, str] = MappingProxyType({})


def measure_ours(job: Job, variables: Mapping[str, str] = _NONE) -> Measurement:
    """Runs the job with dllama-gpu and further environment variables. Raises DllamaError when it fails."""
    return measurement_from_json(run_module(sys.executable, OURS, to_json(job), variables=variables))


def measure_peer(job: Job, python: str, variables: Mapping[str, str] = _NONE) -> Measurement:
    """Runs the job with llama.cpp in the interpreter `python`. Raises DllamaError when it fails."""
    return measurement_from_json(run_module(python, PEER, to_json(job), variables=variables))


def measure_read_rate(n_threads: int, n_bytes: int, n_passes: int) -> float:
    """Bytes per second of a plain read loop. Raises DllamaError when it fails."""
    return float(run_module(sys.executable, "benchmarks.read_rate", str(n_threads), str(n_bytes), str(n_passes)))


def why_no_peer(python: str) -> str | None:
    """None when the interpreter `python` has llama-cpp-python, else a sentence."""
    try:
        found = subprocess.run([python, "-c", "import llama_cpp"], capture_output=True, text=True, check=False)
    except OSError as error:
        return f"{python} cannot be run ({error.strerror})"
    if found.returncode == 0:
        return None
    return f"{python} cannot import llama_cpp ({_last_line(found.stderr) or f'status {found.returncode}'})"


@contextlib.contextmanager
def busy_process() -> Iterator[None]:
    """Another process that uses all the time of a processor it is given, while the context lasts."""
    process = subprocess.Popen([sys.executable, "-c", _BUSY], stdin=subprocess.DEVNULL)
    try:
        yield
    finally:
        process.kill()
        process.wait()


@contextlib.contextmanager
def confined_to(n_processors: int) -> Iterator[None]:
    """Processes started meanwhile have only `n_processors` processors between them, where the system offers that.

    Raises DllamaError when there are not so many, or when there are more and the system offers no way to choose.
    """
    if not hasattr(os, "sched_setaffinity"):
        if (os.cpu_count() or 1) != n_processors:
            raise DllamaError(
                f"--contended with {n_processors} threads needs a machine of {n_processors} processors on this system"
            )
        yield
        return
    allowed = os.sched_getaffinity(0)
    if len(allowed) < n_processors:
        raise DllamaError(f"--contended with {n_processors} threads needs so many processors, not {len(allowed)}")
    os.sched_setaffinity(0, sorted(allowed)[:n_processors])
    try:
        yield
    finally:
        os.sched_setaffinity(0, allowed)


def run_module(python: str, module: str, *arguments: str, variables: Mapping[str, str] = _NONE) -> str:
    """The last line that `python -m module arguments` prints. Raises DllamaError when it fails."""
    try:
        done = subprocess.run(
            [python, "-m", module, *arguments],
            cwd=_REPOSITORY,
            env={**os.environ, **variables},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=_LONGEST_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise DllamaError(f"{module} was ended after {_LONGEST_SECONDS} s; measure a smaller model") from None
    if done.returncode != 0:
        # A traceback is no user's mistake: all of it helps whoever repairs it.
        reason = done.stderr if "Traceback" in done.stderr else _last_line(done.stderr)
        reason = reason.strip() or f"status {done.returncode}"
        raise DllamaError(f"{module} failed: {reason}")
    return _last_line(done.stdout)


def _last_line(text: str) -> str:
    lines = text.strip().splitlines()
    return lines[-1] if lines else ""
