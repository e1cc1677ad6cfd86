"""llama-cpp-python over its own llama.cpp or, where LLAMA_CPP_LIB_PATH names a folder, over the build in there.

That build may be a little older than the package and lack functions that the package declares; they are not called
here. Whether the two agree about everything else shows in the logits, which the benchmark compares.
"""

from __future__ import annotations

import ctypes
import importlib
import os
from pathlib import Path
from typing import Any


class _PartialLibrary(ctypes.CDLL):
    """A library in which a missing function is found missing only when it is called."""

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name.startswith("__"):
                raise

            def missing(*_: object) -> None:
                raise AttributeError(f"this build of llama.cpp has no function {name}")

            return missing


def own_library() -> bool:
    """Whether llama.cpp is the one that the package was built with."""
    return _FOLDER is None


def _import(folder: str | None) -> Any:
    if folder is None:
        return importlib.import_module("llama_cpp")
    whole_library = ctypes.CDLL
    ctypes.CDLL = _PartialLibrary  # type: ignore[misc]
    try:
        package = importlib.import_module("llama_cpp")
    finally:
        ctypes.CDLL = whole_library  # type: ignore[misc]
    # Backends that are files of their own are looked for beside the interpreter, where they are not.
    found = next((path for path in Path(folder).iterdir() if path.name in _GGML_NAMES), None)
    if found is not None:
        ctypes.CDLL(str(found)).ggml_backend_load_all_from_path(folder.encode())
    return package


_FOLDER = os.environ.get("LLAMA_CPP_LIB_PATH")
_GGML_NAMES = ("libggml.so", "libggml.dylib", "ggml.dll")

llama_cpp = _import(_FOLDER)
"""The package."""
