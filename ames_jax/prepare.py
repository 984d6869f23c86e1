"""Prepares data sets: `python -m ames_jax.prepare validate | import | neighbours | shards | store`.

`--help` after each says more.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from ames_jax.data.arguments import make_parser
from ames_jax.runtime.errors import UserError, run_main


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one subcommand; 0 done, 2 problems found (validate)."""
    arguments = make_parser(RUNS, __doc__).parse_args(argv)
    return arguments.run(arguments)


def _validate(arguments: argparse.Namespace) -> int:
    from ames_jax.data.checks.validation import validate

    report = validate(arguments.files, full=arguments.full)
    print(report)
    return 2 if report.problems else 0


def _import(arguments: argparse.Namespace) -> int:
    from ames_jax.data.release_pickles import import_ground_truth, import_neighbours

    if not arguments.neighbours and not arguments.ground_truth:
        raise UserError("nothing to import: give --neighbours nn_*.pkl, --ground-truth gnd_*.pkl, or both")
    if arguments.global_name and not arguments.neighbours:
        raise UserError("--global-name names the search that made --neighbours, which is missing")
    query, database = arguments.query, arguments.database or arguments.query
    if arguments.neighbours:
        folder = arguments.root / "neighbours" / f"{query}.{database}"
        about = {"global": arguments.global_name} if arguments.global_name else None
        count, columns = import_neighbours(
            arguments.neighbours, folder, columns=arguments.columns, dtype=arguments.dtype, about=about
        )
        print(f"{folder}: {columns} neighbours of {count} images")
    if arguments.ground_truth:
        name = arguments.name or arguments.ground_truth.stem.removeprefix("gnd_")
        path = arguments.root / "ground_truth" / f"{name}.json"
        count = import_ground_truth(
            arguments.ground_truth, path, query=query, database=database, public=arguments.public
        )
        print(f"{path}: {count} queries" + (", of which the public ones count" if arguments.public else ""))
    return 0


def _neighbours(arguments: argparse.Namespace) -> int:
    from ames_jax.data.global_descriptors import GlobalDescriptors
    from ames_jax.data.neighbour_search import race_faiss
    from ames_jax.data.neighbours import search_to_folder

    queries = GlobalDescriptors(arguments.queries)
    database = queries if arguments.database is None else GlobalDescriptors(arguments.database)
    if arguments.compare_faiss:
        print(race_faiss(queries, database, arguments.k, block=arguments.block))
        return 0
    if arguments.out is None:
        raise UserError("--out is missing: name the folder of the lists, e.g. ROOT/neighbours/train.train")
    complete = search_to_folder(
        arguments.out, queries, database, arguments.k, exclude_self=arguments.database is None,
        block=arguments.block, process=arguments.process, processes=arguments.processes,
    )  # fmt: skip
    print(f"{arguments.out}: " + ("complete" if complete else "this host's part is done, others are still at work"))
    return 0


def _shards(arguments: argparse.Namespace) -> int:
    from ames_jax.data.release_hdf5 import ReleaseSource
    from ames_jax.data.shards import link_split, open_split, write_shards

    root, split = arguments.root, arguments.split
    if arguments.features.is_dir():
        source = open_split(arguments.features, split)
    else:
        source = ReleaseSource(arguments.features, arguments.list, arguments.descriptors)
    stored = source.format
    if arguments.in_place:
        link_split(root, split, source)
    else:
        dtype = arguments.dtype or stored.dtype
        settings = {
            "descriptors": min(arguments.descriptors or stored.descriptors, stored.descriptors), "width": stored.width,
            "dtype": dtype, "shards": arguments.shards,
        }  # fmt: skip
        beam = None if arguments.beam is None else arguments.beam.split()
        write_shards(root, arguments.name, {split: source}, processes=arguments.processes, beam=beam, **settings)
    _keep_facts(arguments, stored.width)
    if arguments.global_descriptors:
        _keep_global(arguments, len(source))
    print(f"{root}: split {split} of {len(source)} images" + (" (read in place)" if arguments.in_place else ""))
    return 0


def _keep_facts(arguments: argparse.Namespace, width: int) -> None:
    from ames_jax.data.shards import read_about
    from ames_jax.runtime.files import write_json

    facts = {"name": arguments.name, "width": width}
    if arguments.features.is_dir():
        facts = {**read_about(arguments.features), **facts}
    if arguments.backbone:
        facts["backbone"] = arguments.backbone
    if arguments.global_descriptors:
        facts["global"] = arguments.global_name or arguments.global_descriptors[0].stem
    write_json(arguments.root / "about.json", {**read_about(arguments.root), **facts})


def _keep_global(arguments: argparse.Namespace, count: int) -> None:
    from ames_jax.data.global_descriptors import GlobalDescriptors

    values = GlobalDescriptors(arguments.global_descriptors)
    if len(values) != count:
        raise UserError(
            f"{arguments.global_descriptors[0]}: {len(values)} images, but split {arguments.split} has {count}"
        )
    folder = arguments.root / "global"
    folder.mkdir(exist_ok=True)
    values.save(folder / f"{arguments.split}.npy")


def _store(arguments: argparse.Namespace) -> int:
    from ames_jax.data.store import build_store
    from ames_jax.index.galleries import open_gallery
    from ames_jax.model.packing import BitPacker
    from ames_jax.model.released import load_model
    from ames_jax.runtime import cache

    cache.start()
    reader, ids = open_gallery(arguments.features, arguments.split, arguments.list)
    store = build_store(
        arguments.out, reader, ids, BitPacker(load_model(arguments.model)), arguments.descriptors,
        model=Path(arguments.model).name, source=str(arguments.features[0]), show_progress=True,
    )  # fmt: skip
    size = store.header["descriptors"] * store.header["bits"] // 8
    print(f"{arguments.out}: {len(store)} images, {size} B of descriptors each")
    return 0


RUNS = {"validate": _validate, "import": _import, "neighbours": _neighbours, "shards": _shards, "store": _store}


if __name__ == "__main__":
    run_main(main)
