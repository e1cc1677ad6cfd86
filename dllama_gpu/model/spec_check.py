"""Checks that a model's numbers can be those of a real model, before anything is computed or allocated from them."""

from __future__ import annotations

from pathlib import Path

from dllama_gpu.errors import DllamaError
from dllama_gpu.model.spec import ModelSpec

# Far above every published model, and low enough that no product of two of them is a surprise.
_LARGEST = {
    "dim": 1 << 20,
    "hidden_dim": 1 << 22,
    "n_layers": 4096,
    "n_heads": 65536,
    "n_kv_heads": 65536,
    "head_dim": 65536,
    "vocab_size": 1 << 24,
    "max_seq_len": (1 << 31) - 1,
}
_LARGEST_OPTIONAL = {"sliding_window": (1 << 31) - 1, "global_interval": 4096, "no_rope_interval": 4096}
_LARGEST_EXPERTS = {"n_experts": 4096, "n_active_experts": 4096, "moe_hidden_dim": 1 << 22}


def check_spec(spec: ModelSpec, path: Path) -> None:
    """Raises DllamaError, naming the file, the number, its value and the values wanted, when `spec` is implausible."""
    limits = _LARGEST | (_LARGEST_EXPERTS if spec.architecture.has_experts else {})
    for name, largest in limits.items():
        value = getattr(spec, name)
        if not 1 <= value <= largest:
            raise _implausible(path, f"{name} is {value}", f"1 to {largest}")
    for name, largest in _LARGEST_OPTIONAL.items():
        value = getattr(spec, name)
        if not 0 <= value <= largest:
            raise _implausible(path, f"{name} is {value}", f"0 to {largest}")
    if spec.n_heads % spec.n_kv_heads:
        raise _implausible(path, f"n_kv_heads is {spec.n_kv_heads}", f"a divisor of n_heads, which is {spec.n_heads}")
    if spec.head_dim % 2:
        raise _implausible(path, f"head_dim is {spec.head_dim}", "an even number, as RoPE turns pairs")
    if spec.n_experts and not spec.architecture.has_experts:
        raise _implausible(path, f"n_experts is {spec.n_experts}", f"0 for the architecture {spec.architecture.value}")
    if spec.n_active_experts > spec.n_experts:
        raise _implausible(path, f"n_active_experts is {spec.n_active_experts}", f"at most n_experts, {spec.n_experts}")
    if not 0.0 < spec.norm_epsilon < 1.0:
        raise _implausible(path, f"norm_epsilon is {spec.norm_epsilon:g}", "a number between 0 and 1")
    if not 1.0 <= spec.rope_theta <= 1e12:
        raise _implausible(path, f"rope_theta is {spec.rope_theta:g}", "a number from 1 to 1e12")
    if spec.local_rope_theta and not 1.0 <= spec.local_rope_theta <= 1e12:
        raise _implausible(path, f"local_rope_theta is {spec.local_rope_theta:g}", "a number from 1 to 1e12")
    if not 0.0 <= spec.attention_scale <= 1e3:
        raise _implausible(path, f"attention_scale is {spec.attention_scale:g}", "a number from 0 to 1000")
    _check_rope_scaling(spec, path)
    _check_row_lengths(spec, path)


def _check_rope_scaling(spec: ModelSpec, path: Path) -> None:
    scaling = spec.rope_scaling
    if scaling is None:
        return
    low, high = scaling.low_freq_factor, scaling.high_freq_factor
    if not 1.0 <= scaling.factor <= 1e6:
        raise _implausible(path, f"rope_scaling_factor is {scaling.factor:g}", "a number from 1 to 1e6")
    if not 0.0 < low <= high <= 1e6:
        found = f"rope_scaling_low_freq_factor is {low:g} and rope_scaling_high_freq_factor {high:g}"
        raise _implausible(path, found, "numbers above 0, the low one not above the high one")
    beta_fast, beta_slow = scaling.beta_fast, scaling.beta_slow
    if not (beta_fast == beta_slow == 0.0 or 0.0 < beta_slow < beta_fast <= 1e6):
        found = f"the YaRN numbers beta_fast and beta_slow are {beta_fast:g} and {beta_slow:g}"
        raise _implausible(path, found, "numbers above 0, the first above the second")
    if beta_fast and (spec.rope_theta == 1.0 or not scaling.original_max_seq_len):
        found = f"with YaRN rope_theta is {spec.rope_theta:g} and the original length {scaling.original_max_seq_len}"
        raise _implausible(path, found, "a number above 1 each")
    if not 0.0 < scaling.attention_factor <= 1e3:
        raise _implausible(path, f"attention_factor is {scaling.attention_factor:g}", "a number up to 1000")
    if not 0 <= scaling.original_max_seq_len < 1 << 31:
        raise _implausible(
            path, f"rope_scaling_orig_max_seq_len is {scaling.original_max_seq_len}", "0 or a number of tokens"
        )


def _check_row_lengths(spec: ModelSpec, path: Path) -> None:
    block = spec.weight_type.block_size
    ffn = "moe_hidden_dim" if spec.architecture.has_experts else "hidden_dim"
    for name in ("dim", "q_dim", ffn):
        value = getattr(spec, name)
        if value % block:
            wanted = f"a multiple of {block}, the block length of {spec.weight_type.value} weights"
            raise _implausible(path, f"{name} is {value}", wanted)


def _implausible(path: Path, found: str, wanted: str) -> DllamaError:
    return DllamaError(
        f"{path}: {found}, but {wanted} is wanted; the file is damaged or its model is of a kind not supported"
    )
