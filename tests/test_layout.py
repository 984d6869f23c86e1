"""The house of docs/architecture.md: rooms in the order in which data flows, doors that nobody imports, no circles."""

from __future__ import annotations

import ast
import re
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "ames_jax"
DOORS = {
    "train",
    "evaluate",
    "extract",
    "prepare",
    "search",
    "convert",
    "benchmark",
    "metrics",
    "torch_weights",
    "__main__",
}
# Room → the rooms whose files its own may import; what is above the doors' commands imports nothing but them.
BELOW = {
    "runtime": "",
    "descriptors": "runtime",
    "data": "runtime descriptors",
    "extraction": "runtime descriptors data",
    "scenes": "runtime descriptors data extraction",
    "model": "runtime descriptors data",
    "retrieval": "runtime descriptors data model",
    "training": "runtime descriptors data extraction scenes model retrieval",
    "index": "runtime descriptors data extraction scenes model retrieval",
    "report": "runtime descriptors data extraction scenes model retrieval training index",
    "benchmarks": "runtime descriptors data extraction scenes model retrieval training index report",
    "serving": "runtime descriptors data extraction scenes model retrieval training index report",
    "commands": "runtime descriptors data extraction scenes model retrieval training index report benchmarks serving",
}


def module_of(path: Path) -> str:
    return ".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix("__init__").rstrip(".")


def imports() -> dict[str, set[str]]:
    """Module → modules of ours that its file imports at any depth, both without the package's name."""
    modules = {module_of(path): path for path in PACKAGE.rglob("*.py")}
    found: dict[str, set[str]] = {}
    for module, path in modules.items():
        nodes = [
            n
            for n in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
            if isinstance(n, ast.Import | ast.ImportFrom)
        ]
        names = [
            f"{node.module}.{alias.name}" for node in nodes if isinstance(node, ast.ImportFrom) for alias in node.names
        ]
        names += [alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names]
        ours = [name.removeprefix("ames_jax.") for name in names if name.startswith("ames_jax.")]
        found[module] = {name if name in modules else name.rpartition(".")[0] for name in ours} - {"", module}
    return found


def test_imports_follow_the_arrows():
    wrong = []
    for module, targets in imports().items():
        room = module.partition(".")[0]
        for target in targets:
            other = target.partition(".")[0]
            if other in DOORS or (room in BELOW and other != room and other not in BELOW[room].split()):
                wrong.append(f"{module} imports {target}")
    assert not wrong, "\n".join(sorted(wrong))


def test_no_circles():
    try:
        TopologicalSorter({module: targets for module, targets in imports().items() if module}).prepare()
    except CycleError as error:
        pytest.fail(" → ".join(error.args[1]))


def test_the_files_that_the_architecture_names_are_there():
    """By the end of their path: a room's row names its files without the room."""
    root = PACKAGE.parent
    names = re.findall(r"`([\w./]+(?:\.py|\.sh|/))`", (root / "docs" / "architecture.md").read_text(encoding="utf-8"))
    places = [
        place for folder in (PACKAGE, root / "tests", root / "configs", root / "launch") for place in folder.rglob("*")
    ]
    paths = [f"/{place.relative_to(root).as_posix()}{'/' * place.is_dir()}" for place in places]
    paths += ["/ames_jax/", "/tests/", "/configs/", "/launch/"]
    assert len(names) > 40
    assert [name for name in names if not any(path.endswith(f"/{name}") for path in paths)] == []


def test_every_file_has_a_room():
    rooms = {module.partition(".")[0] for module in imports()} - {"", *DOORS}
    assert rooms <= set(BELOW)
