"""Why a request is not taken."""

from __future__ import annotations

from dllama_gpu.errors import DllamaError


class QueueFullError(DllamaError):
    """Too many requests wait already; another attempt makes sense in `retry_after_seconds`."""

    def __init__(self, message: str, retry_after_seconds: float) -> None:
        super().__init__(message)
        self.retry_after_seconds = retry_after_seconds


class EngineUnavailableError(DllamaError):
    """The model cannot run at the moment, because a worker or a device was lost; or the engine was closed."""

    def __init__(self, message: str, retry_after_seconds: float) -> None:
        super().__init__(message)
        self.retry_after_seconds = retry_after_seconds


class PromptTooLongError(DllamaError):
    """The prompt has more tokens than the context holds."""

    def __init__(self, n_tokens: int, seq_len: int) -> None:
        super().__init__(f"the prompt has {n_tokens} tokens, but the context holds {seq_len}; shorten it")
        self.n_tokens = n_tokens
        self.seq_len = seq_len
