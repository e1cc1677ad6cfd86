"""`dllama-gpu chat`: a conversation with a model, on a terminal or over a pipe."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from dllama_gpu.cli.arguments import (
    Options,
    Parser,
    add_device_arguments,
    add_model_arguments,
    whole_number,
)
from dllama_gpu.cli.chat_template_option import add_chat_template_argument, check_chat_template
from dllama_gpu.cli.cluster_options import add_cluster_arguments, check_cluster_options
from dllama_gpu.cli.engine_options import add_engine_arguments
from dllama_gpu.cli.sampling_options import add_sampling_arguments, sampling_params

if TYPE_CHECKING:
    from dllama_gpu.cli.chat.session import Surface

PROGRAM = "dllama-gpu chat"
DESCRIPTION = '''Talk with a model.

On a terminal answers are shown as Markdown while they are written. Enter sends; Alt-Enter or
Ctrl-J begins a new line; Ctrl-C stops an answer; Ctrl-D ends the chat. /help lists the commands:
/reset, /retry, /system, /think, /save, /load, /stats, /quit.

Over a pipe each line is a message, or the lines between two """; the answers alone go to standard
output, and the chat ends with its input.

When the conversation has outgrown the context, its oldest turns are left out, and the chat says so.'''


def add_arguments(parser: Parser) -> None:
    """Declares the options."""
    add_model_arguments(parser)
    chat = parser.add_argument_group("chat")
    chat.add_argument("--system", metavar="TEXT", help="system message: how the model shall answer")
    add_chat_template_argument(chat)
    chat.add_argument("--plain", action="store_true", help="show answers as they are written, without Markdown")
    chat.add_argument("--no-history", action="store_true", help="do not keep what is typed for the next chat")
    text = parser.add_argument_group("generation")
    text.add_argument(
        "--steps",
        type=whole_number(1),
        metavar="N",
        help="tokens of an answer at most (default: as many as the context holds)",
    )
    add_sampling_arguments(parser)
    add_device_arguments(parser)
    add_cluster_arguments(parser, trace=False)
    add_engine_arguments(parser, slots=None)


def run(options: Options) -> int:
    """Chats until the input ends."""
    sampling = sampling_params(options, PROGRAM)
    check_chat_template(options.chat_template, PROGRAM)
    check_cluster_options(options, PROGRAM)

    from dllama_gpu.cli.chat.answering import Answering
    from dllama_gpu.cli.chat.conversation import Conversation
    from dllama_gpu.cli.chat.session import Session
    from dllama_gpu.cli.loading import open_chosen_model
    from dllama_gpu.cli.serving import start_engine
    from dllama_gpu.tokenizer.chat_template import ChatTemplate

    with open_chosen_model(options) as model:
        template = ChatTemplate.for_tokenizer(model.tokenizer, options.chat_template)
        with start_engine(model, options, PROGRAM) as serving:
            answering = Answering(serving.engine, model.tokenizer, template, sampling, options.steps)
            return Session(answering, _surface(options), Conversation(options.system)).run()


def _surface(options: Options) -> Surface:
    if sys.stdin is None or not (sys.stdin.isatty() and sys.stdout.isatty()):
        from dllama_gpu.cli.chat.plain import PlainSurface

        return PlainSurface()
    from dllama_gpu.cli.chat.places import history_file
    from dllama_gpu.cli.chat.terminal import TerminalSurface, open_history
    from dllama_gpu.cli.display import note

    history, warning = open_history(None if options.no_history else history_file())
    if warning is not None:
        note("warning", warning)
    return TerminalSurface(history, as_markdown=not options.plain)
