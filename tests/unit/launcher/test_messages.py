"""Every misfortune on the way to a running model is a sentence with the way out."""

from __future__ import annotations

import errno
import importlib.util
import os
import platform
import shutil
import sys
from pathlib import Path

import pytest

from dllama_gpu.errors import DllamaError
from launcher import system_packages
from launcher.console import Console
from launcher.guard import explain_os_error, guarded
from launcher.pip_runner import explain_failure
from launcher.system_packages import Need

COMPILER = Need("a C++ compiler", "g++")
HEADERS = Need("Python's C headers (Python.h)", "python3.11-dev")


@pytest.mark.parametrize(
    ("report", "sentence"),
    [
        ("OSError: [Errno 28] No space left on device", "the disk is full"),
        ("Temporary failure in name resolution", "check the network connection"),
        (
            "sudo: unable to resolve host pi: Name or service not known\nsudo: a password is required",
            "sudo does not let this account do it here",
        ),
        ("ReadTimeoutError: Read timed out.", "check the network connection"),
        ("ERROR: No matching distribution found for tiny==9", "the package index has no tiny==9 for this Python"),
        ("c++: fatal error: Killed signal terminated program cc1plus", "the machine ran out of memory"),
        ("CMake Error: No CMAKE_CXX_COMPILER could be found.", "there is no C++ compiler; install one"),
        ("[Errno 30] Read-only file system: '/opt/x'", "may not be written"),
    ],
)
def test_known_reasons_are_recognized(report: str, sentence: str) -> None:
    answer = explain_failure("build it", f"line\n{report}\nline\n")
    assert answer.startswith("Cannot build it: ")
    assert sentence in answer


def test_an_unknown_reason_shows_the_first_error_and_what_follows_it() -> None:
    error = ["kernels.cpp:7: error: expected ';'", "  int x", "       ^"]
    report = "\n".join(["compiling"] * 50 + error + ["compiling"] * 50 + ["pip: error: it failed"])
    shown = explain_failure("build it", report).splitlines()
    assert shown[:4] == ["Cannot build it; the report says:", *(f"  {line}" for line in error)]
    assert len(shown) == 9


def test_a_report_without_the_word_error_is_shown_from_its_end() -> None:
    report = "\n".join(f"line {number}" for number in range(100))
    assert explain_failure("build it", report).splitlines()[1:] == [f"  line {number}" for number in range(92, 100)]


def test_a_silent_failure_is_said_too() -> None:
    assert explain_failure("build it", "") == "Cannot build it; the report says:\n  (nothing)"


def test_nothing_missing_installs_nothing(console: Console, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda _: None)
    system_packages.install([], console, assume_yes=False)


def test_a_machine_without_apt_is_told_what_is_missing(console: Console, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda _: None)
    with pytest.raises(DllamaError, match=r"This machine lacks a C\+\+ compiler and Python's C headers .*; "):
        system_packages.install([COMPILER, HEADERS], console, assume_yes=True)


