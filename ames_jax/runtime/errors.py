"""Errors that a user can mend, and how an entry point reports them."""

from __future__ import annotations

import difflib
import errno
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

# Of the system's errors, those that the user can mend wherever they arise.
SYSTEM = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EDQUOT, errno.ENOTDIR, errno.EISDIR)


class UserError(Exception):
    """Something the user can mend: one line naming the file, key or flag, what was expected and found, and what to do."""


def did_you_mean(word: str, known: Iterable[str], prefix: str = "") -> str:
    """ "; did you mean …?" with the nearest of the known words, written after `prefix`; nothing where none is near."""
    close = difflib.get_close_matches(word, list(known), 1)
    return f"; did you mean {prefix}{close[0]}?" if close else ""


@contextmanager
def requires(packages: str, purpose: str) -> Iterator[None]:
    """In this block, a package that cannot be imported is a UserError that says what to install."""
    try:
        yield
    except ImportError as error:
        raise UserError(f"{purpose} needs a package that is missing ({error}): pip install {packages}") from error


def run_main(main: Callable[[], int | None]) -> None:
    """Runs an entry point and exits with its code: 0 done, 2 user error (one line on stderr), 1 bug (traceback).

    A full disk and a path that may not be written count as the user's.
    """
    try:
        code = main()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        code = 2
    except OSError as error:
        if error.errno not in SYSTEM:
            raise
        print(f"error: {error.filename or 'the disk'}: {error.strerror}", file=sys.stderr)
        code = 2
    sys.exit(code or 0)
