"""Writing a data set on a cluster: the same shards as `write_shards`, each an element of an Apache Beam pipeline."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from ames_jax.data.shard_tasks import ShardTask, Source, verify_shard, write_shard
from ames_jax.data.shard_writing import finish, plan_shards
from ames_jax.runtime.errors import UserError


def write_shards_with_beam(
    root: str | Path,
    name: str,
    splits: Mapping[str, Source],
    *,
    descriptors: int,
    width: int,
    dtype: str = "float16",
    shards: int | None = None,
    options: Sequence[str] = (),
) -> None:
    """Writes a data set as `write_shards` does, to the same bytes, on Beam's workers.

    Args:
      root, splits: the workers must see the folder, and the files behind the sources, under the same paths.
      name, descriptors, width, dtype, shards: as in `write_shards`.
      options: Beam's own, e.g. `--runner=FlinkRunner`; by default the direct runner of this machine.

    Raises:
      UserError: apache-beam is not installed; else as `write_shards`.
    """
    try:
        import apache_beam as beam
        from apache_beam.options.pipeline_options import PipelineOptions
    except ImportError:
        raise UserError("writing on a cluster needs Apache Beam: pip install apache-beam") from None
    plan = plan_shards(root, name, splits, descriptors=descriptors, width=width, dtype=dtype, shards=shards)
    with beam.Pipeline(options=PipelineOptions(list(options))) as pipeline:
        tasks = pipeline | beam.Create(plan) | beam.Reshuffle()
        _ = tasks | beam.Map(_write_and_verify, dict(splits))
    finish(plan)


def _write_and_verify(task: ShardTask, splits: Mapping[str, Source]) -> None:
    write_shard(task, splits[task.split])
    problem = verify_shard(task, splits[task.split])
    if problem:
        raise UserError(problem)
