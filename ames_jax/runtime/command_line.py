"""Command lines: plain flags from a function's signature, or `--config=FILE.py[:variant] --config.key=value --workdir=DIR`.

A command is a function whose keyword arguments are the flags and whose docstring is their help (`commands/`); cyclopts
reads both. Whatever is wrong on a command line is a UserError: one line, exit code 2.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib.util
import sys
import warnings
from collections.abc import Container, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, get_args

import cyclopts
from absl import flags
from ml_collections import ConfigDict, config_flags

from ames_jax.runtime.errors import UserError, did_you_mean
from ames_jax.runtime.files import path_of


class Parser(argparse.ArgumentParser):
    """A parser of plain flags whose errors are the user's, one line as all others are; flags are not abbreviated."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**{"allow_abbrev": False, "formatter_class": argparse.RawDescriptionHelpFormatter, **options})

    def error(self, message: str) -> None:
        """Raises UserError."""
        raise UserError(f"{message}; see {self.prog} --help")


def application(command: str, description: str, subcommands: Mapping[str, str] | None = None) -> cyclopts.App:
    """The command line of `python -m ames_jax.COMMAND`.

    Args:
      command: name of the entry point.
      description: what `--help` prints above the flags.
      subcommands: name → "module:function", imported when it is called. A function returns its exit code (None: 0).
    """
    app = cyclopts.App(
        name=f"python -m ames_jax.{command}",
        help=description,
        help_format="plaintext",
        version_flags=[],
        default_parameter=cyclopts.Parameter(negative=()),
        exit_on_error=False,
        print_error=False,
        help_on_error=False,
        suppress_keyboard_interrupt=False,
        result_action="return_value",
    )
    for name, function in (subcommands or {}).items():
        app.command(function, name=name)
    return app


def call(app: cyclopts.App, argv: Sequence[str] | None = None) -> int:
    """Runs the command that the arguments name (default: those of this process) and returns its exit code.

    Raises:
      UserError: a flag is unknown, missing or of another type.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        return app(arguments) or 0
    except cyclopts.CycloptsError as error:
        raise UserError(f"{' '.join(str(error).split())} See {app.name[0]} --help") from error


def comma_separated(kind: type, tokens: Sequence[cyclopts.Token]) -> list:
    """Values of a flag such as --counts=50,64, given once with commas or several times; a converter for cyclopts.

    `Annotated[list[int], Parameter(converter=comma_separated)]`. Raises ValueError for what is not such a value.
    """
    (element,) = get_args(kind)
    return [element(part) for token in tokens for part in token.value.split(",") if part.strip()]


def _whole_number(_: type, tokens: Sequence[cyclopts.Token]) -> int:
    # Left to itself, cyclopts cuts 2.5 down to 2.
    return int(tokens[0].value)


def _within(least: float, most: float) -> cyclopts.Parameter:
    def check(_: type, value: float | Sequence[float] | None) -> None:
        values = value if isinstance(value, Sequence) else [] if value is None else [value]
        for number in values:
            if not least <= number <= most:
                raise ValueError(f"expected a number in {least:g}..{most:g}, found {number:g}")

    return cyclopts.Parameter(validator=check)


_WHOLE = cyclopts.Parameter(converter=_whole_number)
Count = Annotated[int, _WHOLE, _within(1, 2**40)]
CountOrZero = Annotated[int, _WHOLE, _within(0, 2**40)]
Counts = Annotated[list[int], cyclopts.Parameter(converter=comma_separated), _within(1, 2**40)]
Fraction = Annotated[float, _within(0, 1)]
Scale = Annotated[float, _within(0, 1e9)]


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
    expected = f"expected one of {', '.join(known)}{did_you_mean(variant, known)}"
    return UserError(f"unknown variant {variant!r} of the config: {expected}")


def _refuse_unknown(arguments: Sequence[str], keys: dict[str, Any], location: str) -> None:
    for argument in arguments:
        flag = argument.split("=", 1)[0]
        if flag in ("--config", "--workdir") or not flag.startswith("--"):
            continue
        if not flag.startswith("--config."):
            flags_known = ["--config", "--workdir", *(f"--config.{k}" for k in keys)]
            raise UserError(f"unknown flag {flag}{did_you_mean(flag, flags_known) or '; see --help'}")
        key = flag.removeprefix("--config.")
        if key in keys or any(k.startswith(f"{key}.") for k in keys):
            continue
        tails = {k.rpartition(".")[2]: k for k in reversed(keys)}  # learning_rate → optimizer.learning_rate
        nearest = tails.get(key.rpartition(".")[2], key)
        hint = did_you_mean(key, keys, "--config.") or did_you_mean(nearest, keys, "--config.")
        raise UserError(f"{location} has no key {key!r}{hint or '; --help lists the keys'}")


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


def is_among(key: str, names: Container[str]) -> bool:
    """True where a dotted key, or a section that it lies in, is one of the names."""
    parts = key.split(".")
    return any(".".join(parts[:end]) in names for end in range(1, len(parts) + 1))


def _help(description: str, location: str, keys: dict[str, Any]) -> str:
    lines = [description.strip(), "", "flags:"]
    lines += ["  --config=FILE.py[:variant]", "  --workdir=DIR", "", f"keys of {location} (--config.KEY=VALUE):"]
    return "\n".join(lines + [f"  {key} = {value!r}" for key, value in keys.items()])
