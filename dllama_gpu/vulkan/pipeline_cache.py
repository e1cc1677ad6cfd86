"""What is kept on disk about a GPU: compiled shaders, so that a driver compiles them once and not at every start."""

from __future__ import annotations

import contextlib
import hashlib
import os
import tempfile
from pathlib import Path

import platformdirs

from dllama_gpu.vulkan import _native


def cache_folder() -> Path:
    """The folder of this system for caches."""
    return Path(platformdirs.user_cache_dir("dllama-gpu", appauthor=False)) / "vulkan"


def cache_key(info: _native.DeviceInfo) -> str:
    """A file name that differs for other GPUs, drivers and driver versions."""
    text = "\n".join((info.uuid, info.name, info.driver, info.driver_version, info.api_version))
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def load_pipelines(info: _native.DeviceInfo, folder: Path | None = None) -> bytes:
    """What was kept for this GPU, or nothing; a driver checks for itself whether it can use it."""
    try:
        return _path(info, folder).read_bytes()
    except OSError:
        return b""


def save_pipelines(info: _native.DeviceInfo, data: bytes, folder: Path | None = None) -> None:
    """Keeps `data` for the next start. A cache that cannot be written is no failure."""
    write_quietly(_path(info, folder), data)


def write_quietly(path: Path, data: bytes) -> None:
    """Writes a file of the cache in one piece, or not at all."""
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=path.name)
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(data)
            Path(name).replace(path)  # another process may do the same at this moment
        except OSError:
            Path(name).unlink(missing_ok=True)


def _path(info: _native.DeviceInfo, folder: Path | None) -> Path:
    return (folder or cache_folder()) / f"{cache_key(info)}.pipelines"
