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


def _import() -> tuple[Any, str]:
    if _FOLDER is None:
        package = importlib.import_module("llama_cpp")
        return package, f"llama.cpp of llama-cpp-python {package.__version__}"
    whole_library = ctypes.CDLL
    ctypes.CDLL = _PartialLibrary  # type: ignore[misc]
    try:
        package = importlib.import_module("llama_cpp")
    finally:
        ctypes.CDLL = whole_library  # type: ignore[misc]
    name = "another build of llama.cpp"
    found = next((path for path in Path(_FOLDER).iterdir() if path.name in _GGML_NAMES), None)
    if found is not None:
        ggml = ctypes.CDLL(str(found))
        # Backends that are files of their own are looked for beside the interpreter, where they are not.
        ggml.ggml_backend_load_all_from_path(_FOLDER.encode())
        ggml.ggml_version.restype = ggml.ggml_commit.restype = ctypes.c_char_p
        name += f", ggml {ggml.ggml_version().decode()} ({ggml.ggml_commit().decode()}),"
    return package, f"{name} through llama-cpp-python {package.__version__}"


_FOLDER = os.environ.get("LLAMA_CPP_LIB_PATH")
_GGML_NAMES = ("libggml.so", "libggml.dylib", "ggml.dll")

llama_cpp, library = _import()
"""The package; and which llama.cpp that is, in words."""
