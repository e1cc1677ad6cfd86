"""The files that a model's weights come from, for those who remember something until one of them changes."""

from __future__ import annotations

from pathlib import Path

from dllama_gpu.formats.gguf_parts import part_paths


def file_states(model: Path) -> list[tuple[str, int, int]]:
    """Name, bytes and time of change (ns) of every file of the model at `model`: a file, one of several, or a folder.

    Raises OSError when one of them cannot be asked.
    """
    paths = sorted(model.iterdir()) if model.is_dir() else part_paths(model)
    states = [(path.name, path.stat()) for path in paths if path.is_file()]
    return [(name, state.st_size, state.st_mtime_ns) for name, state in states]
