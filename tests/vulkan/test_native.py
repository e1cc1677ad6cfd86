"""The native layer with the smallest shader there is."""

from __future__ import annotations

import gc
from types import SimpleNamespace
from typing import TYPE_CHECKING

import numpy as np
import pytest

if TYPE_CHECKING:
    from dllama_gpu.vulkan import _native

N_WORDS = 5000
N_BYTES = 4 * N_WORDS


def spirv(name: str) -> bytes:
    from dllama_gpu.vulkan.shaders import read_spirv

    return read_spirv(name)


def copier(device: _native.Device) -> _native.Kernel:
    return device.kernel(spirv("copy_words"), n_bindings=2, push_bytes=4, specialization=[64])


def buffer(device: _native.Device, kind: str, n_bytes: int = N_BYTES) -> _native.Buffer:
    from dllama_gpu.vulkan import _native

    return device.buffer(n_bytes, getattr(_native.BufferKind, kind))


def words(of: _native.Buffer) -> np.ndarray:
    return of.view().view(np.uint32)


def push(n_words: int = N_WORDS) -> bytes:
    return np.uint32(n_words).tobytes()


def test_data_goes_through_the_devices_own_memory_and_back(native_device: _native.Device) -> None:
    upload, memory, back = (buffer(native_device, kind) for kind in ("UPLOAD", "DEVICE", "READBACK"))
    kernel = copier(native_device)
    recording = native_device.recording()
    recording.dispatch(kernel, [(upload, 0, N_BYTES), (memory, 0, N_BYTES)], push(), (16, 1, 1))
    recording.barrier()
    recording.copy(memory, 4, back, 0, N_BYTES - 4)
    recording.host_barrier()
    recording.finish()
    assert (recording.n_dispatches, recording.n_barriers) == (1, 2)
    for seed in range(2):  # recorded once, run twice
        words(upload)[:] = np.random.default_rng(seed).integers(0, 1 << 32, N_WORDS, np.uint32)
        recording.run(30)
        assert np.array_equal(words(back)[:-1], words(upload)[1:])


