"""Command lines of the entry points: `--config=FILE.py[:variant] --config.key=value --workdir=DIR`, or plain flags."""

from __future__ import annotations

import argparse
import dataclasses
import difflib
import importlib.util
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from absl import flags
from ml_collections import ConfigDict, config_flags

from ames_jax.errors import UserError
from ames_jax.paths import path_of


class Parser(argparse.ArgumentParser):
    """A parser of plain flags whose errors are the user's, one line as all others are; flags are not abbreviated."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**{"allow_abbrev": False, "formatter_class": argparse.RawDescriptionHelpFormatter, **options})

    def error(self, message: str) -> None:
        """Raises UserError."""
        raise UserError(f"{message}; see {self.prog} --help")


@dataclasses.dataclass(frozen=True)
class Command:
    """A parsed command line.

    Attributes:
      config: the locked configuration, overrides applied.
      workdir: where results go, on disk or gs://…; `runs/<config file>-<variant>` unless given.
    """

    config: ConfigDict
    workdir: Path


def parse(description: str, default_config: str, argv: Sequence[str] | None = None) -> Command:
    """Reads the command line of an entry point.

    Args:
      description: what `--help` prints above the keys.
      default_config: the configuration file when no `--config` is given.
      argv: arguments, without the program's name (default: those of this process).

    Raises:
      UserError: an unknown flag or key (with the nearest valid name), a value of another type, an unreadable file.
      SystemExit: after printing the help.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    location = next((a.split("=", 1)[1] for a in arguments if a.startswith("--config=")), default_config)
    if not any(a.startswith("--config=") for a in arguments):
        arguments.insert(0, f"--config={location}")
    path, _, variant = location.partition(":")
    config = load_config(Path(path), variant or None)
    keys = _flat(config)
    if {"--help", "-h", "--helpfull"} & set(arguments):
        print(_help(description, location, keys))
        raise SystemExit(0)
    _refuse_unknown(arguments, keys, location)
    values = flags.FlagValues()
    flags.DEFINE_string("workdir", None, "where results go", flag_values=values)
    try:
        with warnings.catch_warnings():
            # ml_collections loads the file in a way that Python deprecates.
            warnings.filterwarnings("ignore", message=".*load_module", category=DeprecationWarning)
            config_flags.DEFINE_config_file("config", flag_values=values, sys_argv=["", *arguments])
            rest = values(["ames_jax", *arguments])[1:]
    except (flags.Error, ValueError, TypeError) as error:
        raise UserError(" ".join(str(error).split())) from error
    if rest:
        raise UserError(f"unexpected argument {rest[0]!r}: flags look like --config.key=value")
    name = f"{Path(path).stem}-{variant}" if variant else Path(path).stem
    return Command(values.config, path_of(values.workdir or Path("runs") / name))


def load_config(path: Path, variant: str | None = None) -> ConfigDict:
    """The configuration that `get_config(variant)` of a file returns; config files use it to include one another."""
    if not path.is_file():
        raise UserError(f"--config={path}: no such file (looked in {Path.cwd()}); run from the repository's root")
    spec = importlib.util.spec_from_file_location(f"config_{path.stem}", path)
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except SyntaxError as error:
        raise UserError(f"--config={path}: line {error.lineno}: {error.msg}") from error
    return module.get_config(variant) if variant else module.get_config()


def refuse_variant(variant: str, known: Sequence[str]) -> UserError:
    """The error of a config file for a variant that it does not have."""
    close = difflib.get_close_matches(variant, known, 1)
    hint = f"; did you mean {close[0]!r}?" if close else ""
    return UserError(f"unknown variant {variant!r} of the config: expected one of {', '.join(known)}{hint}")


def _refuse_unknown(arguments: Sequence[str], keys: dict[str, Any], location: str) -> None:
    for argument in arguments:
        flag = argument.split("=", 1)[0]
        if flag in ("--config", "--workdir") or not flag.startswith("--"):
            continue
        if not flag.startswith("--config."):
            close = difflib.get_close_matches(flag, ["--config", "--workdir", *(f"--config.{k}" for k in keys)], 1)
            raise UserError(f"unknown flag {flag}" + (f"; did you mean {close[0]}?" if close else "; see --help"))
        key = flag.removeprefix("--config.")
        if key in keys or any(k.startswith(f"{key}.") for k in keys):
            continue
        tail = key.rpartition(".")[2]
        close = difflib.get_close_matches(key, keys, 1) or [k for k in keys if k.rpartition(".")[2] == tail][:1]
        hint = f"; did you mean --config.{close[0]}?" if close else "; --help lists the keys"
        raise UserError(f"{location} has no key {key!r}{hint}")


def _flat(config: ConfigDict, prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, ConfigDict):
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def flatten(config: ConfigDict) -> dict[str, Any]:
    """Dotted key → value of every leaf of a configuration."""
    return _flat(config)


def _help(description: str, location: str, keys: dict[str, Any]) -> str:
    lines = [description.strip(), "", "flags:"]
    lines += ["  --config=FILE.py[:variant]", "  --workdir=DIR", "", f"keys of {location} (--config.KEY=VALUE):"]
    return "\n".join(lines + [f"  {key} = {value!r}" for key, value in keys.items()])
