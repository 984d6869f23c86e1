"""How long a fresh process takes from its start to the first scores: `python -m ames_jax.benchmarks.first_call Q T K`."""

from __future__ import annotations

import subprocess
import sys
import time


def seconds(queries: int, databases: int, images: int) -> float:
    """Seconds of a new process that imports the package and scores one shortlist, with a warm compilation cache."""
    command = [sys.executable, "-m", "ames_jax.benchmarks.first_call", *map(str, (queries, databases, images))]
    for _ in range(2):  # the first fills the cache
        start = time.perf_counter()
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        taken = time.perf_counter() - start
    return taken


def main() -> None:
    """Scores one random shortlist with a random model of the released size."""
    import numpy as np
    from flax import nnx

    from ames_jax import AMES, AMESConfig, DescriptorSet, score_shortlist
    from ames_jax.runtime import cache

    cache.start()
    queries, databases, images = map(int, sys.argv[1:4])
    config = AMESConfig()
    random = np.random.default_rng(0)
    query = DescriptorSet(random.standard_normal((queries, config.descriptor_width), np.float32))
    database = DescriptorSet(random.standard_normal((images, databases, config.descriptor_width), np.float32))
    print(score_shortlist(AMES(config, nnx.Rngs(0)), query, database)[:3])


if __name__ == "__main__":
    main()
