"""How many threads this process should use."""

from __future__ import annotations

import contextlib
import math
import os
import subprocess
import sys
from collections.abc import Set
from pathlib import Path

_CPU_FOLDER = Path("/sys/devices/system/cpu")
_QUOTA_FILE = Path("/sys/fs/cgroup/cpu.max")


def available_threads() -> int:
    """Processors this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def default_threads() -> int:
    """Cores this process may run on, and no more than a container's share of processor time.

    Two threads of one core share its memory bandwidth and vector units, so the second gains nothing and may cost.
    """
    return max(1, min(_cores(), _quota(), available_threads()))


def _cores() -> int:
    if sys.platform == "darwin":
        with contextlib.suppress(OSError, ValueError, subprocess.SubprocessError):
            # Efficiency cores would make the others wait.
            query = ["sysctl", "-n", "hw.perflevel0.physicalcpu"]
            return int(subprocess.run(query, capture_output=True, text=True, timeout=5, check=True).stdout)
    if hasattr(os, "sched_getaffinity"):
        return count_cores(os.sched_getaffinity(0), _CPU_FOLDER)
    return available_threads()


def count_cores(processors: Set[int], folder: Path) -> int:
    """Cores that `processors` belong to, by the topology that Linux shows in `folder`; else one each."""
    cores = set()
    for processor in processors:
        try:
            cores.add((folder / f"cpu{processor}" / "topology" / "thread_siblings_list").read_text(encoding="ascii"))
        except (OSError, UnicodeDecodeError):
            cores.add(f"{processor}")
    return len(cores)


def _quota() -> int:
    try:
        return parse_quota(_QUOTA_FILE.read_text(encoding="ascii"))
    except (OSError, UnicodeDecodeError):
        return sys.maxsize


def parse_quota(text: str) -> int:
    """Whole processors of a cgroup v2 `cpu.max` ("QUOTA PERIOD" in microseconds, or "max PERIOD")."""
    try:
        quota, period = text.split()
        return max(1, math.ceil(int(quota) / int(period)))
    except (ValueError, ZeroDivisionError):
        return sys.maxsize
