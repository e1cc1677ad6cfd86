"""What the machine must have before pip can build: venv, a C++ compiler, Python's headers; by apt where it is."""

from __future__ import annotations

import importlib.util
import os
import platform
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from dllama_gpu.errors import DllamaError
from launcher.console import Console
from launcher.pip_runner import explain_failure

_HEADER_FOLDERS = (Path("/usr/include"), Path("/usr/local/include"))


@dataclass(frozen=True)
class Need:
    """Something missing on the machine: what it is, in words, and the Debian package that brings it."""

    what: str
    debian_package: str


def missing_for_environment() -> list[Need]:
    """What this interpreter lacks for making a virtual environment."""
    if importlib.util.find_spec("ensurepip") and importlib.util.find_spec("venv"):
        return []
    return [Need("Python's venv and ensurepip modules", f"{_debian_python()}-venv")]


def missing_for_build() -> list[Need]:
    """What is missing for compiling a Python extension. On Windows the build itself says."""
    if sys.platform == "win32":
        return []
    needs = []
    if find_compiler() is None:
        needs.append(Need("a C++ compiler", "g++"))
    if not (Path(sysconfig.get_path("include")) / "Python.h").exists():
        needs.append(Need("Python's C headers (Python.h)", f"{_debian_python()}-dev"))
    return needs


def missing_for_gpus() -> list[Need]:
    """What is missing for building the Vulkan device; without it the package computes on the CPU."""
    if sys.platform != "linux":
        return []
    sdk = [Path(os.environ["VULKAN_SDK"]) / "include"] if "VULKAN_SDK" in os.environ else []
    if any((folder / "vulkan" / "vulkan.hpp").exists() for folder in (*_HEADER_FOLDERS, *sdk)):
        return []
    return [Need("Vulkan's headers", "libvulkan-dev")]


def missing_for_tests() -> list[Need]:
    """What some tests use on Linux: a cross compiler and an emulator for ARM, a Vulkan driver that needs no GPU and the
    layer that checks its use, a browser, and for root, networks of namespaces.
    """
    if not sys.platform.startswith("linux"):
        return []
    needs = []
    if not any(Path("/usr/share/vulkan/icd.d").glob("lvp_icd*.json")):
        needs.append(Need("a Vulkan driver that needs no GPU", "mesa-vulkan-drivers"))
    if not Path("/usr/share/vulkan/explicit_layer.d/VkLayer_khronos_validation.json").exists():
        needs.append(Need("Vulkan's validation layer", "vulkan-validationlayers"))
    if os.geteuid() == 0 and not shutil.which("ip"):
        needs.append(Need("a tool for network namespaces", "iproute2"))
    if _is_debian() and not shutil.which("chromium"):
        needs.append(Need("a browser", "chromium"))
    if platform.machine() == "aarch64":
        return needs
    if not shutil.which("aarch64-linux-gnu-g++"):
        needs.append(Need("the ARM64 cross compiler", "g++-aarch64-linux-gnu"))
    if not shutil.which("qemu-aarch64"):
        needs.append(Need("the ARM64 emulator", "qemu-user"))
    return needs


def find_compiler() -> str | None:
    """The C++ compiler's command: what CXX says, else the first of the usual ones; None where there is none."""
    if sys.platform == "darwin" and subprocess.run(["xcode-select", "--print-path"], capture_output=True).returncode:
        return None  # /usr/bin/c++ is there, but only asks for the compiler
    names = [os.environ["CXX"]] if os.environ.get("CXX") else ["c++", "g++", "clang++"]
    return next((name for name in names if shutil.which(name.split()[0])), None)


def install(needs: Sequence[Need], console: Console, *, assume_yes: bool) -> None:
    """Installs `needs` with apt-get, as root or through sudo; does nothing for none.

    Raises DllamaError, with what a person can do, where that is not possible.
    """
    if not needs:
        return
    wanted = " and ".join(need.what for need in needs)
    packages = [need.debian_package for need in needs]
    if not shutil.which("apt-get"):
        raise DllamaError(f"This machine lacks {wanted}; {_advice_without_apt()}")
    if any(package.startswith("python3.") for package in packages) and Path(sys.base_prefix) != Path("/usr"):
        raise DllamaError(
            f"The Python in {sys.base_prefix} lacks {wanted}; run this with the system's Python (/usr/bin/python3) "
            "or with a complete one."
        )
    by_hand = f"apt-get install {' '.join(packages)}"
    prefix = _root_prefix()
    if prefix is None:
        raise DllamaError(
            f"This machine lacks {wanted}, and this account may not install it; ask an administrator to run: {by_hand}"
        )
    if not assume_yes and not console.confirm(f"This machine lacks {wanted}. Run `{by_hand}`?"):
        raise DllamaError(f"{wanted[0].upper()}{wanted[1:]} must be there first; the command is: {by_hand}")
    with console.step(f"installing {' '.join(packages)}"):
        for arguments in (["update"], ["--yes", "--no-install-recommends", "install", *packages]):
            # `env` behind sudo, which passes no variables on.
            command = [*prefix, "env", "DEBIAN_FRONTEND=noninteractive", "apt-get", "--quiet", *arguments]
            finished = subprocess.run(
                command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace"
            )
            if finished.returncode != 0:
                raise DllamaError(explain_failure(f"run {by_hand}", finished.stdout))


def _root_prefix() -> list[str] | None:
    """What to put before a command so that it runs as root; None where that cannot be."""
    if sys.platform == "win32":
        return None
    if os.geteuid() == 0:
        return []
    if not shutil.which("sudo"):
        return None
    return ["sudo"] if sys.stdin.isatty() else ["sudo", "--non-interactive"]  # else it would wait for a password


def _is_debian() -> bool:
    """Debian itself: what Ubuntu calls chromium installs nothing where snaps cannot run."""
    try:
        return platform.freedesktop_os_release().get("ID") == "debian"
    except OSError:
        return False


def _debian_python() -> str:
    return f"python{sys.version_info.major}.{sys.version_info.minor}"


def _advice_without_apt() -> str:
    if sys.platform == "darwin":
        return "run xcode-select --install, then this again."
    return "install it with the system's package manager and run this again."
