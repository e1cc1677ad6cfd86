"""The compiled shaders that were installed beside the native module."""

from __future__ import annotations

import hashlib
from pathlib import Path

from dllama_gpu.errors import DllamaError
from dllama_gpu.vulkan import _native


def read_spirv(name: str) -> bytes:
    """SPIR-V of `shaders/<name>.comp`. Raises DllamaError when it was not installed."""
    path = _folder() / f"{name}.spv"
    try:
        return path.read_bytes()
    except OSError as error:
        raise DllamaError(f"the shader {path} cannot be read ({error.strerror}); install dllama-gpu again") from error


def has_shader(name: str) -> bool:
    """Whether it was installed: an old glslang cannot compile all."""
    return (_folder() / f"{name}.spv").is_file()


def shaders_digest() -> str:
    """A hash of all shaders: what is known of one build of them may be wrong of another."""
    digest = hashlib.sha256()
    for path in sorted(_folder().glob("*.spv")):
        digest.update(path.name.encode() + path.read_bytes())
    return digest.hexdigest()


def _folder() -> Path:
    # Beside the native module, not beside this file: an editable installation keeps the two apart.
    return Path(_native.__file__).parent / "spirv"
