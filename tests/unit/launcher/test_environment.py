from __future__ import annotations

import io
import os
import subprocess
from pathlib import Path

import pytest

from dllama_gpu.errors import DllamaError
from launcher import environment as environment_module
from launcher.console import Console
from launcher.environment import (
    Environment,
    Stamp,
    build_requirements,
    ensure_installed,
    ensure_python,
    environment_of,
    fingerprint,
    read_stamp,
    write_stamp,
)

REPOSITORY = Path(__file__).resolve().parents[3]


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """The files that a fingerprint is made from."""
    native = tmp_path / "dllama_gpu" / "cpu" / "native"
    native.mkdir(parents=True)
    (native / "kernels.cpp").write_text("int x;")
    (tmp_path / "shaders").mkdir()
    (tmp_path / "shaders" / "add.comp").write_text("void main() {}")
    (tmp_path / "dllama_gpu" / "__init__.py").write_text("")
    (tmp_path / "dllama_gpu" / "errors.py").write_text("")
    (tmp_path / "pyproject.toml").write_text("")
    (tmp_path / "CMakeLists.txt").write_text("")
    return tmp_path


@pytest.fixture
def finished(checkout: Path) -> Environment:
    """An environment that looks finished, with the extra `test`."""
    environment = environment_of(checkout, {})
    site_packages = "Lib/site-packages" if os.name == "nt" else "lib/python3.10/site-packages"
    for path in (environment.python, environment.folder / site_packages / "pip" / "__main__.py"):
        path.parent.mkdir(parents=True)
        path.write_text("")
    write_stamp(environment, Stamp(fingerprint(checkout), frozenset({"test"})))
    return environment


@pytest.fixture
def installs(monkeypatch: pytest.MonkeyPatch) -> list[frozenset[str]]:
    """The extras of every installation that would have been made; nothing else is run either."""
    made: list[frozenset[str]] = []

    def forbidden(*_: object, **__: object) -> None:
        raise AssertionError("a program was started")

    monkeypatch.setattr(subprocess, "Popen", forbidden)
    monkeypatch.setattr(environment_module.system_packages, "install", lambda *_, **__: None)
    monkeypatch.setattr(environment_module, "_install_package", lambda _, extras, __: made.append(extras))
    return made


def test_the_environment_is_beside_the_code_unless_a_variable_says_otherwise(tmp_path: Path) -> None:
    assert environment_of(tmp_path, {}).folder == tmp_path / ".venv"
    assert environment_of(tmp_path, {"DLLAMA_GPU_VENV": str(tmp_path / "other")}).folder == tmp_path / "other"


@pytest.mark.parametrize("extras", [set(), {"test"}])
def test_a_finished_environment_is_left_alone(
    finished: Environment, console: Console, installs: list[frozenset[str]], extras: set[str]
) -> None:
    ensure_python(finished, console)
    ensure_installed(finished, extras, console)
    assert installs == []


def test_new_extras_are_added_to_those_that_are_there(
    finished: Environment, console: Console, installs: list[frozenset[str]]
) -> None:
    ensure_installed(finished, {"dev"}, console)
    ensure_installed(finished, {"test", "dev"}, console)
    assert installs == [frozenset({"dev", "test"})]


@pytest.mark.parametrize(
    "name", ["pyproject.toml", "CMakeLists.txt", "dllama_gpu/cpu/native/kernels.cpp", "shaders/add.comp"]
)
def test_a_changed_build_input_is_built_once(
    finished: Environment, console: Console, installs: list[frozenset[str]], name: str
) -> None:
    (finished.root / name).write_text("changed")
    ensure_installed(finished, (), console)
    ensure_installed(finished, (), console)
    assert installs == [frozenset({"test"})]