def test_a_kernel_serves_dispatches_over_parts_of_buffers(native_device: _native.Device) -> None:
    step = native_device.info.limits.min_storage_buffer_offset_alignment
    part = -(-1000 // step) * step
    upload, back = buffer(native_device, "UPLOAD"), buffer(native_device, "READBACK")
    words(upload)[:] = np.arange(N_WORDS)
    recording = native_device.recording()
    kernel = copier(native_device)
    for source, target in ((0, 2), (3, 1)):
        places = [(upload, source * part, part), (back, target * part, part)]
        recording.dispatch(kernel, places, push(part // 4), (1, 1, 1))
    recording.host_barrier()
    recording.finish()
    recording.run(30)
    for source, target in ((0, 2), (3, 1)):
        copied = back.view()[target * part : (target + 1) * part]
        assert np.array_equal(copied, upload.view()[source * part : (source + 1) * part])


@pytest.mark.parametrize(("least", "most", "wanted"), [(8, 32, 32), (0, 0, 0), (8, 16, 0)])
def test_a_size_of_subgroups_is_required_where_the_driver_has_a_choice(
    device_index: int, least: int, most: int, wanted: int
) -> None:
    from dllama_gpu.vulkan.dispatch import Dispatch
    from dllama_gpu.vulkan.gpu import required_subgroup_size

    offered = SimpleNamespace(min_size=least, max_size=most)
    planned, free = (Dispatch("shader", (1,), (), b"", (1, 1, 1), size) for size in (32, 0))
    assert required_subgroup_size(planned, offered) == wanted
    assert required_subgroup_size(free, offered) == 0


def test_a_missing_barrier_is_noticed(validated_device: _native.Device) -> None:
    """Else the silence of all other tests would mean nothing."""
    memory, other = buffer(validated_device, "DEVICE"), buffer(validated_device, "DEVICE")
    kernel = copier(validated_device)
    before = len(validated_device.validation_messages())
    recording = validated_device.recording()
    recording.dispatch(kernel, [(memory, 0, N_BYTES), (other, 0, N_BYTES)], push(), (1, 1, 1))
    recording.dispatch(kernel, [(other, 0, N_BYTES), (memory, 0, N_BYTES)], push(), (1, 1, 1))
    recording.finish()
    messages = validated_device.validation_messages()[before:]
    assert any("SYNC-HAZARD" in message for message in messages)


def test_timestamps_ascend(native_device: _native.Device) -> None:
    if not native_device.info.limits.timestamps:
        pytest.skip("this device has no timestamps")
    upload, back = buffer(native_device, "UPLOAD"), buffer(native_device, "READBACK")
    recording = native_device.recording(n_timestamps=2)
    recording.timestamp()
    recording.dispatch(copier(native_device), [(upload, 0, N_BYTES), (back, 0, N_BYTES)], push(), (16, 1, 1))
    recording.timestamp()
    recording.finish()
    recording.run(30)
    first, second = recording.timestamps()
    assert first <= second


def test_failures_come_back_as_exceptions(native_device: _native.Device) -> None:
    from dllama_gpu.vulkan import _native

    for kind in ("UPLOAD", "DEVICE", "READBACK", "UNIFIED"):
        _native.fail_allocations(1)
        with pytest.raises(_native.OutOfMemoryError, match="20000 bytes"):
            buffer(native_device, kind)
    for n_bytes in (0, 1 << 32):
        with pytest.raises(_native.VulkanError, match="4 GiB"):
            buffer(native_device, "DEVICE", n_bytes)
    with pytest.raises(_native.VulkanError, match="SPIR-V"):
        native_device.kernel(b"no shader at all, but some bytes", 1)
    with pytest.raises(_native.VulkanError, match="bindings"):
        native_device.kernel(spirv("copy_words"), 0)


def test_wrong_dispatches_are_refused(native_device: _native.Device) -> None:
    from dllama_gpu.vulkan import _native

    kernel, memory = copier(native_device), buffer(native_device, "DEVICE")
    whole = (memory, 0, N_BYTES)
    recording = native_device.recording()
    most = native_device.info.limits.max_workgroup_count[0]
    for bindings, constants, groups in (
        ([whole], push(), (1, 1, 1)),
        ([whole, (memory, 0, N_BYTES + 1)], push(), (1, 1, 1)),
        ([whole, (memory, 1, 16)], push(), (1, 1, 1)),
        ([whole, (memory, 1 << 40, 16)], push(), (1, 1, 1)),
        ([whole, whole], b"", (1, 1, 1)),
        ([whole, whole], push(), (0, 1, 1)),
        ([whole, whole], push(), (most + 1, 1, 1)),
    ):
        with pytest.raises((_native.VulkanError, TypeError)):
            recording.dispatch(kernel, bindings, constants, groups)
    with pytest.raises(_native.VulkanError, match="finished"):
        recording.run(1)


def test_a_deadline_is_kept_and_the_device_goes_on(native_device: _native.Device) -> None:
    from dllama_gpu.vulkan import _native

    n_bytes = 64 << 20
    memory, back = buffer(native_device, "DEVICE", n_bytes), buffer(native_device, "READBACK", n_bytes)
    recording = native_device.recording()
    for _ in range(4):
        recording.dispatch(
            copier(native_device), [(memory, 0, n_bytes), (back, 0, n_bytes)], push(n_bytes // 4), (1, 1, 1)
        )
        recording.barrier()
    recording.finish()
    with pytest.raises(_native.TimeoutError, match="did not finish"):
        recording.run(1e-6)
    recording.run(60)
    abandoned = native_device.recording()
    abandoned.dispatch(copier(native_device), [(memory, 0, n_bytes), (back, 0, n_bytes)], push(n_bytes // 4), (1, 1, 1))
    abandoned.finish()
    with pytest.raises(_native.TimeoutError):
        abandoned.run(1e-6)
    del abandoned  # waits
    gc.collect()
    recording.run(60)


def test_a_view_outlives_everything_else(device_index: int) -> None:
    from dllama_gpu.vulkan import _native

    device = _native.Device(device_index)
    memory = device.buffer(N_BYTES, _native.BufferKind.READBACK)
    view = memory.view()
    del device, memory
    gc.collect()
    view[:] = 3
    assert view.sum() == 3 * N_BYTES


def test_compiled_shaders_can_be_kept_for_the_next_start(device_index: int) -> None:
    from dllama_gpu.vulkan import _native

    device = _native.Device(device_index)
    copier(device)
    data = device.pipeline_cache()
    assert len(data) >= 32  # the header
    for kept in (data, b"", b"something else entirely", data[:20]):
        copier(_native.Device(device_index, pipeline_cache=kept))
