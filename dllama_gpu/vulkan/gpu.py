"""An open GPU: its driver's device, the tier of shaders it runs, and the kernels made so far."""

from __future__ import annotations

from dllama_gpu.vulkan import _native
from dllama_gpu.vulkan.dispatch import Dispatch
from dllama_gpu.vulkan.failures import explained
from dllama_gpu.vulkan.limits import DeviceLimits, Tier
from dllama_gpu.vulkan.pipeline_cache import load_pipelines, save_pipelines
from dllama_gpu.vulkan.shaders import read_spirv
from dllama_gpu.vulkan.tiers import chosen_tier, limits_of

_KernelKey = tuple[str, tuple[int, ...], int, int, int]


def required_subgroup_size(dispatch: Dispatch, offered: _native.Subgroup) -> int:
    """The size that the kernel of a dispatch must have, 0 where the driver has no choice of sizes or none is needed."""
    return dispatch.subgroup_size if offered.min_size <= dispatch.subgroup_size <= offered.max_size else 0


class Gpu:
    """Opens the `index`th GPU that `_native.devices()` lists; `tier` None takes the best, or what the environment says.

    Raises DllamaError when it cannot be opened or cannot run the tier. With `validation` the Khronos layers check every
    use and `native.validation_messages()` tells what they found.
    """

    def __init__(self, index: int, *, tier: Tier | None = None, validation: bool = False) -> None:
        self.index = index
        with explained(f"the GPU vulkan:{index}", "it was opened"):
            known = _native.devices()
            # Under validation nothing is kept: a bad entry must not come from an earlier run.
            kept = b"" if validation or index >= len(known) else load_pipelines(known[index])
            self.native = _native.Device(index, validation, kept)
        self.info = self.native.info
        self.tier = chosen_tier(self.info) if tier is None else tier
        self.limits: DeviceLimits = limits_of(self.info)
        self._keeps = not validation
        self._kernels: dict[_KernelKey, _native.Kernel] = {}
        self._unsaved = False

    @property
    def label(self) -> str:
        """For messages, e.g. `vulkan:0 (NVIDIA GeForce RTX 3060)`."""
        return f"vulkan:{self.index} ({self.info.name})"

    def kernel(self, dispatch: Dispatch) -> _native.Kernel:
        """The kernel of a dispatch, compiled when it is first asked for."""
        name, constants = dispatch.shader, dispatch.specialization
        size = required_subgroup_size(dispatch, self.info.subgroup)
        n_bindings, push_bytes = len(dispatch.bindings), len(dispatch.push)
        key = (name, constants, n_bindings, push_bytes, size)
        if key not in self._kernels:
            with explained(self.label, f"the shader {name} was compiled"):
                self._kernels[key] = self.native.kernel(read_spirv(name), n_bindings, push_bytes, constants, size)
            self._unsaved = True
        return self._kernels[key]

    def keep_kernels(self) -> None:
        """Writes kernels compiled since the last time to disk for the next start."""
        if self._unsaved and self._keeps:
            save_pipelines(self.info, self.native.pipeline_cache())
        self._unsaved = False

    def free_memory(self) -> int:
        """Bytes of its own memory that this process may still take, as far as the driver says."""
        heaps = self.native.heaps()
        return max((heap.budget for heap in heaps if heap.device_local), default=0)
