"""Classes of the user's own, named on the command line as package.module:Class."""

from __future__ import annotations

import importlib
from typing import Any

from ames_jax.runtime.errors import UserError


def named_class(name: str, flag: str) -> Any:
    """The object that `package.module:Class` names; its module is imported, so it may run code.

    Raises UserError, naming the flag, where Python's path holds no such thing.
    """
    module, _, attribute = name.partition(":")
    try:
        return getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        raise UserError(f"{flag}={name}: expected package.module:Class on Python's path; {error}") from error
