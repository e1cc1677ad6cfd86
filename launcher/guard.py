"""The outermost layer of a program: every failure a person can meet becomes a sentence and an exit status."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Callable

from dllama_gpu.errors import DllamaError


def guarded(program: Callable[[], int]) -> int:
    """Runs `program` and returns its exit status; 1 after a failure, and as shells have it 130 after
    Ctrl-C and 141 when the reader of the output went away.

    With DLLAMA_DEBUG=1 a failure shows its traceback.
    """
    try:
        status = program()
        sys.stdout.flush()
        return status
    except KeyboardInterrupt:
        print("\nstopped", file=sys.stderr)
        return 130
    except BrokenPipeError:  # as in `--list | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except (DllamaError, OSError) as error:
        if os.environ.get("DLLAMA_DEBUG") == "1":
            raise
        print(explain_os_error(error) if isinstance(error, OSError) else error, file=sys.stderr)
        return 1


def explain_os_error(error: OSError) -> str:
    """A sentence, with the way out, for what the operating system refused."""
    where = f" {error.filename}" if error.filename else ""
    if error.errno == errno.ENOSPC:
        return f"The disk is full{f' at{where}' if where else ''}; free some space and run this again."
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return (
            f"Cannot write{where} ({error.strerror}); put the project into a folder that you may write to, "
            "or let DLLAMA_GPU_VENV name one for the environment."
        )
    return f"The system refused{where}: {error.strerror or error}."
