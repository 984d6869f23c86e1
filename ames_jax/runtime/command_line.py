"""Command lines: plain flags from a function's signature, or `--config=FILE[:variant] --config.key=value --workdir=DIR`.

A command is a function whose keyword arguments are the flags and whose docstring is their help (`commands/`); cyclopts
reads both. Whatever is wrong on a command line is a UserError: one line, exit code 2.
"""

from __future__ import annotations

import dataclasses
import importlib
import importlib.util
import inspect
import os
import re
import sys
from collections.abc import Container, Mapping, Sequence
from pathlib import Path
from typing import Any

import cyclopts
from absl import flags
from ml_collections import ConfigDict, config_flags

from ames_jax.runtime.errors import UserError, did_you_mean
from ames_jax.runtime.paths import path_of

# A wheel has the configurations in the package, a checkout beside it.
_PACKAGE = Path(__file__).parents[1]
CONFIGS = _PACKAGE / "configs" if (_PACKAGE / "configs").is_dir() else _PACKAGE.parent / "configs"


def application(command: str, description: str, places: Mapping[str, str] | str) -> cyclopts.App:
    """The command line of `python -m ames_jax.COMMAND`.

    Args:
      command: name of the entry point.
      description: what `--help` prints above the flags.
      places: "module:function" of the command, or of each subcommand by its name, then imported when it is called. A
        function returns its exit code (None: 0).
    """
    app = cyclopts.App(
        name=f"python -m ames_jax.{command}",
        help=description,
        help_format="plaintext",
        version_flags=[],
        default_parameter=cyclopts.Parameter(negative=(), validator=_refuse_elsewhere),
        exit_on_error=False,
        print_error=False,
        help_on_error=False,
        suppress_keyboard_interrupt=False,
        result_action="return_value",
    )
    if isinstance(places, str):
        module, _, function = places.partition(":")
        app.default(getattr(importlib.import_module(module), function))
        return app
    for name, place in places.items():
        app.command(place, name=name)
    return app


def call(app: cyclopts.App, argv: Sequence[str] | None = None) -> int:
    """Runs the command that the arguments name (default: those of this process) and returns its exit code.

    Raises:
      UserError: a flag is unknown, missing or of another type.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    if arguments[:1] in ([], ["--help"], ["-h"]):
        list(map(app.__getitem__, app))  # imports the subcommands: help shows the first line of each
    if not os.environ.get("COLUMNS", "").strip("0"):  # at a width of 0 the help would never end
        os.environ.pop("COLUMNS", None)
    for empty in (argument for argument in arguments if re.fullmatch(r"--[\w-]+=", argument)):
        raise UserError(f"{empty} is empty: give a value, or leave the flag out")
    try:
        return app(arguments) or 0
    except cyclopts.CycloptsError as error:
        raise UserError(f"{' '.join(str(error).split())} See {app.name[0]} --help") from error


def _refuse_elsewhere(_: Any, value: Any) -> None:
    """Raises ValueError for a path in a bucket or on a server, where a path on disk is meant: `gs:` would be a folder."""
    for path in value if isinstance(value, list | tuple) else [value]:
        if isinstance(path, Path) and re.match(r"[A-Za-z][\w+.-]+:/", str(path)):
            raise ValueError(f"expected a path on disk, found {path}")


# What is missing where the path of a flag is not there.
KINDS_OF_PATHS = {
    "image": "no such image",
    "images": "no such folder or list",
    "index": "no such index; make one with python -m ames_jax.search index",
}


def check_paths(**paths: Path | Sequence[Path] | None) -> None:
    """Raises UserError for the first path, by the name of its flag, that is not there: before anything is loaded that takes
    seconds."""
    for flag, given in paths.items():
        for path in [given] if isinstance(given, Path) else given or []:
            if not path.exists():
                kind = KINDS_OF_PATHS.get(flag, "no such file or folder")
                raise UserError(f"--{flag.replace('_', '-')}={path}: {kind}")


@dataclasses.dataclass(frozen=True)
class Command:
    """A parsed command line.

    Attributes:
      config: the locked configuration, overrides applied.
      workdir: the folder for results, on disk or gs://…; `runs/<config file>-<variant>` unless given.
      given: dotted keys that the command line sets.
    """

    config: ConfigDict
    workdir: Path
    given: frozenset[str] = frozenset()


def parse(description: str | None, default_config: str, argv: Sequence[str] | None = None) -> Command:
    """Reads the command line of an entry point.

    Args:
      description: what `--help` prints above the keys.
      default_config: name of the configuration when no `--config` is given.
      argv: arguments, without the program's name (default: those of this process).

    Raises:
      UserError: an unknown flag or key (with the nearest valid name), a value of another type, an unreadable file.
      SystemExit: after printing the help.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    location = next((a.split("=", 1)[1] for a in reversed(arguments) if a.startswith("--config=")), default_config)
    # FILE[:variant]; the colon of a Windows drive is not followed by a name up to the end.
    name, variant = re.fullmatch(r"(.*?)(?::(\w*))?", location).groups()
    path = find_config(name)
    config = load_config(path, variant)
    keys = flatten(config)
    if {"--help", "-h", "--helpfull"} & set(arguments):
        print(_help(description, location, keys, _comments(path)))
        raise SystemExit(0)
    _refuse_unknown(arguments, keys, location)
    values = flags.FlagValues()
    arguments = ["ames_jax", *(a for a in arguments if not a.startswith("--config="))]
    try:
        flags.DEFINE_string("workdir", None, "where results go", flag_values=values)
        config_flags.DEFINE_config_dict("config", config, flag_values=values, sys_argv=arguments)
        rest = values(arguments)[1:]
    except (flags.Error, ValueError, TypeError) as error:
        raise UserError(" ".join(str(error).split())) from error
    for key, value in flatten(values.config).items():
        if isinstance(value, tuple) and any(isinstance(item, str) for item in value) and not _holds_text(keys[key]):
            raise UserError(f"--config.{key}={value}: expected numbers with commas between them, such as {keys[key]}")
    if rest:
        raise UserError(f"unexpected argument {rest[0]!r}: flags look like --config.key=value")
    run = f"{path.stem}-{variant}" if variant else path.stem
    prefix = "--config."
    given = frozenset(a.removeprefix(prefix).split("=", 1)[0] for a in arguments if a.startswith(prefix))
    return Command(values.config, path_of(values.workdir or Path("runs") / run), given)


