"""Every failure -> one line on stderr and an exit code.

1 = internal or non-finite, 2 = the user's mistake (and a full disk), 130 = interrupted.
"""

import errno
import os
import sys
import traceback
from collections.abc import Iterator
from contextvars import ContextVar
from pathlib import Path

import typer

INTERRUPTED = 130
current_run: ContextVar[Path | None] = ContextVar("current_run", default=None)
"""The run directory of the command in progress: where the traceback of a defect goes."""

_TRACEBACK = "traceback.txt"
_NO_SPACE = {errno.ENOSPC, errno.EDQUOT}
_NO_SPACE_TEXTS = ("No space left on device", "os error 28", "Disk quota exceeded")
_NO_MEMORY_TEXTS = ("can't allocate memory", "CUDA out of memory", "MPS backend out of memory")


def explain(error: Exception) -> int:
    """Print the one line for an error and return the exit code."""
    from naysay.errors import NaysayError

    if os.environ.get("NAYSAY_TRACEBACK", "") not in {"", "0"}:
        traceback.print_exception(error)
    if isinstance(error, NaysayError):
        print_error(_message(error))
        return error.exit_code
    if isinstance(error, typer.TyperException):
        print_error(f"{error.format_message()} (see naysay --help)")
        return 2
    if _is_disk_full(error):
        print_error(_disk_full(error))
        return 2
    if _is_out_of_memory(error):
        print_error(
            "out of memory: lower sampling.batch_size, training.tokens_per_microbatch or training.head_chunk "
            "(with --set), or use a machine with more; what is finished is kept"
        )
        return 1
    print_error(_defect(error))
    return 1


def explain_interruption() -> int:
    sys.stderr.write("naysay: interrupted; run the same command again to continue\n")
    return INTERRUPTED


def print_error(message: str) -> None:
    """One line, whatever the message holds; red on a terminal."""
    line = " ".join(part.strip() for part in message.splitlines() if part.strip())
    label = "naysay: error:"
    if sys.stderr.isatty() and not os.environ.get("NO_COLOR"):
        label = typer.style(label, fg="red", bold=True)
    sys.stderr.write(f"{label} {line}\n")


def _message(error: BaseException) -> str:
    """The message alone: `str` of an OSError with an errno repeats the number."""
    return str(error.strerror) if isinstance(error, OSError) and error.strerror else str(error)


def _chain(error: BaseException) -> Iterator[BaseException]:
    """The error and what it was raised from."""
    seen: set[int] = set()
    current: BaseException | None = error
    while current is not None and id(current) not in seen:
        seen.add(id(current))
        yield current
        current = current.__cause__ or current.__context__


def _is_disk_full(error: Exception) -> bool:
    """Libraries in other languages report a full disk as text only."""
    return any(
        (isinstance(item, OSError) and item.errno in _NO_SPACE) or any(text in str(item) for text in _NO_SPACE_TEXTS)
        for item in _chain(error)
    )


def _disk_full(error: Exception) -> str:
    named = (item.filename for item in _chain(error) if isinstance(item, OSError) and item.filename)
    where = next(named, current_run.get())
    place = f"{where}: " if where else ""
    return f"{place}the disk is full; free some space and run the same command again, nothing is lost"


def _is_out_of_memory(error: Exception) -> bool:
    return any(
        isinstance(item, MemoryError)
        or type(item).__name__ == "OutOfMemoryError"
        or (isinstance(item, RuntimeError) and any(text in str(item) for text in _NO_MEMORY_TEXTS))
        for item in _chain(error)
    )


def _defect(error: Exception) -> str:
    what = f"{type(error).__name__}: {str(error)[:200]}".rstrip(": ")
    return f"this is a bug in naysay ({what}); please report it with {_save_traceback(error)}"


def _save_traceback(error: Exception) -> str:
    run = current_run.get()
    if run is None or not run.is_dir():
        return "the traceback that NAYSAY_TRACEBACK=1 shows"
    path = run / _TRACEBACK
    try:
        path.write_text("".join(traceback.format_exception(error)), encoding="utf-8")
    except OSError:
        return "the traceback that NAYSAY_TRACEBACK=1 shows"
    return f"the traceback in {path}"
