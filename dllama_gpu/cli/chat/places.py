"""Files that a chat keeps in the user's data folder."""

from __future__ import annotations

from pathlib import Path

from platformdirs import user_data_path

_APPLICATION = "dllama-gpu"


def history_file() -> Path:
    """What was typed in earlier chats."""
    return _folder() / "chat-history"


def rescue_file() -> Path:
    """A conversation that was under way when its model failed."""
    return _folder() / "last-chat.json"


def _folder() -> Path:
    return user_data_path(_APPLICATION, appauthor=False)
