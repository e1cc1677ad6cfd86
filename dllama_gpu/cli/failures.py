"""The outermost layer of the program: every failure becomes a sentence and an exit status."""

from __future__ import annotations

import contextlib
import errno
import os
import sys
import traceback
from collections.abc import Callable

from dllama_gpu.cli.arguments import UsageError
from dllama_gpu.cli.terminal_text import one_line
from dllama_gpu.errors import DllamaError

SUCCESS, FAILURE, WRONG_USAGE = 0, 1, 2
INTERRUPTED = 130  # 128 + SIGINT, as shells say it
READER_GONE = 141  # 128 + SIGPIPE


def guarded(name: str, program: Callable[[], int]) -> int:
    """Runs `program` and returns its exit status; failures are told on standard error after `name`.

    With DLLAMA_DEBUG=1 the traceback comes first.
    """
    try:
        status = program()
        sys.stdout.flush()
    except SystemExit as end:  # --help and --version
        return end.code if isinstance(end.code, int) else SUCCESS
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:
        _drop_output()
        return READER_GONE
    except Exception as error:
        if isinstance(error, OSError):
            _drop_output()
        if _is_broken_off_wait(error):
            return INTERRUPTED
        with contextlib.suppress(OSError):  # nobody may be left to read it
            if os.environ.get("DLLAMA_DEBUG") == "1":
                traceback.print_exc()
            print(f"{name}: error: {one_line(explain(error))}", file=sys.stderr)
        return WRONG_USAGE if isinstance(error, UsageError) else FAILURE
    return status


def _is_broken_off_wait(error: BaseException) -> bool:
    """Whether `error` is what Ctrl-C leaves of a wait for a lock.

    A lock that is interrupted in `Condition.wait` is not held when the wait's `with` lets go of it, for which CPython
    raises a RuntimeError in place of the KeyboardInterrupt.
    """
    if not isinstance(error, RuntimeError):
        return False
    before = error.__context__
    while before is not None and not isinstance(before, KeyboardInterrupt):
        before = before.__context__
    return before is not None


def explain_lost_files(name: str) -> None:
    """Lets the program say why it ends when a file that it has mapped is cut short: the system then kills it."""
    from dllama_gpu.cpu import _native

    _native.explain_bus_error(
        f"\n{name}: error: a file that was being read was cut short, or its disk went away; let a model's files be "
        "while they are in use, and check that they are complete\n"
    )


def explain(error: Exception) -> str:
    """A sentence, with the way out, for any failure."""
    if isinstance(error, DllamaError):
        return str(error)
    if isinstance(error, MemoryError):
        return "there is not enough memory; use a smaller model or a smaller --max-seq-len, or close other programs"
    if isinstance(error, OSError):
        return _explain_os_error(error)
    what = f"{type(error).__name__}: {error}".splitlines()[0]
    return f"this should not have happened: {what}; please report it, together with what DLLAMA_DEBUG=1 shows"


def _explain_os_error(error: OSError) -> str:
    where = f" {error.filename}" if error.filename else ""
    if error.errno == errno.ENOSPC:
        return f"the disk is full{' at' + where if where else ''}; free some space and run this again"
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return f"the system does not allow access to{where or ' a file'} ({error.strerror}); check its permissions"
    return f"the system refused{where}: {error.strerror or error}"


def _drop_output() -> None:
    """Keeps what is still in the buffer of standard output from failing once more when the interpreter ends."""
    with contextlib.suppress(OSError, ValueError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)
