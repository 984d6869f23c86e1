"""Errors that a user can mend, and how an entry point reports them."""

from __future__ import annotations

import difflib
import errno
import os
import re
import sys
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import BrokenExecutor
from contextlib import contextmanager

# Of the system's errors, those that the user can mend wherever they arise.
_NAMES = "EACCES EPERM EROFS ENOSPC EDQUOT ENOTDIR EISDIR EEXIST ENOENT ENAMETOOLONG ELOOP EIO EFBIG EMFILE ENFILE EBUSY ENXIO"
SYSTEM = {getattr(errno, name, None) for name in _NAMES.split()} - {None}

# What libraries say where memory is used up, or limited by `ulimit -v`.
USED_UP = "RESOURCE_EXHAUSTED|failed to map segment|[Cc]annot allocate memory|can't start new thread"

# Packages whose errors say that a bucket or a server cannot be reached, or refuses.
NETWORK = {"aiohttp", "gcsfs", "requests", "urllib3"}

STOPPED_BY_HAND, PIPE_CLOSED = 130, 141  # as shells tell SIGINT and SIGPIPE


class UserError(Exception):
    """Something the user can mend: one line naming the file, key or flag, what was expected and found, and what to do."""


def did_you_mean(word: str, known: Iterable[str], prefix: str = "") -> str:
    """ "; did you mean …?" with the nearest of the known words, written after `prefix`; nothing where none is near."""
    close = difflib.get_close_matches(word, list(known), 1)
    return f"; did you mean {prefix}{close[0]}?" if close else ""


@contextmanager
def naming(where: object) -> Iterator[None]:
    """In this block, a UserError is told of `where`: a file, for what its content alone was checked by."""
    try:
        yield
    except UserError as error:
        raise UserError(f"{where}: {error}") from error


@contextmanager
def requires(packages: str, purpose: str) -> Iterator[None]:
    """In this block, a package that cannot be imported is a UserError that says what to install."""
    try:
        yield
    except ImportError as error:
        raise UserError(f"{purpose} needs a package that is missing ({error}): pip install {packages}") from error


def run_main(main: Callable[[], int | None]) -> None:
    """Runs an entry point and exits with its code.

    0 done; 2 user error, one line on stderr; 130 stopped by Ctrl-C; 1 bug (traceback). A full disk, a path that may not be
    written, memory that is used up and devices that are not there count as the user's.
    """
    _open_closed_streams()
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")  # a terminal without our signs shows ? for them
    try:
        code = main() or 0
        sys.stdout.flush()
    except (BrokenPipeError, SystemExit) as error:  # the reader has seen enough, as `head` has
        if not isinstance(error, BrokenPipeError) and not isinstance(error.__context__, BrokenPipeError):
            raise  # the latter is of rich, which prints help
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = PIPE_CLOSED
    except KeyboardInterrupt:
        print("stopped by Ctrl-C; what was finished is kept, and the same command goes on from there", file=sys.stderr)
        code = STOPPED_BY_HAND
    except Exception as error:
        told = _line_of(error)
        if told is None:
            raise
        print(f"error: {printable(told)}", file=sys.stderr)
        code = 2
    sys.exit(code)


def _open_closed_streams() -> None:
    """Gives what the shell closed (`>&-`) to the null device.

    Else the next file that is opened takes its number, and what a library prints would be written into that file.
    """
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            # Takes the lowest number that is free: that of the closed one.
            setattr(sys, name, open(os.devnull, mode))  # noqa: SIM115


def printable(text: str) -> str:
    """The text on one line and without what would steer a terminal: names of files may hold anything."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def _line_of(error: Exception) -> str | None:
    """The line that tells the user of an error that can be mended; None for a bug."""
    text = " ".join(str(error).split())
    if isinstance(error, UserError):
        return str(error)
    if isinstance(error, OSError) and error.errno in SYSTEM:
        return f"{error.filename or 'the disk'}: {error.strerror}"
    if type(error).__module__.partition(".")[0] in NETWORK or isinstance(error, ConnectionError | TimeoutError):
        return f"the network: {text[:200] or type(error).__name__}: look at the address, the connection and the rights there"
    if isinstance(error, MemoryError) or re.search(USED_UP, text):
        return f"out of memory ({text[:200] or 'of this machine'}): ask for less at a time, or free some"
    if isinstance(error, ImportError) and text.startswith("Install "):  # of a kind of path that needs a package
        return f"{text}: or give a path on disk"
    if isinstance(error, BrokenExecutor) or "process was terminated unexpectedly" in text:  # the latter by Grain
        return "a working process ended before its time, perhaps for want of memory: run the command again with fewer processes"
    if re.match("Unable to initialize backend|Unknown backend", text) or _of_jax_alone(error):
        # Where a platform is known and its devices are not there, JAX asserts without a word.
        reason = text[:200] or "JAX finds no such device here"
        return f"JAX_PLATFORMS={os.environ.get('JAX_PLATFORMS', '')}: {reason}: set it to cpu, or leave it out"
    return None


def _of_jax_alone(error: Exception) -> bool:
    """True of an assertion of JAX without a word; JAX leaves a note that it has taken its own frames away."""
    return isinstance(error, AssertionError) and any(
        "JAX has removed" in note for note in getattr(error, "__notes__", ())
    )
