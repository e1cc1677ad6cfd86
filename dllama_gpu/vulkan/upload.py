"""Bytes on their way to memory that only the GPU sees: through one buffer that both see."""

from __future__ import annotations

from types import TracebackType

import numpy as np
import numpy.typing as npt

from dllama_gpu.vulkan import _native

_STAGING_BYTES = 32 << 20
_SECONDS = 60.0  # for one filling


class Uploader:
    """Collects writes and carries them out when the staging buffer is full, and at the end of a `with` block.

    `n_bytes`: what all writes have together, about.
    """

    def __init__(self, device: _native.Device, n_bytes: int) -> None:
        self._device = device
        self._staging = device.buffer(max(4, min(n_bytes, _STAGING_BYTES)), _native.BufferKind.UPLOAD)
        self._view = self._staging.view()
        self._used = 0
        self._copies: list[tuple[int, _native.Buffer, int, int]] = []

    def __enter__(self) -> Uploader:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if error is None:
            self.flush()

    def write(self, target: _native.Buffer, offset: int, content: npt.NDArray[np.uint8]) -> None:
        """Bytes `content` (n,) to `offset` of `target`, soon."""
        while content.size:
            if self._used == len(self._view):
                self.flush()
            part = content[: len(self._view) - self._used]
            self._view[self._used : self._used + part.size] = part
            self._copies.append((self._used, target, offset, part.size))
            self._used += part.size
            offset, content = offset + part.size, content[part.size :]

    def flush(self) -> None:
        """Carries out what was collected."""
        if not self._copies:
            return
        recording = self._device.recording()
        for at, target, offset, n_bytes in self._copies:
            recording.copy(self._staging, at, target, offset, n_bytes)
        recording.finish()
        recording.run(_SECONDS)
        self._copies, self._used = [], 0
