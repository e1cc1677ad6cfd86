"""What the operating system says about this machine and this process. Standard library only."""

from __future__ import annotations

import ctypes
import platform
import re
import subprocess
from pathlib import Path

_SYSTEM = platform.system()
_MEMORY = Path("/proc/meminfo")
_CGROUPS = Path("/sys/fs/cgroup")
_CGROUP_OF_PROCESS = Path("/proc/self/cgroup")
_KIB = 1024


def cpu_name() -> str:
    """The processor's name for people."""
    if _SYSTEM == "Linux":
        # x86 says "model name"; an ARM board names itself in the device tree instead.
        name = _field(Path("/proc/cpuinfo"), "model name") or _text(Path("/proc/device-tree/model"))
    elif _SYSTEM == "Darwin":
        name = _sysctl("machdep.cpu.brand_string")
    else:
        name = platform.processor()
    return name or platform.machine() or "unknown"


def total_memory() -> int | None:
    """Bytes of memory in this machine, None if unknown."""
    if _SYSTEM == "Darwin":
        text = _sysctl("hw.memsize")
        return int(text) if text.isdigit() else None
    if _SYSTEM == "Windows":
        status = _windows_memory()
        return None if status is None else int(status.total)
    return _kib(_MEMORY, "MemTotal")


def available_memory() -> int | None:
    """Bytes of memory that programs can still take without swapping, None if unknown.

    In a container or a service with a limit of its own (cgroup v2), no more than what is left of that.
    """
    if _SYSTEM == "Windows":
        status = _windows_memory()
        return None if status is None else int(status.available)
    if _SYSTEM == "Darwin":
        return _darwin_available(_output("vm_stat"))
    system = _kib(_MEMORY, "MemAvailable")
    limits = _cgroup_available()
    return min([*limits, *([] if system is None else [system])], default=None)


def peak_memory() -> int | None:
    """The most bytes of memory this process ever had (resident set), None if unknown."""
    if _SYSTEM == "Linux":
        # getrusage says more than the truth here: a process starts with the peak of the one that started it.
        return _kib(Path("/proc/self/status"), "VmHWM")
    if _SYSTEM == "Windows":
        return _windows_peak_memory()
    import resource  # exists on Unix alone

    unit = 1 if _SYSTEM == "Darwin" else _KIB
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def _cgroup_available() -> list[int]:
    """Bytes left below the limit of this process's cgroup and of each one around it; empty where there is no limit."""
    relative = _field(_CGROUP_OF_PROCESS, "0").removeprefix(":").strip("/")
    folder = _CGROUPS / relative
    left = []
    while True:
        limit, used = _text(folder / "memory.max"), _text(folder / "memory.current")
        if limit.isdigit() and used.isdigit():
            statistics = dict(line.split(" ", 1) for line in _text(folder / "memory.stat").splitlines() if " " in line)
            # Files read once count as used, but give way to what programs need.
            left.append(max(0, int(limit) - int(used) + int(statistics.get("inactive_file", "0"))))
        if folder == _CGROUPS or _CGROUPS not in folder.parents:
            return left
        folder = folder.parent


def _darwin_available(vm_stat: str) -> int | None:
    """Bytes of the pages that macOS' `vm_stat` counts as free or given up first."""
    size = re.search(r"page size of (\d+) bytes", vm_stat)
    pages = re.findall(r"^Pages (?:free|inactive|speculative|purgeable): +(\d+)\.", vm_stat, re.MULTILINE)
    return int(size[1]) * sum(map(int, pages)) if size and pages else None


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip("\0 \n")
    except OSError:
        return ""


def _field(path: Path, name: str) -> str:
    """The value of the first line `name: value`."""
    for line in _text(path).splitlines():
        key, _, value = line.partition(":")
        if key.strip() == name:
            return value.strip()
    return ""


def _kib(path: Path, name: str) -> int | None:
    number = _field(path, name).removesuffix("kB").strip()
    return int(number) * _KIB if number.isdigit() else None


def _sysctl(name: str) -> str:
    return _output("sysctl", "-n", name)


def _output(*command: str) -> str:
    """What a program of the system prints; nothing where it is missing or hangs."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=5, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip()


class _MemoryStatus(ctypes.Structure):
    """Windows' MEMORYSTATUSEX."""

    _fields_ = (
        ("size", ctypes.c_uint32),
        ("load", ctypes.c_uint32),
        ("total", ctypes.c_uint64),
        ("available", ctypes.c_uint64),
        ("others", ctypes.c_uint64 * 5),
    )


class _ProcessMemory(ctypes.Structure):
    """Windows' PROCESS_MEMORY_COUNTERS."""

    _fields_ = (
        ("size", ctypes.c_uint32),
        ("page_faults", ctypes.c_uint32),
        ("peak_working_set", ctypes.c_size_t),
        ("others", ctypes.c_size_t * 7),
    )


def _windows_memory() -> _MemoryStatus | None:
    status = _MemoryStatus(size=ctypes.sizeof(_MemoryStatus))
    done = ctypes.CDLL("kernel32").GlobalMemoryStatusEx(ctypes.byref(status))
    return status if done else None


def _windows_peak_memory() -> int | None:
    counters = _ProcessMemory(size=ctypes.sizeof(_ProcessMemory))
    this_process = ctypes.c_void_p(-1)
    done = ctypes.CDLL("kernel32").K32GetProcessMemoryInfo(this_process, ctypes.byref(counters), counters.size)
    return int(counters.peak_working_set) if done else None
