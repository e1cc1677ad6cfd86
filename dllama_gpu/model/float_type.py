"""Number formats of weights and activations."""

from __future__ import annotations

from enum import Enum


class FloatType(Enum):
    """How numbers are stored; quantized types hold blocks of 32 elements that run along a row.

    ========  =====================  =============================================================
    type      bytes / 32 elements    layout and value
    ========  =====================  =============================================================
    F32       128                    IEEE single
    F16       64                     IEEE half
    BF16      64                     upper half of an IEEE single
    Q40       18                     f16 d, 16 bytes; value = (nibble - 8) * d  (GGUF Q4_0)
    Q41       20                     f16 d, f16 m, 16 bytes; value = nibble * d + m  (GGUF Q4_1)
    Q80       34                     f16 d, 32 int8; value = q * d  (GGUF Q8_0)
    ========  =====================  =============================================================

    The low nibble of byte j is element j, the high nibble is element j + 16.
    """

    F32 = "f32"
    F16 = "f16"
    BF16 = "bf16"
    Q40 = "q40"
    Q41 = "q41"
    Q80 = "q80"

    @property
    def block_size(self) -> int:
        """Elements in one block; a row's length must be a multiple of it."""
        return 32 if self in (FloatType.Q40, FloatType.Q41, FloatType.Q80) else 1

    @property
    def block_bytes(self) -> int:
        """Bytes of one block of `block_size` elements."""
        return _BLOCK_BYTES[self]

    @property
    def is_quantized(self) -> bool:
        """Whether elements share a scale per block."""
        return self.block_size > 1

    def row_bytes(self, n_elements: int) -> int:
        """Bytes of a row of `n_elements` elements.

        Raises ValueError when `n_elements` is not a whole number of blocks.
        """
        blocks, rest = divmod(n_elements, self.block_size)
        if rest:
            raise ValueError(f"a {self.value} row needs a multiple of {self.block_size} elements, not {n_elements}")
        return blocks * self.block_bytes


_BLOCK_BYTES = {
    FloatType.F32: 4,
    FloatType.F16: 2,
    FloatType.BF16: 2,
    FloatType.Q40: 18,
    FloatType.Q41: 20,
    FloatType.Q80: 34,
}
