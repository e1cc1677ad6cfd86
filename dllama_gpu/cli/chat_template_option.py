"""The option that chooses a chat template by its name."""

from __future__ import annotations

import argparse

from dllama_gpu.cli.arguments import UsageError
from dllama_gpu.errors import DllamaError


def add_chat_template_argument(group: argparse._ArgumentGroup) -> None:
    """Declares --chat-template."""
    group.add_argument(
        "--chat-template",
        metavar="NAME",
        help="use this template in place of the model's: llama2, llama3, deepseek3 or chatml",
    )


def check_chat_template(name: str | None, program: str) -> None:
    """Raises UsageError for a name that --chat-template does not take."""
    if name is None:
        return
    from dllama_gpu.tokenizer.chat_kinds import chat_kind

    try:
        chat_kind(name)
    except DllamaError as error:
        raise UsageError(str(error), program) from None
