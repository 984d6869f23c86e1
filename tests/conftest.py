"""Every test runs on 8 fake CPU devices, with silent JAX bugs made loud."""

import os

# Compilation is two thirds of what the tests do: without optimisation and the newer code emitters it takes a fifth of the time,
# and a program that is not cut into 32 modules for as many threads takes a quarter less.
COMPILE_FAST = (
    "--xla_backend_optimization_level=0 --xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1"
)
os.environ["XLA_FLAGS"] = f"--xla_force_host_platform_device_count=8 {COMPILE_FAST}"
# For processes that tests start: eight fake devices only make small programs slower to compile.
os.environ["ONE_DEVICE_XLA_FLAGS"] = COMPILE_FAST
os.environ["JAX_PLATFORMS"] = "cpu"

import json
import platform
import re
import shutil
import zlib
from collections.abc import Iterator
from pathlib import Path

import jax
import numpy as np
import pytest
from jaxtyping import install_import_hook

# Shapes and types in the signatures of arrays' functions are checked here, and cost nothing in use.
CHECKED = ("descriptors", "model", "data.neighbour_search", "extraction.vlad", "index.first_stage")
IN_RETRIEVAL = ("hand_made", "judgements", "metrics", "ranking", "refinement", "scorer", "sets")
CHECKED += tuple(f"retrieval.{module}" for module in IN_RETRIEVAL)
install_import_hook([f"ames_jax.{module}" for module in CHECKED], "type_checker.check")

jax.config.update("jax_numpy_rank_promotion", "raise")
# Each program is compiled once for all workers, for the processes that tests start and for the next runs on this kind of
# processor: JAX keeps it under a key of the program, its flags and its version. `pytest --cache-clear` empties the folder.
INFO = Path("/proc/cpuinfo")
PROCESSOR = re.findall(r"^(?:flags|Features)\s*:.*", INFO.read_text() if INFO.exists() else "", re.MULTILINE)[:1]
PROCESSOR_HASH = zlib.crc32(repr([platform.machine(), platform.processor(), *PROCESSOR]).encode())
COMPILED = Path(__file__).parents[1] / ".pytest_cache" / "d" / f"compiled-{PROCESSOR_HASH:08x}"
COMPILED_BYTES = 2 * 10**9
for name, value in (("jax_compilation_cache_dir", str(COMPILED)), ("jax_persistent_cache_min_compile_time_secs", 0.0)):
    os.environ[name.upper()] = str(value)
    jax.config.update(name, value)

GOLDEN = Path(__file__).parent / "golden"
# What rendered sets of the tests have in common.
FEW = {"query_views": 1, "gallery_views": 2, "descriptors": 40, "vlad_centres": 2, "neighbours": 2, "street_items": 6}
REFERENCE = Path(__file__).parents[2] / "shared" / "reference"

# Files that take longest, the longest first: begun last, one of them would keep one worker busy while the others wait.
LONGEST = (
    "test_train",
    "test_lives",
    "test_benchmark",
    "test_step",
    "test_ames",
    "test_retrieval_evaluation",
    "test_loop",
)


def pytest_configure(config: pytest.Config) -> None:
    """Empties the folder of compiled programs where those of many earlier versions have piled up."""
    if not hasattr(config, "workerinput") and sum(file.stat().st_size for file in COMPILED.glob("*")) > COMPILED_BYTES:
        shutil.rmtree(COMPILED)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    ranks = {name: rank for rank, name in enumerate(LONGEST)}
    items.sort(key=lambda item: ranks.get(item.path.stem, len(ranks)))


@pytest.fixture(scope="session")
def reference() -> Path:
    """The folder of the big golden files; tests that need it are skipped where it is absent."""
    if not REFERENCE.is_dir():
        pytest.skip(f"the big golden files are not at {REFERENCE}")
    return REFERENCE


@pytest.fixture(scope="session")
def golden_settings() -> dict:
    """Settings of the golden models and training files, by file name without suffix."""
    return json.loads((GOLDEN / "models.json").read_text())


@pytest.fixture(scope="session")
def few_landmarks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The embedded landmarks with a handful of pictures."""
    from ames_jax.scenes import Settings, build

    settings = Settings(train_landmarks=8, train_views=4, validation_landmarks=3, test_landmarks=3, **FEW)
    return build(settings, tmp_path_factory.mktemp("landmarks"), processes=1)


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


@pytest.fixture
def strict_dtypes() -> Iterator[None]:
    """Implicit dtype promotion raises. For tests of the model alone: optax counts steps in integers and promotes them."""
    with jax.numpy_dtype_promotion("strict"):
        yield
