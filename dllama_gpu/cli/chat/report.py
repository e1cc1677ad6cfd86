"""What `/stats` says."""

from __future__ import annotations

from dllama_gpu.cli.chat.answering import Outcome
from dllama_gpu.cli.chat.conversation import Conversation
from dllama_gpu.cli.display import size_text
from dllama_gpu.engine.machine import peak_memory


def context_text(n_used: int, seq_len: int) -> str:
    """How full the context is."""
    return f"context {n_used} of {seq_len}"


def statistics_text(conversation: Conversation, n_used: int, seq_len: int, outcome: Outcome | None) -> str:
    """Context, the last answer, memory; one labelled line each."""
    n_turns, n_left_out = len(conversation.turns), conversation.n_left_out
    left_out = f", the oldest {n_left_out} of them left out" if n_left_out else ""
    lines = [
        ("context", f"{n_used} of {seq_len} positions are in use"),
        ("conversation", f"{n_turns} turn{'' if n_turns == 1 else 's'}{left_out}"),
        *([("last answer", "none yet")] if outcome is None else _answer_lines(outcome)),
    ]
    peak = peak_memory()
    if peak is not None:
        lines.append(("peak memory", size_text(peak)))
    return "\n".join(f"{label:<12} {text}" for label, text in lines)


def _answer_lines(outcome: Outcome) -> list[tuple[str, str]]:
    usage, timings = outcome.usage, outcome.timings
    n_computed = usage.n_prompt_tokens - usage.n_cached_tokens
    prompt = f"{usage.n_prompt_tokens} tokens, {usage.n_cached_tokens} of them kept from before, {n_computed} computed"
    answer = f"{usage.n_generated_tokens} tokens"
    first = timings.first_token_seconds
    if first is None:
        return [("prompt", prompt), ("answer", answer)]
    drafted = f", {usage.n_accepted_tokens} of {usage.n_drafted_tokens} guessed right" if usage.n_drafted_tokens else ""
    return [
        ("prompt", prompt + _rate(n_computed, first - timings.queued_seconds)),
        ("answer", answer + _rate(usage.n_generated_tokens - 1, timings.total_seconds - first) + drafted),
        ("first token", f"after {1000 * first:.0f} ms"),
    ]


def _rate(n_tokens: int, seconds: float) -> str:
    return f", {n_tokens / seconds:.1f} tokens/s" if n_tokens > 0 and seconds > 0 else ""
