"""The project's virtual environment: made once, left alone while nothing that it was made from has changed."""

from __future__ import annotations

import ast
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from dllama_gpu.errors import DllamaError
from launcher import system_packages
from launcher.console import Console, Step
from launcher.lock import exclusive
from launcher.pip_runner import explain_failure, pip_environment, run_pip

# Asks the build back end, through its PEP 517 hook, for CMake and Ninja if the machine has none that will do.
_ASK_BUILD_TOOLS = "from scikit_build_core.build import *; print(*get_requires_for_build_editable(), sep='\\n')"


@dataclass(frozen=True)
class Environment:
    """A virtual environment in `folder` for the checkout in `root`.

    The package is installed "editable": Python files are used from the checkout, the compiled module from `folder`.
    """

    root: Path
    folder: Path

    @property
    def python(self) -> Path:
        """The interpreter inside."""
        return self._binaries / ("python.exe" if os.name == "nt" else "python")

    @property
    def program(self) -> Path:
        """The `dllama-gpu` command inside."""
        return self._binaries / ("dllama-gpu.exe" if os.name == "nt" else "dllama-gpu")

    @property
    def _binaries(self) -> Path:
        return self.folder / ("Scripts" if os.name == "nt" else "bin")


@dataclass(frozen=True)
class Stamp:
    """What an environment was made from: a hash of the sources, and the extras that were installed with them."""

    fingerprint: str
    extras: frozenset[str]

    def covers(self, fingerprint: str, extras: Iterable[str]) -> bool:
        """Whether an environment with this stamp already is what is asked for."""
        return self.fingerprint == fingerprint and self.extras.issuperset(extras)


def environment_of(root: Path, variables: Mapping[str, str] = os.environ) -> Environment:
    """The environment of the checkout in `root`: its `.venv`, or where DLLAMA_GPU_VENV says."""
    folder = variables.get("DLLAMA_GPU_VENV")
    return Environment(root, Path(folder).absolute() if folder else root / ".venv")


