"""`dllama-gpu api`: an OpenAI-compatible server."""

from __future__ import annotations

import os
import re
import time
from pathlib import Path
from typing import TYPE_CHECKING

from dllama_gpu.cli.arguments import (
    Options,
    Parser,
    UsageError,
    add_device_arguments,
    add_model_arguments,
    whole_number,
)
from dllama_gpu.cli.cluster_options import add_cluster_arguments, byte_size, check_cluster_options, seconds
from dllama_gpu.cli.display import note
from dllama_gpu.cli.engine_options import add_engine_arguments
from dllama_gpu.cli.failures import SUCCESS
from dllama_gpu.cli.sampling_options import add_sampling_arguments, describe_sampling, sampling_params
from dllama_gpu.cli.text_file import read_text
from dllama_gpu.errors import DllamaError

if TYPE_CHECKING:
    from dllama_gpu.api.service import Settings
    from dllama_gpu.net.addresses import Address
    from dllama_gpu.tokenizer.chat_template import ChatTemplate
    from dllama_gpu.tokenizer.tokenizer import Tokenizer

PROGRAM = "dllama-gpu api"
_ORIGIN = re.compile(r"[a-z][a-z0-9+.-]*://[^/\s]+")  # what a browser sends as Origin
DESCRIPTION = """Serve a model to many users at once through OpenAI's API, and a page to chat with it at /.

Any client for OpenAI's API works with the base URL http://HOST:PORT/v1. Ctrl-C ends the server;
answers under way get --drain-seconds to come to an end. docs/api.md describes every field."""

_DEFAULT_PORT = 9990
_DEFAULT_SLOTS = 8
_KEY_VARIABLE = "DLLAMA_GPU_API_KEY"


def add_arguments(parser: Parser) -> None:
    """Declares the options."""
    add_model_arguments(parser)
    parser.add_argument(
        "--chat-template",
        metavar="NAME",
        help="use this template in place of the model's: llama2, llama3, deepseek3 or chatml",
    )
    parser.add_argument(
        "--model-name",
        action="append",
        metavar="NAME",
        help="what clients call the model; may be given several times (default: the file's name)",
    )
    parser.add_argument(
        "--reasoning-format",
        choices=("auto", "deepseek", "none"),
        default="auto",
        help="where answers of chats tell what a model thinks between <think> and </think>: deepseek: in "
        "reasoning_content; none: in content, tags and all; auto: as deepseek if the chat template knows the tags "
        "(default: auto)",
    )
    network = parser.add_argument_group("network")
    network.add_argument(
        "--host",
        default="127.0.0.1",
        metavar="ADDRESS",
        help="listen on this address; 0.0.0.0 serves other machines too (default: %(default)s)",
    )
    network.add_argument(
        "--port", type=whole_number(0, 65535), default=_DEFAULT_PORT, metavar="N", help="(default: %(default)s)"
    )
    network.add_argument(
        "--api-key",
        action="append",
        metavar="KEY",
        help=f"serve only who knows this key; may be given several times (default: the one in {_KEY_VARIABLE}, if set)",
    )
    network.add_argument(
        "--api-key-file", type=Path, metavar="FILE", help="the same from a file, a key a line, hidden from `ps`"
    )
    network.add_argument(
        "--cors-origin",
        action="append",
        metavar="ORIGIN",
        help="let pages of this origin (https://example.org, or *) use the server from a browser; may be repeated",
    )
    network.add_argument(
        "--allow-host",
        action="append",
        metavar="NAME",
        help="a name in the public DNS under which this server is reached; may be repeated (not needed with --api-key)",
    )
    limits = parser.add_argument_group("limits")
    limits.add_argument(
        "--request-timeout",
        type=seconds,
        metavar="SECONDS",
        help="an answer ends after this time, waiting for a slot included (default: never)",
    )
    limits.add_argument(
        "--max-body", type=byte_size, default=16 << 20, metavar="SIZE", help="largest body of a request (default: 16M)"
    )
    limits.add_argument(
        "--drain-seconds",
        type=_patience,
        default=5.0,
        metavar="SECONDS",
        help="how long answers under way may go on when the server ends (default: 5)",
    )
    logs = parser.add_argument_group("logs")
    logs.add_argument("--log-level", choices=("debug", "info", "warning", "error"), default="info")
    logs.add_argument("--log-format", choices=("text", "json"), default="text")
    add_engine_arguments(parser, slots=_DEFAULT_SLOTS)
    add_sampling_arguments(parser)
    add_device_arguments(parser)
    add_cluster_arguments(parser, trace=False)


