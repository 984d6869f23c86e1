"""The commands of `python -m ames_jax.search` that measure: parameters are the flags, docstrings their help."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter
from etils import epy

from ames_jax.runtime.command_line import Count, Counts, Size, check_paths
from ames_jax.runtime.files import write_json

with epy.lazy_imports():  # help needs none of them
    from ames_jax import scenes
    from ames_jax.benchmarks import search_plan, search_quality, search_speed
    from ames_jax.index import model_choice
    from ames_jax.report import search_results

# --counts=50,64 or --counts 50 64
Several = Annotated[Counts, Parameter(consume_multiple=True, show_default=lambda counts: ",".join(map(str, counts)))]
JsonFile = Annotated[Path | None, Parameter(name="--json")]


def quality(
    *,
    model: str | None = None,
    shortlist: Count = 100,
    query_descriptors: Count = 100,
    counts: Several = (50, 64),
    json_file: JsonFile = None,
) -> None:
    """Measure mAP on the embedded landmarks' test pictures.

    Args:
      model: Run or model directory, release .pt or released name (default: the one shipped for SIFT).
      shortlist: Images re-ranked per query.
      query_descriptors: Descriptors of a query.
      counts: Descriptors stored per image.
      json_file: Write the figures to this file too.
    """
    root = scenes.build("landmarks")
    chosen = model_choice.ChosenModel.load(model, "sift")
    asked = search_quality.QualityWork(tuple(counts), query_descriptors, shortlist)
    rows = search_quality.measure_quality(chosen, root, asked)
    print(search_results.quality_text(rows, shortlist, query_descriptors, scenes.LANDMARKS.name))
    if json_file:
        write_json(json_file, {"model": chosen.name, **dataclasses.asdict(asked), "rows": rows})


def speed(
    *,
    image: Path,
    model: str | None = None,
    statistics: Path | None = None,
    count: Count = 100_000,
    budget: Size = 800,
    global_index: str = "flat",
    shortlist: Count = 100,
    query_descriptors: Count = 100,
    json_file: JsonFile = None,
) -> None:
    """Measure what a query against a made-up index of any size costs on this machine.

    Args:
      image: The query.
      model: Run or model directory, release .pt or released name (default: the one shipped for SIFT).
      statistics: SIFT statistics of the model (default: as shipped).
      count: Images of the made-up index.
      budget: Bytes of local bits per image (default: 50 descriptors of 16 B).
      global_index: As of `search index`.
      shortlist: Images re-ranked.
      query_descriptors: Descriptors of the query.
      json_file: Write the figures to this file too.
    """
    check_paths(image=image, statistics=statistics)
    chosen = model_choice.ChosenModel.load(model, "sift")
    load = search_speed.Load(count, budget, global_index, shortlist, query_descriptors)
    facts = search_speed.measure_speed(chosen, load, image, statistics)
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
    made = search_plan.make_plan(images=images, budget=budget, model=model, dtype=dtype, **counts)
    print(made.table())
    if json_file:
        write_json(json_file, made.facts())