def _holds_text(value: Any) -> bool:
    return isinstance(value, str) or any(isinstance(item, str) for item in value or ())


def refuse_missing(config: ConfigDict, keys: Sequence[str]) -> None:
    """Raises UserError, before anything long, where one of these keys holds a path at which nothing is.

    A text without a slash may be a name, of a model, say; texts with commas are lists, and `://` is elsewhere.
    """
    for key in keys:
        value = config.get(key) or ""
        if "/" in value and not {",", "@", ":"} & set(value) and not Path(value).exists():
            raise UserError(f"--config.{key}={value}: no such file or folder")


def find_config(name: str | Path) -> Path:
    """The config file of this name: a file that exists, or one of ours, as `student_bin` or `configs/student_bin.py`.

    Raises UserError, naming those of ours, where there is none.
    """
    path, ours = Path(name), {file.stem: file for file in sorted(CONFIGS.glob("*.py"))}
    if path.is_file():
        return path
    if path.stem in ours and path.suffix in ("", ".py") and path.parent in (Path(), Path("configs")):
        return ours[path.stem]
    hint = did_you_mean(path.stem, ours)
    raise UserError(f"--config={name}: no such file in {Path.cwd()}, and none of ours ({', '.join(ours)}){hint}")


def load_config(name: str | Path, variant: str | None = None) -> ConfigDict:
    """The configuration that `get_config(variant)` of a config file returns; config files use it to include one another.

    Raises UserError: no such file, a syntax error in it, no `get_config`, or a variant that it does not have.
    """
    path = find_config(name)
    spec = importlib.util.spec_from_file_location(f"config_{path.stem}", path)
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except SyntaxError as error:
        raise UserError(f"--config={path}: line {error.lineno}: {error.msg}") from error
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"--config={path}: cannot be run ({type(error).__name__}: {error})") from error
    if not hasattr(module, "get_config"):
        raise UserError(f"--config={path}: defines no get_config()")
    if variant and not inspect.signature(module.get_config).parameters:
        raise UserError(f"--config={path}:{variant}: this config has no variants")
    config = module.get_config(variant) if variant else module.get_config()
    if not isinstance(config, ConfigDict):
        raise UserError(f"--config={path}: get_config() returns {type(config).__name__}, expected a ConfigDict")
    return config


def refuse_variant(variant: str, known: Sequence[str]) -> UserError:
    """The error of a config file for a variant that it does not have."""
    expected = f"expected one of {', '.join(known)}{did_you_mean(variant, known)}"
    return UserError(f"unknown variant {variant!r} of the config: {expected}")


def _refuse_unknown(arguments: Sequence[str], keys: Mapping[str, Any], location: str) -> None:
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


def flatten(config: ConfigDict) -> dict[str, Any]:
    """Dotted key → value of every leaf of a configuration."""
    flat: dict[str, Any] = {}
    for key, value in config.items():
        inner = {f"{key}.{k}": v for k, v in flatten(value).items()} if isinstance(value, ConfigDict) else {key: value}
        flat |= inner
    return flat


def is_among(key: str, names: Container[str]) -> bool:
    """True where a dotted key, or a section that it lies in, is one of the names."""
    parts = key.split(".")
    return any(".".join(parts[:end]) in names for end in range(1, len(parts) + 1))


def _help(description: str | None, location: str, keys: Mapping[str, Any], comments: Mapping[str, str]) -> str:
    lines = [(description or "").strip(), "", "flags:"]  # python -OO has no docstrings
    lines += ["  --config=FILE[:variant]", "  --workdir=DIR", "", f"keys of {location} (--config.KEY=VALUE):"]
    for key, value in keys.items():
        # A whole configuration may be a section of another: train_teacher.seed is explained as seed.
        comment = comments.get(key) or comments.get(key.partition(".")[2])
        lines.append(f"  {key} = {value!r}" + (f"  # {comment}" if comment else ""))
    return "\n".join(lines)


def _comments(path: Path) -> dict[str, str]:
    """Key → comment behind it in a config file, or in one beside it whose name it quotes: that one it includes."""
    text = path.read_text(encoding="utf-8")
    comments = dict(re.findall(r"^ +(?:config\.)?([\w.]+) = .*?  # (.*)$", text, re.MULTILINE))
    for other in sorted(path.parent.glob("*.py")):
        if f'"{other.name}"' in text:
            comments |= _comments(other)
    return comments
