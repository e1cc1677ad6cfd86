"""The compiled shaders that were installed beside the native module."""

from __future__ import annotations

from pathlib import Path

from dllama_gpu.errors import DllamaError
from dllama_gpu.vulkan import _native


def read_spirv(name: str) -> bytes:
    """SPIR-V of `shaders/<name>.comp`. Raises DllamaError when it was not installed."""
    # Beside the native module, not beside this file: an editable installation keeps the two apart.
    path = Path(_native.__file__).parent / "spirv" / f"{name}.spv"
    try:
        return path.read_bytes()
    except OSError as error:
        raise DllamaError(f"the shader {path} cannot be read ({error.strerror}); install dllama-gpu again") from error