@pytest.mark.skipif(sys.platform == "win32", reason="there is no apt-get on Windows")
def test_without_root_and_sudo_an_administrator_is_told_the_command(
    console: Console, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    monkeypatch.setattr(shutil, "which", lambda name: None if name == "sudo" else f"/usr/bin/{name}")
    with pytest.raises(DllamaError, match=r"ask an administrator to run: apt-get install g\+\+$"):
        system_packages.install([COMPILER], console, assume_yes=True)


@pytest.mark.skipif(sys.platform == "win32", reason="there is no apt-get on Windows")
def test_a_refused_installation_names_the_command(console: Console, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(shutil, "which", lambda name: f"/usr/bin/{name}")
    monkeypatch.setattr(console, "confirm", lambda _: False)
    with pytest.raises(DllamaError, match=r"A C\+\+ compiler must be there first; .*apt-get install g\+\+$"):
        system_packages.install([COMPILER], console, assume_yes=False)


def test_apt_is_not_asked_to_complete_a_python_that_is_not_its_own(
    console: Console, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: f"/usr/bin/{name}")
    monkeypatch.setattr(sys, "base_prefix", "/opt/python")
    with pytest.raises(DllamaError, match=r"The Python in /opt/python lacks Python's C headers"):
        system_packages.install([HEADERS], console, assume_yes=True)


def test_a_python_without_ensurepip_needs_the_venv_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "ensurepip" else object())
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    assert [need.debian_package for need in system_packages.missing_for_environment()] == [f"python{version}-venv"]


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere nothing is installed for the user")
def test_vulkans_headers_are_wanted_where_there_are_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(system_packages, "_HEADER_FOLDERS", (tmp_path / "include",))
    monkeypatch.delenv("VULKAN_SDK", raising=False)
    assert [need.debian_package for need in system_packages.missing_for_gpus()] == ["libvulkan-dev"]
    (tmp_path / "sdk" / "include" / "vulkan").mkdir(parents=True)
    (tmp_path / "sdk" / "include" / "vulkan" / "vulkan.hpp").touch()
    monkeypatch.setenv("VULKAN_SDK", str(tmp_path / "sdk"))
    assert system_packages.missing_for_gpus() == []


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere the system's own compiler is asked for")
@pytest.mark.parametrize(
    ("variable", "installed", "found"),
    [
        ("", {"c++", "clang++"}, "c++"),
        ("", {"clang++"}, "clang++"),
        ("", set(), None),
        ("ccache g++-13", {"ccache", "c++"}, "ccache g++-13"),
        ("icpx", {"c++"}, None),
    ],
)
def test_the_compiler_is_the_one_that_is_asked_for_or_there(
    monkeypatch: pytest.MonkeyPatch, variable: str, installed: set[str], found: str | None
) -> None:
    monkeypatch.setenv("CXX", variable)
    monkeypatch.setattr(shutil, "which", lambda name: name if name in installed else None)
    assert system_packages.find_compiler() == found


def failing_with(error: BaseException) -> int:
    def program() -> int:
        raise error

    return guarded(program)


@pytest.mark.parametrize(
    ("error", "status", "sentence"),
    [
        (DllamaError("The file is too short."), 1, "The file is too short.\n"),
        (KeyboardInterrupt(), 130, "\nstopped\n"),
        (
            OSError(errno.ENOSPC, "No space left on device"),
            1,
            "The disk is full; free some space and run this again.\n",
        ),
        (
            OSError(errno.EROFS, "Read-only file system", "/opt/x"),
            1,
            "Cannot write /opt/x (Read-only file system); put the project into a folder that you may write to, "
            "or let DLLAMA_GPU_VENV name one for the environment.\n",
        ),
    ],
)
def test_a_failure_is_a_sentence_and_a_status(
    error: BaseException,
    status: int,
    sentence: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("DLLAMA_DEBUG", raising=False)
    assert failing_with(error) == status
    assert capsys.readouterr().err == sentence


def test_the_debug_variable_shows_the_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DLLAMA_DEBUG", "1")
    with pytest.raises(DllamaError, match="wrong"):
        failing_with(DllamaError("wrong"))


def test_other_refusals_of_the_system_keep_their_words() -> None:
    assert (
        explain_os_error(OSError(errno.EIO, "Input/output error", "f")) == "The system refused f: Input/output error."
    )


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="packages are installed on Linux alone")
@pytest.mark.parametrize(("system", "is_wanted"), [("debian", True), ("ubuntu", False)])
def test_the_browser_of_the_tests_comes_from_debian_itself(
    monkeypatch: pytest.MonkeyPatch, system: str, is_wanted: bool
) -> None:
    monkeypatch.setattr(platform, "freedesktop_os_release", lambda: {"ID": system})
    monkeypatch.setattr(shutil, "which", lambda _: None)
    packages = [need.debian_package for need in system_packages.missing_for_tests()]
    assert ("chromium" in packages) is is_wanted
