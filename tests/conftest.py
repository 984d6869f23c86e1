"""Every test runs on 8 fake CPU devices, with silent JAX bugs made loud."""

import os

# Compilation is most of what the tests do: without optimisation and the newer code emitters it takes half the time.
COMPILE_FAST = "--xla_backend_optimization_level=0 --xla_cpu_use_fusion_emitters=false"
os.environ["XLA_FLAGS"] = f"--xla_force_host_platform_device_count=8 {COMPILE_FAST}"
# For processes that tests start: eight fake devices only make small programs slower to compile.
os.environ["ONE_DEVICE_XLA_FLAGS"] = COMPILE_FAST
os.environ["JAX_PLATFORMS"] = "cpu"

import atexit
import json
import tempfile
from collections.abc import Iterator
from pathlib import Path

import jax
import numpy as np
import pytest
from jaxtyping import install_import_hook

# Shapes and types in the signatures of arrays' functions are checked here, and cost nothing in use.
CHECKED = ("descriptors", "model", "data.neighbour_search", "extraction.vlad")
CHECKED += tuple(f"retrieval.{module}" for module in ("judgements", "metrics", "ranking", "refinement", "scorer"))
install_import_hook([f"ames_jax.{module}" for module in CHECKED], "type_checker.check")

jax.config.update("jax_numpy_rank_promotion", "raise")
# Many tests build the same small programs again: compile each once a session (subprocesses share the folder).
COMPILED = tempfile.TemporaryDirectory(prefix="ames_jax_compiled_")
atexit.register(COMPILED.cleanup)
jax.config.update("jax_compilation_cache_dir", COMPILED.name)
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)

GOLDEN = Path(__file__).parent / "golden"
REFERENCE = Path(__file__).parents[2] / "shared" / "reference"


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

    settings = Settings(
        train_landmarks=8, train_views=4, validation_landmarks=3, test_landmarks=3, query_views=1, gallery_views=2,
        descriptors=40, vlad_centres=2, neighbours=2, street_items=6,
    )  # fmt: skip
    return build(settings, tmp_path_factory.mktemp("landmarks"), processes=1, progress=False)


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


@pytest.fixture
def strict_dtypes() -> Iterator[None]:
    """Implicit dtype promotion raises. For tests of the model alone: optax counts steps in integers and promotes them."""
    with jax.numpy_dtype_promotion("strict"):
        yield
