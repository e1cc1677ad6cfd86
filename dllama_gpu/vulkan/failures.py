"""Errors of the native layer as sentences."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from dllama_gpu.vulkan import _native
from dllama_gpu.vulkan.errors import GpuError, GpuMemoryError


@contextmanager
def explained(gpu: str, doing: str) -> Iterator[None]:
    """Turns errors of the native layer into a GpuError about `gpu`; `doing` completes "while …"."""
    try:
        yield
    except _native.OutOfMemoryError as error:
        raise GpuMemoryError(
            f"{gpu} has no memory left while {doing} ({error}); use a smaller --max-seq-len, add --workers, or close "
            "programs that use the GPU"
        ) from error
    except _native.DeviceLostError as error:
        raise GpuError(
            f"{gpu} was lost while {doing} ({error}): its driver reset it, or it was unplugged; start again, with "
            "--device cpu if it happens again"
        ) from error
    except _native.TimeoutError as error:
        raise GpuError(
            f"{gpu} did not answer in time while {doing} ({error}); start again, with --device cpu if it happens again"
        ) from error
    except _native.VulkanError as error:
        raise GpuError(f"{gpu} failed while {doing}: {error}") from error
