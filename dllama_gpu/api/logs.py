"""Log lines: for people, or as one JSON object a line."""

from __future__ import annotations

import json
import logging
import sys
from datetime import datetime, timezone
from typing import Any

LEVELS = ("debug", "info", "warning", "error")
FORMATS = ("text", "json")


def set_up_logging(level: str, log_format: str) -> None:
    """Sends what the server and its libraries have to say to standard error."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_JsonFormatter() if log_format == "json" else _TextFormatter())
    for name in ("dllama_gpu", "uvicorn"):
        logger = logging.getLogger(name)
        logger.handlers = [handler]
        logger.propagate = False
        logger.setLevel(level.upper())
    # Clients that send rubbish or leave are no news for the operator.
    logging.getLogger("uvicorn").setLevel("DEBUG" if level == "debug" else "CRITICAL")
    logging.getLogger("uvicorn.access").disabled = True


class _TextFormatter(logging.Formatter):
    """`2026-01-31T12:00:00.123Z info request id=… status=200`."""

    def format(self, record: logging.LogRecord) -> str:
        words = [_time(record), record.levelname.lower(), _one_line(record.getMessage())]
        words.extend(f"{name}={_word(value)}" for name, value in _fields(record).items())
        return self._with_traceback(" ".join(words), record)

    def _with_traceback(self, line: str, record: logging.LogRecord) -> str:
        return f"{line}\n{self.formatException(record.exc_info)}" if record.exc_info else line


class _JsonFormatter(logging.Formatter):
    """One object a line, whatever a client sent."""

    def format(self, record: logging.LogRecord) -> str:
        fields: dict[str, Any] = {
            "time": _time(record),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **_fields(record),
        }
        if record.exc_info:
            fields["traceback"] = self.formatException(record.exc_info)
        return json.dumps(fields, default=str)


def _time(record: logging.LogRecord) -> str:
    moment = datetime.fromtimestamp(record.created, timezone.utc)
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _fields(record: logging.LogRecord) -> dict[str, Any]:
    fields = getattr(record, "fields", {})
    request_id = getattr(record, "request_id", None)
    return {**({} if request_id is None else {"request_id": request_id}), **fields}


def _word(value: Any) -> str:
    text = str(value)
    return text if text and text.isascii() and text.isprintable() and not set(text) & set(' "=') else json.dumps(text)


def _one_line(text: str) -> str:
    return " ".join(text.split())
