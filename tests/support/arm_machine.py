"""An ARM64 machine on another one: Debian's Python in a folder, its programs run by qemu.

Needs apt-get, dpkg-deb, qemu-aarch64 and aarch64-linux-gnu-g++, no root. What is downloaded and compiled stays in
`build/arm64-machine`; delete that to have it made again.
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock

from tests.support.kernel_check import UnavailableError, python_tool

_REPOSITORY = Path(__file__).resolve().parents[2]
_FOLDER = _REPOSITORY / "build" / "arm64-machine"
_COMPILER = "aarch64-linux-gnu-g++"
_DEBIAN_PACKAGES = ("python3", "libpython3-dev", "libstdc++6")
# What a worker imports; the versions are those that pip finds for ARM.
_PYTHON_PACKAGES = ("filelock", "gguf", "jinja2", "msgspec", "numpy", "platformdirs", "rich", "zeroconf")
_MULTIARCH = "aarch64-linux-gnu"


class DownloadError(UnavailableError):
    """What the machine is made of could not be had from Debian or PyPI."""


@dataclass(frozen=True)
class ArmMachine:
    """`python` runs the emulated Python; `folder` holds our package with its extensions for ARM."""

    python: Sequence[str]
    folder: Path


def make_arm_machine() -> ArmMachine:
    """Downloads and compiles what is not there yet.

    Raises UnavailableError where a tool is missing, and DownloadError where nothing can be downloaded.
    """
    emulator = shutil.which("qemu-aarch64") or shutil.which("qemu-aarch64-static")
    for found, package in (
        (sys.platform.startswith("linux"), "Linux"),
        (shutil.which("apt-get"), "apt-get (Debian)"),
        (shutil.which("dpkg-deb"), "dpkg-deb (Debian)"),
        (emulator, "qemu-aarch64 (Debian: qemu-user)"),
        (python_tool("cmake") and python_tool("ninja"), "cmake and ninja (the extra `test` brings them)"),
        (shutil.which(_COMPILER), f"{_COMPILER} (Debian: g++-aarch64-linux-gnu)"),
    ):
        if not found:
            raise UnavailableError(f"the emulated ARM64 machine needs {package}")
    assert emulator is not None
    _FOLDER.mkdir(parents=True, exist_ok=True)
    with FileLock(_FOLDER / "lock"):
        root, wheels, package = _FOLDER / "root", _FOLDER / "site-packages", _FOLDER / "package"
        if not root.is_dir():
            _unpack_debian(root)
        python = _python_in(root)
        if not wheels.is_dir():
            _install_wheels(wheels, python.name.removeprefix("python"))
        settings = ("-E", f"PYTHONHOME={root / 'usr'}", "-E", f"PYTHONPATH={wheels}")
        emulated = (emulator, "-L", str(root), *settings, str(python))
        _compile(root, python, emulated)
        _copy_package(package)
    return ArmMachine(emulated, package)


def _unpack_debian(root: Path) -> None:
    """Debian's packages and what they depend on, found by apt as for an empty machine, unpacked and not installed."""
    apt = _FOLDER / "apt"
    for folder in ("state/lists/partial", "cache/archives/partial"):
        (apt / folder).mkdir(parents=True, exist_ok=True)
    (apt / "status").touch()
    (apt / "apt.conf").write_text(
        f"""APT::Architecture "arm64"; APT::Architectures {{ "arm64"; }}; APT::Install-Recommends "false";
        Dir::State "{apt}/state"; Dir::State::status "{apt}/status"; Dir::Cache "{apt}/cache";
        Debug::NoLocking "true"; APT::Sandbox::User "";""",
        encoding="utf-8",
    )
    variables = dict(os.environ, APT_CONFIG=str(apt / "apt.conf"))
    subprocess.run(["apt-get", "--quiet", "update"], env=variables, capture_output=True)
    _download(["apt-get", "--quiet", "--yes", "--download-only", "install", *_DEBIAN_PACKAGES], variables)
    unpacked = _FOLDER / "root.part"
    shutil.rmtree(unpacked, ignore_errors=True)
    for archive in sorted((apt / "cache" / "archives").glob("*.deb")):
        _run(["dpkg-deb", "--extract", str(archive), str(unpacked)])
    if not (unpacked / "lib").exists():  # newer releases have everything in usr/lib
        (unpacked / "lib").symlink_to("usr/lib")
    shutil.rmtree(apt)
    unpacked.rename(root)