def test_missing_headers_of_vulkan_are_no_obstacle(
    checkout: Path,
    console: Console,
    screen: io.StringIO,
    installs: list[frozenset[str]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    packages = environment_module.system_packages
    headers = packages.Need("Vulkan's headers", "libvulkan-dev")

    def install(needs: list[packages.Need], *_: object, **__: object) -> None:
        if headers in needs:
            raise DllamaError("nobody may install here")

    monkeypatch.setattr(packages, "missing_for_gpus", lambda: [headers])
    monkeypatch.setattr(packages, "install", install)
    monkeypatch.setattr(environment_module, "_make_python", lambda *_: None)
    environment = environment_of(checkout, {})
    environment.folder.mkdir()
    ensure_installed(environment, (), console)
    assert installs == [frozenset()]
    assert "GPUs will not be used. nobody may install here" in screen.getvalue()


def test_headers_that_came_later_are_built_with(
    finished: Environment, console: Console, installs: list[frozenset[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    there = not environment_module.system_packages.missing_for_gpus()
    needs = [environment_module.system_packages.Need("Vulkan's headers", "libvulkan-dev")] if there else []
    monkeypatch.setattr(environment_module.system_packages, "missing_for_gpus", lambda: needs)
    ensure_installed(finished, (), console)
    assert len(installs) == 1


def test_a_new_native_source_is_built(finished: Environment, console: Console, installs: list[frozenset[str]]) -> None:
    (finished.root / "dllama_gpu" / "cpu" / "native" / "more.hpp").write_text("")
    ensure_installed(finished, (), console)
    assert len(installs) == 1


def test_a_changed_python_file_needs_no_build(
    finished: Environment, console: Console, installs: list[frozenset[str]]
) -> None:
    (finished.root / "dllama_gpu" / "errors.py").write_text("changed")
    ensure_installed(finished, (), console)
    assert installs == []


def test_a_failed_build_leaves_no_stamp(
    finished: Environment, console: Console, installs: list[frozenset[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(*_: object) -> None:
        raise DllamaError("the disk is full")

    monkeypatch.setattr(environment_module, "_install_package", failing)
    with pytest.raises(DllamaError, match="the disk is full"):
        ensure_installed(finished, {"dev"}, console)
    assert read_stamp(finished) is None


def test_an_environment_whose_interpreter_is_gone_is_made_anew(
    finished: Environment, console: Console, installs: list[frozenset[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    finished.python.unlink()
    commands: list[list[str]] = []

    def run(command: list[str], **_: object) -> subprocess.CompletedProcess[str]:
        commands.append(command)
        return subprocess.CompletedProcess(command, 0, "")

    monkeypatch.setattr(subprocess, "run", run)
    ensure_installed(finished, (), console)
    assert [command[1:4] for command in commands] == [["-m", "venv", "--clear"]]
    assert len(installs) == 1


@pytest.mark.parametrize("text", ["", "{", "[]", '{"fingerprint": "x"}', '{"fingerprint": "x", "extras": 3}', "\x00"])
def test_a_stamp_that_cannot_be_understood_counts_as_none(finished: Environment, text: str) -> None:
    (finished.folder / "dllama-gpu-stamp.json").write_text(text)
    assert read_stamp(finished) is None


def test_a_stamp_is_read_as_it_was_written(finished: Environment) -> None:
    stamp = Stamp("abc", frozenset({"test", "dev"}))
    write_stamp(finished, stamp)
    assert read_stamp(finished) == stamp


def test_a_checkout_that_was_moved_is_built_again(checkout: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    before = fingerprint(checkout)
    moved = checkout.rename(tmp_path_factory.mktemp("elsewhere") / "checkout")
    assert fingerprint(moved) != before


def test_the_build_requirements_are_read_from_this_projects_file() -> None:
    requirements = build_requirements((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))
    assert [requirement.split(">")[0] for requirement in requirements] == ["scikit-build-core", "pybind11", "pip"]


def test_a_project_file_without_build_requirements_is_a_sentence() -> None:
    with pytest.raises(DllamaError, match=r"pyproject\.toml has no \[build-system\] table"):
        build_requirements("[project]\nname = 'x'\n")
