"""Search in collections of pictures: index what was extracted, query it, see why an image was found, plan a large one."""

from __future__ import annotations

import argparse
import dataclasses
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ames_jax.index.arguments import make_parser
from ames_jax.runtime import cache
from ames_jax.runtime.errors import UserError, run_main

if TYPE_CHECKING:
    from ames_jax.index.searcher import Searcher


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one subcommand."""
    runs = {
        "index": _index, "query": _query, "explain": _explain, "quality": _quality, "speed": _speed, "plan": _plan,
    }  # fmt: skip
    arguments = make_parser(__doc__, runs).parse_args(argv)
    cache.start()
    return arguments.run(arguments)


def _index(arguments: argparse.Namespace) -> int:
    from ames_jax.index.building import Descriptors, add_images, build_index
    from ames_jax.index.collection import SearchIndex
    from ames_jax.index.model_choice import ChosenModel
    from ames_jax.report.search_text import index_text

    descriptors = Descriptors.open(arguments.descriptors, arguments.split)
    if arguments.add:
        if arguments.model:
            raise UserError("--add uses the model of the index: leave --model out")
        added = add_images(arguments.out, descriptors)
        index = SearchIndex.open(arguments.out)
    else:
        backbone = descriptors.about.get("backbone", "")
        chosen = ChosenModel.load(arguments.model, backbone, arguments.lam, arguments.gamma)
        index = build_index(
            arguments.out, descriptors, chosen,
            budget=arguments.budget, global_index=arguments.global_index,
        )  # fmt: skip
        added = len(index)
    print(index_text(index, added))
    return 0


def _query(arguments: argparse.Namespace) -> int:
    from tqdm import tqdm

    from ames_jax.index.labels import Labels
    from ames_jax.report.plain_tables import write_json
    from ames_jax.report.search_gallery import check_suffix, write_gallery
    from ames_jax.report.search_text import result_facts, result_text, timing_text

    queries = _queries(arguments)
    for path in arguments.gallery:
        check_suffix(path)
    labels = Labels.read(arguments.labels) if arguments.labels else None
    start = time.perf_counter()
    searcher = _searcher(arguments)
    searcher.warm_up()
    start = time.perf_counter() - start
    with tqdm(total=len(queries), unit="query", disable=None if len(queries) > 1 else True, leave=False) as bar:
        results = searcher.search_many(queries, max(arguments.top, arguments.columns), bar.update)
    for path in arguments.gallery:
        write_gallery(
            path, searcher.index, queries, results,
            shortlist=searcher.shortlist, columns=arguments.columns, labels=labels, pictures=arguments.pictures,
        )  # fmt: skip
    results = [dataclasses.replace(result, hits=result.hits[: arguments.top]) for result in results]
    facts = {"queries": [result_facts(query, result, searcher.index) for query, result in zip(queries, results)]}
    if arguments.json == "-":
        print(json.dumps(facts, indent=1))
        return 0
    write_json(arguments.json and Path(arguments.json), facts)
    print("\n\n".join(result_text(query, result) for query, result in zip(queries, results)))
    if arguments.timing:
        print(timing_text(results, start))
    for path in arguments.gallery:
        print(path)
    return 0


def _queries(arguments: argparse.Namespace) -> list[Path]:
    queries = list(arguments.image)
    if arguments.images:
        from ames_jax.extraction.listing import list_images

        queries += [file.path for file in list_images(arguments.images).files]
    if not queries:
        raise UserError("nothing to search for: give --image=FILE, or --images=DIR or a list of files")
    return queries


def _searcher(arguments: argparse.Namespace) -> Searcher:
    """The searcher that the flags ask for."""
    from ames_jax.index.collection import SearchIndex
    from ames_jax.index.searcher import Searcher

    return Searcher(
        SearchIndex.open(arguments.index, arguments.faiss), shortlist=arguments.shortlist,
        query_descriptors=arguments.query_descriptors, lam=arguments.lam, gamma=arguments.gamma,
    )  # fmt: skip


def _explain(arguments: argparse.Namespace) -> int:
    from ames_jax.index.explaining import explain
    from ames_jax.report.explanation import draw_explanation

    searcher = _searcher(arguments)
    found = explain(searcher, arguments.image, arguments.id, arguments.pictures)
    draw_explanation(
        found, searcher.lam, searcher.gamma, (arguments.image.name, arguments.id), arguments.out, arguments.lines
    )
    print(f"score {found.hit.score:.4f}: {len(found.pairs)} correspondences, drawn in {arguments.out}")
    return 0


def _quality(arguments: argparse.Namespace) -> int:
    from ames_jax.benchmarks.search_quality import Asked, measure_quality
    from ames_jax.index.model_choice import ChosenModel
    from ames_jax.report.plain_tables import write_json
    from ames_jax.report.search_text import quality_text
    from ames_jax.scenes import landmarks

    root = landmarks.build()
    chosen = ChosenModel.load(arguments.model, "sift")
    asked = Asked(tuple(arguments.counts), arguments.query_descriptors, arguments.shortlist)
    rows = measure_quality(chosen, root, asked)
    print(quality_text(rows, asked.shortlist, asked.query_descriptors, landmarks.NAME))
    write_json(arguments.json, {"model": chosen.name, **dataclasses.asdict(asked), "rows": rows})
    return 0


def _speed(arguments: argparse.Namespace) -> int:
    from ames_jax.benchmarks.search_speed import Load, measure_speed
    from ames_jax.index.model_choice import ChosenModel
    from ames_jax.report.plain_tables import write_json
    from ames_jax.report.search_text import speed_text

    chosen = ChosenModel.load(arguments.model, "sift")
    load = Load(
        arguments.count, arguments.budget, arguments.global_index, arguments.shortlist, arguments.query_descriptors
    )
    facts = measure_speed(chosen, load, arguments.image, arguments.statistics)
    print(speed_text(facts))
    write_json(arguments.json, facts)
    return 0


def _plan(arguments: argparse.Namespace) -> int:
    from ames_jax.benchmarks.search_plan import make_plan
    from ames_jax.report.plain_tables import write_json

    plan = make_plan(
        images=arguments.images, budget=arguments.budget, shortlist=arguments.shortlist,
        query_descriptors=arguments.query_descriptors, model=arguments.model, dtype=arguments.dtype,
    )  # fmt: skip
    print(plan.table())
    write_json(arguments.json, plan.facts())
    return 0


if __name__ == "__main__":
    run_main(main)
