"""The shared key of a cluster: where it is read from."""

from __future__ import annotations

import stat
import sys
from collections.abc import Mapping
from pathlib import Path

from dllama_gpu.errors import DllamaError

VARIABLE = "DLLAMA_GPU_KEY"
_SHORTEST = 16
_LONGEST = 4096
_HOW = "make one with: python3 -c 'import secrets; print(secrets.token_hex(32))'"


def read_key(path: Path | None, environment: Mapping[str, str]) -> tuple[bytes | None, str | None]:
    """The key in the file `path` or else in DLLAMA_GPU_KEY, None without either, and a warning if there is one.

    White space around the key does not count, so that a file may end with a line end or not. Raises DllamaError when
    the file cannot be read or holds no usable key.
    """
    if path is not None:
        return _from_file(path)
    text = environment.get(VARIABLE)
    if text is None:
        return None, None
    return _checked(text.encode("utf-8", "surrogateescape"), VARIABLE), None


def _from_file(path: Path) -> tuple[bytes, str | None]:
    try:
        with path.open("rb") as file:
            data = file.read(_LONGEST + 1)
        mode = path.stat().st_mode
    except FileNotFoundError:
        raise DllamaError(f"the key file {path} does not exist; check the path, or {_HOW}") from None
    except IsADirectoryError:
        raise DllamaError(f"{path} is a folder; give a file that holds the key") from None
    except OSError as error:
        raise DllamaError(f"the key file {path} cannot be read ({error.strerror or error})") from None
    warning = None
    if sys.platform != "win32" and mode & (stat.S_IROTH | stat.S_IRGRP):
        warning = f"other users of this machine can read the key file {path}; chmod 600 {path} keeps it secret"
    return _checked(data, f"the key file {path}"), warning


def _checked(data: bytes, where: str) -> bytes:
    key = data.strip()
    if len(data) > _LONGEST:
        raise DllamaError(f"{where} has more than {_LONGEST} bytes, so it is probably no key; {_HOW}")
    if not key:
        raise DllamaError(f"{where} is empty; {_HOW}")
    if len(key) < _SHORTEST:
        raise DllamaError(f"{where} holds a key of {len(key)} bytes, but at least {_SHORTEST} are needed; {_HOW}")
    return key