def run(options: Options) -> int:
    """Serves until Ctrl-C or SIGTERM."""
    sampling = sampling_params(options, PROGRAM)
    check_cluster_options(options, PROGRAM)
    settings = _settings(options)

    from dataclasses import replace

    from dllama_gpu.api.app import make_app
    from dllama_gpu.api.logs import set_up_logging
    from dllama_gpu.api.server import ApiServer
    from dllama_gpu.api.service import Service
    from dllama_gpu.cli.loading import open_chosen_model
    from dllama_gpu.cli.serving import start_engine
    from dllama_gpu.net.addresses import Address, listen

    set_up_logging(options.log_level, options.log_format)
    # Before the model is loaded, which may take minutes.
    listeners = listen(options.host, options.port)
    try:
        with open_chosen_model(options) as model, start_engine(model, options, PROGRAM) as serving:
            template = _template(model.tokenizer, options.chat_template)
            # A seed of the server's own would give every user the same text.
            settings = replace(settings, sampling=replace(sampling, seed=options.seed))
            service = Service(
                engine=serving.engine,
                tokenizer=model.tokenizer,
                template=template,
                context=serving.engine.seq_len,
                settings=settings,
                created=int(time.time()),
                nodes=serving.nodes,
            )
            note("sampling", describe_sampling(settings.sampling) + ", where a request says nothing else")
            addresses = [Address(*listener.getsockname()[:2]) for listener in listeners]
            for line in _warnings(settings, addresses):
                note("warning", line)
            note("serving", ", ".join(f"http://{address}" for address in addresses))
            server = ApiServer(make_app(service), service.active, options.drain_seconds)
            server.run(sockets=listeners)
            note("end", "nothing is served any more")
    finally:
        for listener in listeners:
            listener.close()
    return SUCCESS


def _settings(options: Options) -> Settings:
    """Raises UsageError for a name or key that cannot be right."""
    from dllama_gpu.api.service import Settings

    names = tuple(dict.fromkeys(options.model_name or [options.model.stem or options.model.name]))
    if not all(names):
        raise UsageError("--model-name is empty, but clients must be able to say it", PROGRAM)
    for origin in options.cors_origin or ():
        if origin not in ("*", "null") and not _ORIGIN.fullmatch(origin):
            raise UsageError(
                f"--cors-origin {origin} is no origin, so it would match no page; write it as https://example.org, "
                "without a path, or * for all",
                PROGRAM,
            )
    return Settings(
        model_names=names,
        api_keys=_keys(options),
        host_names=(options.host, *(options.allow_host or ())),
        cors_origins=tuple(options.cors_origin or ()),
        reasoning_format=options.reasoning_format,
        max_body_bytes=options.max_body,
        request_seconds=options.request_timeout,
    )


def _keys(options: Options) -> tuple[str, ...]:
    keys = list(options.api_key or ())
    if options.api_key_file is not None:
        found = read_text(options.api_key_file).split()
        if not found:
            raise DllamaError(f"--api-key-file {options.api_key_file} holds no key; write one a line")
        keys.extend(found)
    if not keys and os.environ.get(_KEY_VARIABLE):
        keys.append(os.environ[_KEY_VARIABLE])
    for key in keys:
        if not (key.isascii() and key.isprintable() and key.strip() == key and key):
            raise UsageError("an API key must be printable ASCII without blanks around it", PROGRAM)
    return tuple(keys)


def _template(tokenizer: Tokenizer, kind: str | None) -> ChatTemplate | None:
    """The model's chat template, None where it has none. Raises DllamaError for a wrong --chat-template."""
    from dllama_gpu.tokenizer.chat_template import ChatTemplate

    if kind is None and tokenizer.chat_template is None:
        note("warning", "the model has no chat template, so chats are refused; choose one with --chat-template")
        return None
    return ChatTemplate.for_tokenizer(tokenizer, kind)


def _warnings(settings: Settings, addresses: list[Address]) -> list[str]:
    from dllama_gpu.net.addresses import is_loopback

    if settings.api_keys or all(is_loopback(address.host) for address in addresses):
        return []
    return ["no key: everyone who reaches this port over the network can use the model; --api-key restricts it"]


def _patience(text: str) -> float:
    """A type for options: seconds, 0 too."""
    if text.strip() in ("0", "0.0"):
        return 0.0
    return seconds(text)
