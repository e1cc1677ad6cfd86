"""Runs pip and says in a sentence what stopped it."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

from dllama_gpu.errors import DllamaError
from launcher.console import Step

# What pip and the compiler print, and what it means to a person; the first that is found counts.
_REASONS: tuple[tuple[str, str], ...] = (
    (
        r"sudo: .*(password is required|a terminal is required|not allowed)|not in the sudoers file",
        "sudo does not let this account do it here; run that command by hand, as root or in a terminal",
    ),
    (
        r"No space left on device|ENOSPC|not enough space on the disk",
        "the disk is full; free some space and run this again",
    ),
    (
        r"name resolution|Name or service not known|getaddrinfo|Network is unreachable|NewConnectionError"
        r"|Failed to establish a new connection|ConnectTimeout|ReadTimeout|Read timed out|ProxyError",
        "a server cannot be reached; check the network connection and run this again",
    ),
    (
        r"CERTIFICATE_VERIFY_FAILED",
        "the package index's certificate was not accepted; check the machine's clock and its ca-certificates",
    ),
    (
        r"Killed signal terminated program|std::bad_alloc|out of memory|Cannot allocate memory",
        "the machine ran out of memory; close other programs or set CMAKE_BUILD_PARALLEL_LEVEL=1, and run this again",
    ),
    (
        r"No CMAKE_CXX_COMPILER could be found|could not find any instance of Visual Studio",
        "there is no C++ compiler; install one (Debian: g++, macOS: xcode-select --install, "
        "Windows: Visual Studio Build Tools with C++) and run this again",
    ),
    (r"Permission denied|Read-only file system", "a file or folder may not be written"),
    (
        r"No matching distribution found for (?P<package>\S+)",
        "the package index has no {package} for this Python and machine",
    ),
)
_SHOWN_LINES = 8
_PROGRESS = re.compile(r"^\s*(\[\d+/\d+\] \S+ \S+ \S+|\[ *\d+%\].*|Collecting \S+|Downloading \S+|Installing .*)")


def pip_environment() -> dict[str, str]:
    """The environment variables pip and the compilers it starts run with."""
    ours = {
        "PIP_DISABLE_PIP_VERSION_CHECK": "1",
        "PIP_NO_INPUT": "1",
        "PIP_USER": "0",
        "PYTHONUNBUFFERED": "1",
        "CMAKE_BUILD_PARALLEL_LEVEL": os.environ.get("CMAKE_BUILD_PARALLEL_LEVEL", str(_compiler_jobs())),
    }
    foreign = ("PYTHONHOME", "PYTHONPATH", "PIP_TARGET", "PIP_PREFIX")
    return {name: value for name, value in os.environ.items() if name not in foreign} | ours


def run_pip(
    python: Path,
    arguments: Sequence[str],
    *,
    purpose: str,
    log: Path,
    step: Step,
    folder: Path,
    more: Mapping[str, str],
) -> None:
    """Runs `python -m pip arguments` in `folder`, showing its progress and keeping all it says in `log`.

    `purpose` completes "cannot ..."; `more` are further environment variables.
    Raises DllamaError with the reason, where it is known, or the log's end.
    """
    process = subprocess.Popen(
        [str(python), "-m", "pip", *arguments],
        cwd=folder,
        env=pip_environment() | dict(more),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        encoding="utf-8",
        errors="replace",
    )
    assert process.stdout is not None
    lines: list[str] = []
    try:
        with log.open("a", encoding="utf-8") as log_file:
            for line in process.stdout:
                log_file.write(line)
                lines.append(line)
                if shown := _PROGRESS.match(line):
                    step.note(shown[1])
        status = process.wait()
    except BaseException:
        process.kill()
        process.wait()
        raise
    if status != 0:
        raise DllamaError(f"{explain_failure(purpose, ''.join(lines))}\nThe whole report is in {log}.")


def explain_failure(purpose: str, report: str) -> str:
    """A sentence from what a failed program printed: the reason if it is a known one, else the first error's lines."""
    for pattern, reason in _REASONS:
        if found := re.search(pattern, report):
            return f"Cannot {purpose}: {reason.format(**found.groupdict())}."
    lines = [line.rstrip() for line in report.splitlines() if line.strip()]
    first_error = next((at for at, line in enumerate(lines) if re.search(r"\berror\b", line, re.IGNORECASE)), None)
    shown = lines[-_SHOWN_LINES:] if first_error is None else lines[first_error : first_error + _SHOWN_LINES]
    return "\n  ".join([f"Cannot {purpose}; the report says:", *(shown or ["(nothing)"])])


def _compiler_jobs() -> int:
    """One compiler a core, but none without a gigabyte of memory: a Raspberry Pi must not swap."""
    cores = os.cpu_count() or 1
    try:
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):  # Windows, and systems that do not say
        return cores
    return max(1, min(cores, memory >> 30))
