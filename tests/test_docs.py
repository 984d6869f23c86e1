"""README and docs against the program: flags and names that there are, links to files, variables that are explained."""

from __future__ import annotations

import ast
import importlib
import re
import shlex
from pathlib import Path

import cyclopts
import pytest

from ames_jax.__main__ import COMMANDS
from ames_jax.runtime.command_line import CONFIGS, find_config, flatten, load_config

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
SOURCES = [*PAGES, *sorted(CONFIGS.glob("*.py"))]
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)
PROGRAM = re.compile(r"(?:python -m ames_jax\.|ames-jax )(\w+)(.*)")


def command_lines(path: Path) -> list[tuple[str, list[str]]]:
    """(command, arguments) of every `python -m ames_jax.COMMAND …` of a page, in blocks of code and between backticks."""
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".py":
        lines = re.sub(r"\\{1,2}\n|`", " ", text.split('"""')[1]).splitlines()
    else:
        blocks = [code.replace("\\\n", " ") for language, code in BLOCK.findall(text) if language == "bash"]
        inline = [code.replace("\n", " ") for code in re.findall(r"`([^`]+)`", BLOCK.sub("", text))]
        lines = [*"\n".join(blocks).splitlines(), *inline]
    found = [PROGRAM.search(line.partition(" #")[0]) for line in lines]
    return [(match[1], shlex.split(match[2])) for match in found if match and match[1] in COMMANDS]


def flags_of(app: cyclopts.App) -> set[str]:
    return {name for argument in app.assemble_argument_collection() for name in argument.names}


def known_flags(command: str, arguments: list[str]) -> set[str]:
    """The flags that a command line may have, by the subcommand or the configuration that it names."""
    module = importlib.import_module(f"ames_jax.{command}")
    if command == "evaluate" and arguments and arguments[0] in module.REPORTS:
        return flags_of(module.application("evaluate", "", module.REPORTS)[arguments[0]])
    if command in ("train", "evaluate"):
        default = {"train": "student_bin", "evaluate": "evaluate"}[command]
        location = next((a.partition("=")[2] for a in arguments if a.startswith("--config=")), default)
        name, _, variant = location.partition(":")
        config = load_config(find_config(name), variant or None)
        return {"--config", "--workdir", *(f"--config.{key}" for key in flatten(config))}
    app = module.app
    if not app.default_command:
        subcommand = next((a for a in arguments if not a.startswith("-") and a in set(app)), None)
        return flags_of(app[subcommand]) if subcommand else set()
    return flags_of(app)


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.name)
def test_commands_have_the_flags_that_are_printed(path: Path) -> None:
    for command, arguments in command_lines(path):
        given = {a.partition("=")[0] for a in arguments if a.startswith("--") and a != "--"}
        unknown = given - known_flags(command, arguments) - {"--help"}
        assert not unknown, f"{path.name}: {command} {shlex.join(arguments)}"


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_python_on_the_pages_imports_what_there_is(path: Path) -> None:
    for code in (code for language, code in BLOCK.findall(path.read_text(encoding="utf-8")) if language == "python"):
        for node in ast.walk(ast.parse(code)):
            if isinstance(node, ast.ImportFrom) and node.module.partition(".")[0] == "ames_jax":
                for alias in node.names:
                    module = importlib.import_module(node.module)
                    assert hasattr(module, alias.name) or importlib.import_module(f"{node.module}.{alias.name}")


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_links_lead_to_files(path: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", BLOCK.sub("", path.read_text(encoding="utf-8"))):
        if not re.match(r"https?:|#", target):
            assert (path.parent / target.partition("#")[0]).exists(), target


def test_the_address_of_the_repository_is_one() -> None:
    """ "REPOSITORY" in the README is no address yet; the notebooks then have none, and ask for a ZIP file."""
    [address] = re.findall(r"git clone (\S+)", (ROOT / "README.md").read_text(encoding="utf-8"))
    texts = [path.read_text(encoding="utf-8") for path in (ROOT / "notebooks").glob("*.ipynb")]
    found = {name for text in texts for name in re.findall(r'"REPOSITORY = \\"(.*?)\\"', text)}
    assert found == {"" if address == "REPOSITORY" else address}


def test_every_variable_of_the_environment_is_explained() -> None:
    places = [*(ROOT / "ames_jax").rglob("*.py"), *(ROOT / "notebooks").glob("*.ipynb"), *(ROOT / "tests").glob("*.py")]
    used = {name for path in places for name in re.findall(r"AMES_JAX_[A-Z_]+", path.read_text(encoding="utf-8"))}
    assert (
        used - set(re.findall(r"AMES_JAX_[A-Z_]+", (ROOT / "docs" / "runtime.md").read_text(encoding="utf-8"))) == set()
    )
