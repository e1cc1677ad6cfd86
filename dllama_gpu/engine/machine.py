"""What the operating system says about this machine and this process. Standard library only."""

from __future__ import annotations

import ctypes
import platform
import subprocess
from pathlib import Path

_SYSTEM = platform.system()
_MEMORY = Path("/proc/meminfo")
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
    """Bytes of memory that programs can still take without swapping, None if unknown."""
    if _SYSTEM == "Windows":
        status = _windows_memory()
        return None if status is None else int(status.available)
    return _kib(_MEMORY, "MemAvailable")


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
    try:
        done = subprocess.run(["sysctl", "-n", name], capture_output=True, text=True, timeout=5, check=False)
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
