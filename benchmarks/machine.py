"""What the numbers were measured on."""

from __future__ import annotations

import os
import platform
import re
import subprocess
from dataclasses import dataclass
from pathlib import Path

from dllama_gpu.cpu.processors import available_threads

_REPOSITORY = Path(__file__).parent.parent


@dataclass(frozen=True)
class Machine:
    """The machine and what it runs; nothing that names its owner."""

    processor: str
    n_processors: int
    memory_bytes: int | None
    system: str
    python: str
    commit: str
    """Of this repository; with a `+` when files differ from it."""
    load_average: float | None
    """Processes that wanted a processor in the minute before: near 0, or the numbers are worth little."""

    @property
    def slug(self) -> str:
        """For file names, e.g. `amd-epyc-2-processors`."""
        words = re.sub(r"\W+", "-", re.sub(r"\((R|TM)\)", "", self.processor)).strip("-").lower()
        return f"{words}-{self.n_processors}-processors"


def this_machine() -> Machine:
    """The machine that this process runs on."""
    return Machine(
        processor=_processor(),
        n_processors=available_threads(),
        memory_bytes=_memory_bytes(),
        system=f"{platform.system()} {platform.release()} {platform.machine()}",
        python=platform.python_version(),
        commit=_commit(),
        load_average=os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
    )


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        # "Model" is how a Raspberry Pi's kernel names the board; ARM processors have no "model name".
        match = re.search(r"^(?:model name|Model)\s*: (.+)$", cpuinfo.read_text(errors="replace"), re.MULTILINE)
        if match:
            return match[1].strip()
    if platform.system() == "Darwin":
        named = _output_of("sysctl", "-n", "machdep.cpu.brand_string")
        if named:
            return named
    return platform.processor() or platform.machine()


def _memory_bytes() -> int | None:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return None  # Windows has no sysconf


def _commit() -> str:
    commit = _output_of("git", "rev-parse", "--short", "HEAD")
    if not commit:
        return "unknown"
    return commit + ("+" if _output_of("git", "status", "--porcelain", "--untracked-files=no") else "")


def _output_of(*command: str) -> str:
    try:
        done = subprocess.run(command, cwd=_REPOSITORY, capture_output=True, text=True, check=False)
    except OSError:
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""
