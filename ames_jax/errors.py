"""Errors that a user can mend, and how an entry point reports them."""

from __future__ import annotations

import sys
from collections.abc import Callable


class UserError(Exception):
    """Something the user can mend: one line naming the file, key or flag, what was expected and found, and what to do."""


def run_main(main: Callable[[], int | None]) -> None:
    """Runs an entry point and exits with its code: 0 done, 2 user error (one line on stderr), 1 bug (traceback)."""
    try:
        code = main()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        code = 2
    sys.exit(code or 0)
