"""`python -m ames_jax.benchmark score`: pairs per second of queries against shortlists, beside the release in PyTorch."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Mapping
from typing import Any

import numpy as np

from ames_jax.benchmarks import flops
from ames_jax.benchmarks.flags import ScoreFlags, Shape
from ames_jax.benchmarks.harness import Case, Harness, comparable, random_model
from ames_jax.descriptors import DescriptorSet
from ames_jax.model.ames import AMESConfig
from ames_jax.model.kinds import KINDS, Config, fields_of
from ames_jax.retrieval.scorer import Scorer
from ames_jax.runtime.progress import Progress

TOLERANCE = {"float32": 1e-5, "bfloat16": 0.1}
PER_VOTE = 1e-6  # that each vote of ELViS's sum may be off
FIRST_CALL = """
import sys
import numpy as np
from flax import nnx
from ames_jax import AMES, AMESConfig, DescriptorSet, score_shortlist
from ames_jax.runtime import cache

cache.start()
queries, databases, images = map(int, sys.argv[1:])
config, random = AMESConfig(), np.random.default_rng(0)
query = DescriptorSet(random.standard_normal((queries, config.descriptor_width), np.float32))
database = DescriptorSet(random.standard_normal((images, databases, config.descriptor_width), np.float32))
score_shortlist(AMES(config, nnx.Rngs(0)), query, database)
"""


def measure(flags: ScoreFlags, config: Config | None = None) -> dict[str, Any]:
    """Measures every shape with every shortlist; `config` is the model (default: of `flags`)."""
    harness = Harness(flags, "pairs", flags.dtype, flags.repeats)
    config = comparable(config or KINDS[flags.matcher][0](), flags.dtype)
    model, weights = random_model(config)
    rows = []
    for shape in flags.shapes:
        for images in flags.shortlist:
            row = harness.row(_case(flags, Scorer(model), weights, shape, images))
            if isinstance(config, AMESConfig):
                row["dense_gflop_per_pair"] = flops.dense_pair(config, *shape) / 1e9
            rows.append(row)
    notes, facts = [], {}
    if not flags.skip_first_call and isinstance(config, AMESConfig):
        facts["first_call_seconds"] = first_call_seconds(*flags.shapes[0], flags.shortlist[0])
        notes = [
            f"A fresh process, programs cached, has the scores of its first shortlist ({rows[0]['shape']}, "
            f"{flags.shortlist[0]} images) {facts['first_call_seconds']:.1f} s after its start."
        ]
    text = (
        f"{flags.queries} queries at a time; GFLOP/s counts only what a score needs. PyTorch takes {flags.torch_batch} pairs "
        "at a time or all, and at its best the fastest of some numbers."
    )
    return harness.report({"shape": "Q×T", "shortlist": "shortlist"}, rows, text, *notes, **facts)


def _case(flags: ScoreFlags, scorer: Scorer, weights: Mapping[str, np.ndarray], shape: Shape, images: int) -> Case:
    config, (q, t), random = scorer.config, shape, np.random.default_rng(0)
    queries = random.standard_normal((flags.queries, q, config.descriptor_width), np.float32)
    database = random.standard_normal((images, t, config.descriptor_width), np.float32)
    sides, lists = (DescriptorSet(queries), DescriptorSet(database)), np.tile(np.arange(images), (flags.queries, 1))
    arrays = {f"param/{name}": array for name, array in weights.items()}
    arrays |= {"query": queries[0], "database": database[: flags.torch_pairs]}
    settings = {"config": fields_of(config), "batch": flags.torch_batch, "compile": flags.torch_compile}
    return Case(
        row={"shape": f"{q}×{t}", "shortlist": images},
        ours=lambda: {"logits": scorer.shortlists(*sides, lists)[0, : flags.torch_pairs]},
        units=lists.size,
        job=("score", settings, arrays),
        tolerance=TOLERANCE if isinstance(config, AMESConfig) else {"float32": PER_VOTE * (q + t)},
        work=flags.queries * flops.shortlist(config, q, t, images),
    )


def first_call_seconds(queries: int, databases: int, images: int) -> float:
    """Seconds of a new process that imports the package and scores one shortlist, with a warm compilation cache."""
    command = [sys.executable, "-c", FIRST_CALL, *map(str, (queries, databases, images))]
    with Progress("a fresh process"):
        for _ in range(2):  # the first fills the cache
            start = time.perf_counter()
            subprocess.run(command, check=True)
            taken = time.perf_counter() - start
    return taken
