"""Configurations whose layers differ from each other, or leave out what the architecture has always been."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from dllama_gpu.errors import DllamaError
from dllama_gpu.formats.json_file import JsonFields
from dllama_gpu.model.float_type import FloatType
from dllama_gpu.model.hf_config import spec_from_config
from dllama_gpu.model.hf_patterns import local_rope_theta, no_rope_interval, window_pattern
from dllama_gpu.model.spec import RopeScaling, RopeStyle

FULL, SLIDING = "full_attention", "sliding_attention"


def config(**fields: Any) -> JsonFields:
    return JsonFields(Path("config.json"), fields)


@pytest.mark.parametrize(
    ("types", "expected"),
    [
        ([SLIDING] * 5 + [FULL] + [SLIDING] * 3, (7, 6)),
        ([SLIDING, FULL] * 2, (7, 2)),
        ([SLIDING] * 4, (7, 0)),
        ([FULL] * 4, (0, 0)),
        (None, (7, 6)),
    ],
)
def test_windows_follow_from_the_types_of_layers(types: list[str] | None, expected: tuple[int, int]) -> None:
    assert window_pattern(config(sliding_window=7, layer_types=types), len(types or [])) == expected


@pytest.mark.parametrize(
    ("types", "message"),
    [
        ([FULL, SLIDING, SLIDING], "layer_types says that layers differ in no regular order"),
        ([SLIDING, FULL, FULL], "layer_types says that layers differ in no regular order"),
        ([SLIDING, FULL], "a list of 3 times full_attention or sliding_attention is wanted"),
        ([SLIDING, FULL, "chunked_attention"], "a list of 3 times"),
        ("all", "layer_types is 'all'"),
    ],
)
def test_windows_in_no_order_are_refused(types: object, message: str) -> None:
    with pytest.raises(DllamaError, match=message):
        window_pattern(config(sliding_window=7, layer_types=types), 3)


def test_layers_without_rope_are_every_nth() -> None:
    assert no_rope_interval(config(no_rope_layers=[1, 1, 1, 0, 1]), 5) == 4
    assert no_rope_interval(config(no_rope_layers=[1, 1, 1]), 3) == 0
    assert no_rope_interval(config(no_rope_layer_interval=3), 9) == 3
    assert no_rope_interval(config(), 9) == 4
    with pytest.raises(DllamaError, match="no_rope_layers says that layers differ in no regular order"):
        no_rope_interval(config(no_rope_layers=[1, 0, 0]), 3)
    with pytest.raises(DllamaError, match="a list of 3 times 0 or 1 is wanted"):
        no_rope_interval(config(no_rope_layers=[1, 2, 0]), 3)


def test_scaled_rope_of_layers_with_a_window_is_refused() -> None:
    rope = {FULL: {"rope_theta": 1e6}, SLIDING: {"rope_theta": 1e4, "rope_type": "linear", "factor": 2.0}}
    with pytest.raises(DllamaError, match="RoPE of layers with a window is scaled"):
        local_rope_theta(config(rope_parameters=rope))


def test_gemma_3_4b_as_it_was_published() -> None:
    """Its configuration leaves out most numbers of the text part."""
    text = {
        "hidden_size": 2560,
        "intermediate_size": 10240,
        "model_type": "gemma3_text",
        "num_hidden_layers": 34,
        "rope_scaling": {"factor": 8.0, "rope_type": "linear"},
        "sliding_window": 1024,
    }
    spec = spec_from_config(
        config(model_type="gemma3", text_config=text, vision_config={}), weight_type=FloatType.BF16, has_head=False
    )
    assert (spec.n_heads, spec.n_kv_heads, spec.head_dim, spec.vocab_size) == (8, 4, 256, 262208)
    assert (spec.sliding_window, spec.global_interval, spec.max_seq_len) == (1024, 6, 131072)
    assert (spec.rope_theta, spec.local_rope_theta, spec.attention_scale) == (1e6, 1e4, 1 / 16)
    assert spec.rope_scaling == RopeScaling(8.0, 1.0, 1.0, 0)
    assert spec.rope_style is RopeStyle.HALF_SPLIT
    assert spec.tied_embeddings
    assert spec.norm_epsilon == 1e-6
