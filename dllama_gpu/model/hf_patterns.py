"""Which layers of a model in a Hugging Face folder see less than all positions, or do not rotate."""

from __future__ import annotations

from typing import Any

from dllama_gpu.errors import DllamaError
from dllama_gpu.formats.json_file import JsonFields
from dllama_gpu.formats.shown import shown_value

_FULL, _SLIDING = "full_attention", "sliding_attention"


def window_pattern(config: JsonFields, n_layers: int) -> tuple[int, int]:
    """`sliding_window` and `global_interval` of the spec: every so manieth layer has no window.

    Raises DllamaError for a model whose layers with and without a window follow each other in another order.
    """
    window = config.number("sliding_window", int, 0)
    types = config.get("layer_types")
    if types is None:
        return window, config.number("sliding_window_pattern", int, 6)
    known = isinstance(types, list) and len(types) == n_layers and all(kind in (_FULL, _SLIDING) for kind in types)
    if not known:
        raise DllamaError(
            f"{config.path}: layer_types is {shown_value(types)}, but a list of {n_layers} times {_FULL} or {_SLIDING} "
            "is wanted"
        )
    has_window = [kind == _SLIDING for kind in types]
    if not any(has_window):
        return 0, 0
    interval = _interval(config, "layer_types", [not value for value in has_window])
    return window, interval


def no_rope_interval(config: JsonFields, n_layers: int) -> int:
    """Every so manieth layer rotates nothing; 0: all do. Raises DllamaError for layers in another order."""
    rotates = config.get("no_rope_layers")
    if rotates is None:
        return config.number("no_rope_layer_interval", int, 4)
    known = isinstance(rotates, list) and len(rotates) == n_layers and all(value in (0, 1) for value in rotates)
    if not known:
        raise DllamaError(
            f"{config.path}: no_rope_layers is {shown_value(rotates)}, but a list of {n_layers} times 0 or 1 is wanted"
        )
    return _interval(config, "no_rope_layers", [not value for value in rotates])


def nested_rope(config: JsonFields, kind: str) -> JsonFields:
    """The numbers of RoPE for layers of one kind, where `rope_parameters` has them apart; else those of all layers."""
    rope = config.nested("rope_parameters")
    return rope.nested(kind) if isinstance(rope.fields.get(kind), dict) else rope


def full_attention_rope(config: JsonFields) -> JsonFields:
    """The numbers of RoPE of layers that see everything."""
    return nested_rope(config, _FULL)


def local_rope_theta(config: JsonFields) -> float:
    """The base of RoPE in layers with a window. Raises DllamaError when it is scaled there."""
    rope = config.nested("rope_parameters")
    if not isinstance(rope.fields.get(_SLIDING), dict):
        return config.number("rope_local_base_freq", float, 10000.0)
    local = rope.nested(_SLIDING)
    if local.text("rope_type", "default") != "default":
        raise DllamaError(f"{config.path}: RoPE of layers with a window is scaled, which is not supported")
    return local.number("rope_theta", float)


def _interval(config: JsonFields, name: str, is_special: list[Any]) -> int:
    """N where exactly every n-th layer is special; 0 where none is."""
    if not any(is_special):
        return 0
    interval = is_special.index(True) + 1
    if any(bool(value) != (layer % interval == interval - 1) for layer, value in enumerate(is_special)):
        raise DllamaError(
            f"{config.path}: {name} says that layers differ in no regular order, but only every n-th may differ"
        )
    return interval