def _install_wheels(wheels: Path, version: str) -> None:
    unpacked = _FOLDER / "site-packages.part"
    shutil.rmtree(unpacked, ignore_errors=True)
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-compile"]
    command += ["--only-binary=:all:", "--implementation", "cp", "--python-version", version]
    for platform in ("manylinux_2_28", "manylinux_2_17", "manylinux2014"):
        command += ["--platform", f"{platform}_aarch64"]
    _download([*command, "--target", str(unpacked), *_PYTHON_PACKAGES])
    unpacked.rename(wheels)


def _compile(root: Path, python: Path, emulated: Sequence[str]) -> None:
    """Both extensions with the project's CMake; CMake asks the emulated Python for the names that it wants."""
    import pybind11

    cmake, ninja = python_tool("cmake"), python_tool("ninja")
    assert cmake is not None
    assert ninja is not None
    build, headers = _FOLDER / "build", _FOLDER / "headers"
    version = python.name
    # Python.h looks for the machine's own pyconfig.h here; all of usr/include would hide the compiler's.
    (headers / _MULTIARCH).mkdir(parents=True, exist_ok=True)
    link = headers / _MULTIARCH / version
    if not link.is_symlink():
        link.symlink_to(root / "usr" / "include" / _MULTIARCH / version)
    script = _FOLDER / "python"
    script.write_text(f'#!/bin/sh\nexec {shlex.join(emulated)} "$@"\n', encoding="utf-8")
    script.chmod(0o755)
    _run(
        [
            *(cmake, "-S", str(_REPOSITORY), "-B", str(build), "-G", "Ninja", f"-DCMAKE_MAKE_PROGRAM={ninja}"),
            *("-DCMAKE_SYSTEM_NAME=Linux", "-DCMAKE_SYSTEM_PROCESSOR=aarch64", f"-DCMAKE_CXX_COMPILER={_COMPILER}"),
            # Headers that the machine does not have, such as Vulkan's, are not to be found on this one.
            *(f"-DCMAKE_FIND_ROOT_PATH={root}", "-DCMAKE_FIND_ROOT_PATH_MODE_INCLUDE=ONLY"),
            f"-DCMAKE_CXX_FLAGS=-isystem {headers}",
            f"-DPython_EXECUTABLE={script}",
            f"-DPython_INCLUDE_DIR={root / 'usr' / 'include' / version}",
            f"-Dpybind11_DIR={pybind11.get_cmake_dir()}",
        ]
    )
    _run([cmake, "--build", str(build), "--target", "_native", "net_native"])


def _copy_package(package: Path) -> None:
    shutil.rmtree(package, ignore_errors=True)
    ignored = shutil.ignore_patterns("native", "*.so", "__pycache__")
    shutil.copytree(_REPOSITORY / "dllama_gpu", package / "dllama_gpu", ignore=ignored)
    for folder, extensions in (("cpu", "_native*.so"), ("net", "net/_native*.so")):
        for extension in (_FOLDER / "build").glob(extensions):
            shutil.copy(extension, package / "dllama_gpu" / folder)


def _python_in(root: Path) -> Path:
    return next(path for path in (root / "usr" / "bin").glob("python3.*") if path.name[8:].isdigit())


def _download(command: Sequence[str], variables: Mapping[str, str] | None = None) -> None:
    try:
        _run(command, variables)
    except AssertionError as error:
        raise DownloadError(str(error)) from None


def _run(command: Sequence[str], variables: Mapping[str, str] | None = None) -> None:
    finished = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=variables)
    assert finished.returncode == 0, f"{' '.join(command[:4])} …: {finished.stdout[-2000:]}"