def fingerprint(root: Path) -> str:
    """A hash of what the installed package depends on, apart from Python files, which are used in place."""
    paths = [root / name for name in ("pyproject.toml", "CMakeLists.txt", "dllama_gpu/__init__.py")]
    for pattern in ("cmake/*", "dllama_gpu/**/native/**/*", "shaders/*"):
        paths += sorted(path for path in root.glob(pattern) if path.is_file())
    paths += [Path(__file__)]
    digest = hashlib.sha256(str(root).encode())
    # Installed later, they are reason enough to build again.
    digest.update(b"without GPUs" if system_packages.missing_for_gpus() else b"with GPUs")
    for path in paths:
        digest.update(f"\0{path.name}\0".encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()


def read_stamp(environment: Environment) -> Stamp | None:
    """The stamp of a finished environment; None where there is none or it cannot be understood."""
    try:
        stored = json.loads(_stamp_path(environment).read_text(encoding="utf-8"))
        return Stamp(str(stored["fingerprint"]), frozenset(map(str, stored["extras"])))
    except (OSError, ValueError, KeyError, TypeError):
        return None


def write_stamp(environment: Environment, stamp: Stamp) -> None:
    """Marks `environment` as finished."""
    stored = {"fingerprint": stamp.fingerprint, "extras": sorted(stamp.extras)}
    _stamp_path(environment).write_text(json.dumps(stored), encoding="utf-8")


def ensure_python(environment: Environment, console: Console, *, assume_yes: bool = False) -> None:
    """Makes the bare virtual environment, with pip, if it is not there.

    Raises DllamaError where the machine lacks what that needs.
    """
    if _works(environment):
        return
    with exclusive(_lock_path(environment), console):
        system_packages.install(system_packages.missing_for_environment(), console, assume_yes=assume_yes)
        _make_python(environment, console)


def ensure_installed(
    environment: Environment, extras: Iterable[str], console: Console, *, assume_yes: bool = False
) -> None:
    """Makes the environment and builds the package into it with `extras`; returns at once if nothing has changed.

    Raises DllamaError, with the way out, where the machine, the network or the build does not allow it.
    """
    wanted = fingerprint(environment.root)
    if _is_finished(environment, wanted, extras):
        return
    with exclusive(_lock_path(environment), console):
        if _is_finished(environment, wanted, extras):  # by the process that held the lock
            return
        needs = system_packages.missing_for_environment() + system_packages.missing_for_build()
        system_packages.install(needs, console, assume_yes=assume_yes)
        _install_gpu_needs(console, assume_yes=assume_yes)
        _make_python(environment, console)
        if "test" in extras:
            _install_test_tools(console, assume_yes=assume_yes)
        earlier = read_stamp(environment)
        all_extras = frozenset(extras) | (earlier.extras if earlier else frozenset())
        _stamp_path(environment).unlink(missing_ok=True)
        _install_package(environment, all_extras, console)
        write_stamp(environment, Stamp(wanted, all_extras))


def build_requirements(pyproject: str) -> list[str]:
    """The list `build-system.requires` out of a pyproject.toml's text (Python 3.10 has no TOML reader)."""
    found = re.search(r"^\[build-system\]\s*^requires = (\[.*?\])$", pyproject, re.MULTILINE | re.DOTALL)
    if not found:
        raise DllamaError("pyproject.toml has no [build-system] table that begins with requires; is it complete?")
    return [str(requirement) for requirement in ast.literal_eval(found[1])]


def _make_python(environment: Environment, console: Console) -> None:
    if _works(environment):
        return
    with console.step("making the Python environment"):
        # --clear: what an interrupted start or a removed interpreter left must not stay.
        command = [sys.executable, "-m", "venv", "--clear", str(environment.folder)]
        finished = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if finished.returncode != 0:
        raise DllamaError(explain_failure(f"make the Python environment {environment.folder}", finished.stdout))


def _works(environment: Environment) -> bool:
    """Whether the environment has an interpreter (its link may dangle after a system upgrade) and a pip."""
    site_packages = "Lib/site-packages" if os.name == "nt" else "lib/python3*/site-packages"
    return environment.python.exists() and any(environment.folder.glob(f"{site_packages}/pip/__main__.py"))


def _install_package(environment: Environment, extras: frozenset[str], console: Console) -> None:
    def pip(*arguments: str, purpose: str, step: Step) -> None:
        run_pip(environment.python, arguments, purpose=purpose, log=log, step=step, folder=environment.root, more=build)

    log = environment.folder / "install.log"
    build_folder = environment.folder / "build"  # in the environment, because CMake's cache holds paths into it
    build = {"SKBUILD_BUILD_DIR": str(build_folder)}
    if os.name != "nt" and (compiler := system_packages.find_compiler()):
        build["CXX"] = compiler  # else the one that this Python was built with is looked for, and it may not be here
    _drop_stale_build(build_folder)
    log.unlink(missing_ok=True)
    # The build tools live in the environment, not in a throw-away one of pip: a second build compiles what changed.
    with console.step("installing the build tools") as step:
        requirements = build_requirements((environment.root / "pyproject.toml").read_text(encoding="utf-8"))
        pip("install", *requirements, purpose="install the build tools", step=step)
        if build_tools := _ask_build_tools(environment):
            pip("install", *build_tools, purpose="install CMake and Ninja", step=step)
    with console.step("building dllama-gpu") as step:
        target = f".[{','.join(sorted(extras))}]" if extras else "."
        pip("install", "-v", "--no-build-isolation", "--editable", target, purpose="build dllama-gpu", step=step)


def _drop_stale_build(folder: Path) -> None:
    """CMake cannot go on in a folder whose compiler is gone, as after a system upgrade."""
    try:
        cache = (folder / "CMakeCache.txt").read_text(encoding="utf-8")
    except FileNotFoundError:
        return
    compiler = re.search(r"^CMAKE_CXX_COMPILER:\w+=(.*)$", cache, re.MULTILINE)
    if not compiler or not Path(compiler[1]).exists():
        shutil.rmtree(folder)


def _ask_build_tools(environment: Environment) -> list[str]:
    finished = subprocess.run(
        [str(environment.python), "-c", _ASK_BUILD_TOOLS],
        cwd=environment.root,
        env=pip_environment(),
        capture_output=True,
        text=True,
    )
    if finished.returncode != 0:
        raise DllamaError(explain_failure("ask the build back end what it needs", finished.stderr))
    return finished.stdout.split()


def _install_test_tools(console: Console, *, assume_yes: bool) -> None:
    """These are a help, not a need: without them some tests are skipped and say so."""
    try:
        system_packages.install(system_packages.missing_for_tests(), console, assume_yes=assume_yes)
    except DllamaError as error:
        console.say(f"warning: tests of ARM, of GPUs, of networks or of the web page will be skipped. {error}")


def _install_gpu_needs(console: Console, *, assume_yes: bool) -> None:
    """The package works without them, on the CPU."""
    try:
        system_packages.install(system_packages.missing_for_gpus(), console, assume_yes=assume_yes)
    except DllamaError as error:
        console.say(f"warning: GPUs will not be used. {error}")


def _is_finished(environment: Environment, wanted: str, extras: Iterable[str]) -> bool:
    stamp = read_stamp(environment)
    return stamp is not None and stamp.covers(wanted, extras) and environment.python.exists()


def _stamp_path(environment: Environment) -> Path:
    return environment.folder / "dllama-gpu-stamp.json"


def _lock_path(environment: Environment) -> Path:
    """Beside the environment, not in it: making it clears its folder."""
    return environment.folder.parent / f"{environment.folder.name}.lock"
