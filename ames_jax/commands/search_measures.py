"""The commands of `python -m ames_jax.search` that measure: parameters are the flags, docstrings their help."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter
from etils import epy

from ames_jax.runtime.command_line import check_paths
from ames_jax.runtime.files import write_json
from ames_jax.runtime.flag_values import Count, Size

with epy.lazy_imports():  # help needs none of them
    from ames_jax.benchmarks import search_speed
    from ames_jax.report import search_results

JsonFile = Annotated[Path | None, Parameter(name="--json")]


def speed(
    *,
    image: Path,
    index: Path | None = None,
    count: Count = 100_000,
    budget: Annotated[Size | None, Parameter(show_default=False)] = None,
    global_index: str = "flat",
    shortlist: Count | None = None,
    query_descriptors: Count | None = None,
    json_file: JsonFile = None,
) -> None:
    """Measure what a query against a made-up index of any size costs on this machine.

    Args:
      image: The query.
      index: What `search index` wrote: its backbone, model and settings are measured (default: SIFT, offline).
      count: Images of the made-up index.
      budget: Bytes of local bits per image (default: the index's, else 1024).
      global_index: As of `search index`.
      shortlist: Images re-ranked (default: the index's).
      query_descriptors: Descriptors of the query (default: the index's).
      json_file: Write the figures to this file too.
    """
    check_paths(image=image, index=index)
    load = search_speed.Load(count, budget, global_index, shortlist, query_descriptors)
    facts = search_speed.measure_speed(load, image, index)
    print(search_results.speed_text(facts))
    if json_file:
        write_json(json_file, facts)


def plan(
    *,
    images: Count,
    budget: Size,
    shortlist: Count = 100,
    query_descriptors: Count = 600,
    model: str = "dinov2_ames_dist",
    dtype: Literal["float32", "bfloat16"] = "float32",
    json_file: JsonFile = None,
) -> None:
    """Tell how many descriptors fit a budget, and what a query then costs on this machine.

    Args:
      images: Images of the collection, e.g. 1e8.
      budget: Bytes per image for local descriptors, e.g. 1KB (1024 B).
      shortlist: Images re-ranked per query.
      query_descriptors: Descriptors of a query, which is not stored.
      model: Released name whose shape the model has.
      dtype: Compute type.
      json_file: Write the figures to this file too.
    """
    counts = {"shortlist": shortlist, "query_descriptors": query_descriptors}
    made = search_speed.make_plan(images=images, budget=budget, model=model, dtype=dtype, **counts)
    print(made.table())
    if json_file:
        write_json(json_file, made.facts())
