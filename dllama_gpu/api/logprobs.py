"""Logprobs in the two shapes of OpenAI's API."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from dllama_gpu.engine.events import TokenEvent
from dllama_gpu.tokenizer.tokenizer import Tokenizer

_LOWEST = -9999.0  # what OpenAI says of a token that practically cannot be; JSON has no infinity


def chat_logprobs_json(tokenizer: Tokenizer, tokens: Sequence[TokenEvent]) -> dict[str, Any]:
    """`choices[].logprobs` of a chat: each token with its text, bytes and likeliest alternatives."""
    return {
        "content": [
            {
                **_entry(tokenizer, event.token, event.logprob),
                "top_logprobs": [_entry(tokenizer, top.token, top.logprob) for top in event.top_logprobs],
            }
            for event in tokens
        ],
        "refusal": None,
    }


def text_logprobs_json(tokenizer: Tokenizer, tokens: Sequence[TokenEvent], offset: int) -> dict[str, Any]:
    """`choices[].logprobs` of a plain completion, whose first token begins `offset` characters into its text."""
    texts = [_text(tokenizer.token_bytes(event.token)) for event in tokens]
    offsets = []
    for text in texts:
        offsets.append(offset)
        offset += len(text)
    return {
        "tokens": texts,
        "token_logprobs": [_finite(event.logprob) for event in tokens],
        "top_logprobs": [
            {_text(tokenizer.token_bytes(top.token)): _finite(top.logprob) for top in event.top_logprobs}
            for event in tokens
        ],
        "text_offset": offsets,
    }


def _entry(tokenizer: Tokenizer, token: int, logprob: float | None) -> dict[str, Any]:
    raw = tokenizer.token_bytes(token)
    return {"token": _text(raw), "logprob": _finite(logprob), "bytes": list(raw)}


def _text(raw: bytes) -> str:
    return raw.decode("utf-8", "replace")


def _finite(logprob: float | None) -> float:
    return _LOWEST if logprob is None or not math.isfinite(logprob) else max(logprob, _LOWEST)
