"""What `/stats` says."""

from __future__ import annotations

from dllama_gpu.cli.chat.answering import Answering
from dllama_gpu.cli.chat.conversation import Conversation
from dllama_gpu.cli.display import size_text
from dllama_gpu.engine.machine import peak_memory


def context_text(n_used: int, seq_len: int) -> str:
    """How full the context is."""
    return f"context {n_used} of {seq_len}"


def rate_text(n_tokens: int, seconds: float) -> str:
    """Speed, or nothing where there was nothing to measure."""
    return f"{n_tokens / seconds:.1f} tokens/s" if n_tokens and seconds > 0 else ""


def statistics_text(answering: Answering, conversation: Conversation, n_used: int) -> str:
    """Context, the last answer, memory; one labelled line each."""
    n_turns, n_left_out = len(conversation.turns), conversation.n_left_out
    left_out = f", the oldest {n_left_out} of them left out" if n_left_out else ""
    lines = [
        ("context", f"{n_used} of {answering.seq_len} positions are in use"),
        ("conversation", f"{n_turns} turn{'' if n_turns == 1 else 's'}{left_out}"),
    ]
    last = answering.statistics
    if last is None:
        lines.append(("last answer", "none yet"))
    else:
        work = last.work
        n_computed = work.n_prompt_tokens
        prefill, decode = (
            rate_text(n_computed, work.prefill_seconds),
            rate_text(work.n_decoded_tokens, work.decode_seconds),
        )
        lines += [
            (
                "prompt",
                f"{last.n_prompt_tokens} tokens, {last.n_reused_tokens} of them kept from before, {n_computed} computed"
                + (f" at {prefill}" if prefill else ""),
            ),
            ("answer", f"{last.n_answer_tokens} tokens" + (f", {decode}" if decode else "")),
        ]
        if work.time_to_first_token is not None:
            lines.append(("first token", f"after {1000 * work.time_to_first_token:.0f} ms"))
    peak = peak_memory()
    if peak is not None:
        lines.append(("peak memory", size_text(peak)))
    return "\n".join(f"{label:<12} {text}" for label, text in lines)
