"""Files that a chat keeps in the user's data folder."""

from __future__ import annotations

from pathlib import Path

from platformdirs import user_data_path


def history_file() -> Path:
    """What was typed in earlier chats."""
    return user_data_path("dllama-gpu", appauthor=False) / "chat-history"
