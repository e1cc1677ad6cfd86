"""Builds tests/native/kernel_check.cpp, for this machine and for ARM, and runs single kernels with it.

The requests and their results are described in kernel_check.cpp.
"""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

_REPOSITORY = Path(__file__).parent.parent.parent
_CROSS_COMPILER = "aarch64-linux-gnu-g++"

IS_ARM64 = platform.machine().lower() in ("aarch64", "arm64")

EMULATED_CPUS = {"plain": "cortex-a72", "neon": "cortex-a72", "dotprod": "cortex-a76", "i8mm": "max"}
"""Kernel table to a processor that has just what it needs: Raspberry Pi 4 and 5, and one with everything."""

Array = npt.NDArray[Any]


class UnavailableError(Exception):
    """Why kernels cannot be built or run here."""


@dataclass(frozen=True)
class Request:
    """One call of a kernel: the request line, its inputs, and (dtype, shape) of each result."""

    line: str
    inputs: tuple[Array, ...]
    results: tuple[tuple[str, tuple[int, ...]], ...]


@dataclass(frozen=True)
class KernelCheck:
    """A built kernel_check, with the emulator's command in front where it needs one."""

    command: tuple[str, ...]

    def tables(self) -> list[str]:
        """Names of the kernel tables that can be run, best first."""
        return subprocess.run(self.command, check=True, capture_output=True, text=True).stdout.split()

    def run(self, table: str, requests: Sequence[Request], folder: Path) -> list[tuple[Array, ...]]:
        """Results of each request; `folder` takes the files that go in and out."""
        request_file, result_file = folder / "requests", folder / "results"
        with request_file.open("wb") as file:
            for request in requests:
                file.write(request.line.encode() + b"\n")
                for array in request.inputs:
                    file.write(np.ascontiguousarray(array).tobytes())
        done = subprocess.run(
            (*self.command, table, str(request_file), str(result_file)), check=False, capture_output=True, text=True
        )
        assert done.returncode == 0, f"{' '.join(self.command)} {table}: status {done.returncode}\n{done.stderr}"
        raw = memoryview(result_file.read_bytes())
        answers = []
        at = 0
        for request in requests:
            arrays = []
            for dtype, shape in request.results:
                size = np.dtype(dtype).itemsize * int(np.prod(shape))
                arrays.append(np.frombuffer(raw[at : at + size], dtype).reshape(shape))
                at += size
            answers.append(tuple(arrays))
        assert at == len(raw), f"{len(raw) - at} bytes more than the results of the requests"
        return answers


def arm_required() -> bool:
    """Whether tests fail where ARM's kernels can be neither built nor emulated; otherwise they are skipped."""
    return os.environ.get("DLLAMA_GPU_REQUIRE_ARM_TESTS") == "1"


def build(folder: Path, *, cross: bool) -> Path:
    """Builds kernel_check with the project's own flags in `folder`; gives the program's path.

    Raises UnavailableError where a tool is missing.
    """
    cmake, ninja = python_tool("cmake"), python_tool("ninja")
    if cmake is None:
        raise UnavailableError("cmake is not installed; the extra `test` brings it")
    options = ["-DDLLAMA_BUILD_KERNEL_CHECK=ON"]
    if cross:
        if shutil.which(_CROSS_COMPILER) is None:
            raise UnavailableError(f"{_CROSS_COMPILER} is not installed (Debian: g++-aarch64-linux-gnu)")
        options += [
            "-DCMAKE_SYSTEM_NAME=Linux",
            "-DCMAKE_SYSTEM_PROCESSOR=aarch64",
            f"-DCMAKE_CXX_COMPILER={_CROSS_COMPILER}",
            # So that the emulator needs no ARM libraries.
            "-DCMAKE_EXE_LINKER_FLAGS=-static",
        ]
    if ninja is not None:
        options += ["-G", "Ninja", f"-DCMAKE_MAKE_PROGRAM={ninja}"]
    folder.mkdir(parents=True)
    _run([cmake, "-S", str(_REPOSITORY), "-B", str(folder), *options])
    _run([cmake, "--build", str(folder), "--config", "Release", "--parallel", "--target", "kernel_check"])
    names = ("kernel_check", "kernel_check.exe")
    return next(path for name in names for path in folder.rglob(name) if path.is_file())


def native(program: Path) -> KernelCheck:
    """Runs a program built for this machine."""
    return KernelCheck((str(program),))


def emulated(program: Path, table: str) -> KernelCheck:
    """Runs a program built for ARM as on a processor that has just what `table` needs.

    Raises UnavailableError without an emulator, or when it does not know the processor.
    """
    emulator = _emulator()
    if emulator is None:
        raise UnavailableError("qemu-aarch64 is not installed (Debian: qemu-user)")
    cpu = EMULATED_CPUS[table]
    known = subprocess.run([emulator, "-cpu", "help"], check=False, capture_output=True, text=True).stdout.split()
    if cpu not in known:
        raise UnavailableError(f"{emulator} does not know the processor {cpu}")
    return KernelCheck((emulator, "-cpu", cpu, str(program)))


def shared_symbols(program: Path, *, cross: bool) -> list[str]:
    """Functions and data that kernels of one instruction set define for all others to use, as `nm` shows them.

    Raises UnavailableError where nm or object files in ELF's or Mach-O's naming are missing.
    """
    nm = shutil.which("aarch64-linux-gnu-nm" if cross else "nm")
    build_folder = program.parents[2]
    objects = [str(path) for path in build_folder.rglob("kernels_*.o")]
    if nm is None or not objects:
        raise UnavailableError("there is no nm, or no object files that it reads")
    lines = _run([nm, "--defined-only", "-A", *objects]).splitlines()
    weak_kinds = {"W", "V", "u"}
    return [line for line in lines if line.split()[-2] in weak_kinds]


def python_tool(name: str) -> str | None:
    """A program that may also come as a Python package, in an environment that is not on the path."""
    folders = [str(Path(sys.executable).parent), os.environ.get("PATH", "")]
    return shutil.which(name, path=os.pathsep.join(folders))


def _emulator() -> str | None:
    return shutil.which("qemu-aarch64") or shutil.which("qemu-aarch64-static")


def _run(command: list[str]) -> str:
    done = subprocess.run(command, check=False, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert done.returncode == 0, f"{' '.join(command)}: status {done.returncode}\n{done.stdout}"
    return done.stdout
