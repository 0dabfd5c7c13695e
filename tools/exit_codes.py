"""From an exception to a line on stderr and an exit code: the one border between errors and the shell."""

from __future__ import annotations

import os
import signal
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

import click

from lmdali.pipeline.errors import LmdaliError, StorageError
from lmdali.pipeline.system_error import system_says


class Terminated(BaseException):
    """SIGTERM or SIGHUP arrived."""


def run_command(main: Callable[[], object]) -> int:
    """Run a click program; returns the exit code that documents its outcome (see `lmdali.pipeline.errors`)."""
    try:
        main()
    except click.exceptions.Exit as leave:
        return leave.exit_code
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except (click.exceptions.Abort, KeyboardInterrupt):
        print("interrupted", file=sys.stderr)
        return 128 + signal.SIGINT
    except Terminated:
        print("terminated", file=sys.stderr)
        return 128 + signal.SIGTERM
    except LmdaliError as error:
        print(f"lmdali: {type(error).__name__}: {one_line(str(error))}", file=sys.stderr)
        return error.exit_code
    except BrokenPipeError:
        # Whoever read our output has left; the work is done. Python flushes once more at its end: to nowhere.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        print(f"lmdali: {StorageError.__name__}: {one_line(_where_and_what(error))}", file=sys.stderr)
        return StorageError.exit_code
    return 0


@contextmanager
def termination_as_exception(note: str = "") -> Iterator[None]:
    """Let SIGTERM and SIGHUP unwind the stack as Ctrl-C does, so that half-written files are removed.

    Args:
        note: told to whoever interrupts: what is kept, and how to go on.
    """

    def leave(number: int, frame: FrameType | None) -> None:
        raise Terminated

    before = {number: signal.signal(number, leave) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    except (KeyboardInterrupt, Terminated):
        if note:
            click.echo(note, err=True)
        raise
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def end_as(stopped_by: int | None) -> None:
    """End as the signal would have ended the program, where one stopped the work in an orderly way."""
    if stopped_by == signal.SIGINT:
        raise KeyboardInterrupt
    if stopped_by is not None:
        raise Terminated


def format_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    line: str | None = None,
    _usual: Callable[..., str] = warnings.formatwarning,
) -> str:
    """A warning of ours as one line, as errors are; others as Python has them, with the place in the code."""
    if not category.__module__.startswith("lmdali."):
        return _usual(message, category, filename, lineno, line)
    return f"lmdali: {category.__name__}: {one_line(str(message))}\n"


def _where_and_what(error: OSError) -> str:
    """Without the errno, and the path first, as our own messages have it."""
    if error.strerror is None or error.filename is None:
        return str(error)
    return f"{os.fsdecode(error.filename)}: {system_says(error)}"


def one_line(text: str) -> str:
    """A text without line ends and other control characters: as escapes."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape", "backslashreplace").decode() for c in text)
