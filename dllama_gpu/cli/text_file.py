"""Text that commands read."""

from __future__ import annotations

import sys
from pathlib import Path

from dllama_gpu.errors import DllamaError


def read_text(path: Path) -> str:
    """The text in a UTF-8 file; `-` is standard input. A byte order mark is no part of it.

    Raises DllamaError when there is no such file, it is a folder or unreadable, or its bytes are not UTF-8.
    """
    name = "standard input" if str(path) == "-" else str(path)
    try:
        data = sys.stdin.buffer.read() if str(path) == "-" else path.read_bytes()
    except FileNotFoundError:
        raise DllamaError(f"{name} does not exist; check the path") from None
    except IsADirectoryError:
        raise DllamaError(f"{name} is a folder; give a text file") from None
    except OSError as error:
        raise DllamaError(f"{name} cannot be read ({error.strerror or error})") from error
    try:
        return data.decode("utf-8-sig").replace("\r\n", "\n")
    except UnicodeDecodeError as error:
        raise DllamaError(
            f"{name} is not UTF-8 text: byte {error.start} is 0x{data[error.start]:02x}; convert it to UTF-8"
        ) from None
