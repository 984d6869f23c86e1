"""Prepares data sets: `python -m ames_jax.prepare validate | import | neighbours | shards`; `--help` after each says more."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ames_jax.errors import UserError, run_main


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one subcommand; 0 done, 2 problems found (validate)."""
    arguments = _parser().parse_args(argv)
    return arguments.run(arguments)


def _validate(arguments: argparse.Namespace) -> int:
    from ames_jax.data.validation import validate

    report = validate(arguments.files, full=arguments.full)
    print(report)
    return 2 if report.problems else 0


def _import(arguments: argparse.Namespace) -> int:
    from ames_jax.data.importing import import_ground_truth, import_neighbours

    if not arguments.neighbours and not arguments.ground_truth:
        raise UserError("nothing to import: give --neighbours nn_*.pkl, --ground-truth gnd_*.pkl, or both")
    query, database = arguments.query, arguments.database or arguments.query
    if arguments.neighbours:
        folder = arguments.root / "neighbours" / f"{query}.{database}"
        count, columns = import_neighbours(
            arguments.neighbours, folder, columns=arguments.columns, dtype=arguments.dtype
        )
        print(f"{folder}: {columns} neighbours of {count} images")
    if arguments.ground_truth:
        name = arguments.name or arguments.ground_truth.stem.removeprefix("gnd_")
        path = arguments.root / "ground_truth" / f"{name}.json"
        count = import_ground_truth(arguments.ground_truth, path, query=query, database=database)
        print(f"{path}: {count} queries")
    return 0


def _neighbours(arguments: argparse.Namespace) -> int:
    from ames_jax.data.neighbour_jobs import race_faiss, search_to_folder
    from ames_jax.data.release_hdf5 import open_global

    queries = open_global(arguments.queries)
    database = queries if arguments.database is None else open_global(arguments.database)
    if arguments.compare_faiss:
        print(race_faiss(queries, database, arguments.k, block=arguments.block))
        return 0
    complete = search_to_folder(
        arguments.out, queries, database, arguments.k, exclude_self=arguments.database is None, block=arguments.block,
        process=arguments.process, processes=arguments.processes,
        progress=lambda done, total: print(f"\r{done} of {total} blocks", end="", file=sys.stderr, flush=True),
    )  # fmt: skip
    print(file=sys.stderr)
    print(f"{arguments.out}: " + ("complete" if complete else "this host's part is done, others are still at work"))
    return 0


def _shards(arguments: argparse.Namespace) -> int:
    from ames_jax.data.beam_shards import write_shards_with_beam
    from ames_jax.data.release_files import ReleaseSource
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
        if arguments.beam is None:
            write_shards(root, arguments.name, {split: source}, processes=arguments.processes, **settings)
        else:
            write_shards_with_beam(root, arguments.name, {split: source}, options=arguments.beam.split(), **settings)
    _keep_facts(arguments, stored.width)
    if arguments.global_descriptors:
        _keep_global(arguments, len(source))
    print(f"{root}: split {split} of {len(source)} images" + (" (read in place)" if arguments.in_place else ""))
    return 0


def _keep_facts(arguments: argparse.Namespace, width: int) -> None:
    from ames_jax.data.shard_tasks import write_text
    from ames_jax.data.shards import read_about

    facts = {"name": arguments.name, "width": width}
    if arguments.features.is_dir():
        facts = {**read_about(arguments.features), **facts}
    if arguments.backbone:
        facts["backbone"] = arguments.backbone
    if arguments.global_descriptors:
        facts["global"] = arguments.global_name or arguments.global_descriptors.stem
    write_text(arguments.root / "about.json", json.dumps({**read_about(arguments.root), **facts}, indent=1))


def _keep_global(arguments: argparse.Namespace, count: int) -> None:
    from ames_jax.data.release_hdf5 import open_global

    values = open_global(arguments.global_descriptors)
    if len(values) != count:
        raise UserError(
            f"{arguments.global_descriptors}: {len(values)} images, but split {arguments.split} has {count}"
        )
    folder = arguments.root / "global"
    folder.mkdir(exist_ok=True)
    np.save(folder / f"{arguments.split}.npy", np.asarray(values, np.float32))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m ames_jax.prepare", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="validate | import | neighbours | shards")

    def command(name: str, run: object, text: str) -> argparse.ArgumentParser:
        added = commands.add_parser(name, help=text, description=text)
        added.set_defaults(run=run)
        return added

    add = command("validate", _validate, "Checks release files, or data sets of ours, alone and together.").add_argument
    add(
        "files", nargs="+", type=Path, help=".hdf5, .pkl and .txt files of one data set, or folders of `prepare shards`"
    )
    add("--full", action="store_true", help="read all values; without it large files are sampled")

    add = command("import", _import, "Turns neighbour and ground-truth pickles into safe files of ours.").add_argument
    add("--root", type=Path, required=True, help="folder of the data set")
    add("--query", required=True, help="split of the queries, e.g. test_query; train for training lists")
    add("--database", help="split that is searched, e.g. test_gallery; by default the queries' own")
    add("--neighbours", type=Path, help="nn_*.pkl")
    add("--columns", type=int, help="only the first so many neighbours (training uses 300)")
    add("--dtype", choices=("float32", "float16"), default="float32", help="of the similarities")
    add("--ground-truth", type=Path, help="gnd_*.pkl")
    add("--name", help="of the ground truth; by default that of the file")

    text = "Exact nearest neighbours in global descriptors; continued where a killed run was."
    add = command("neighbours", _neighbours, text).add_argument
    add("--queries", type=Path, required=True, help="global descriptors, .hdf5 or .npy")
    add("--database", type=Path, help="global descriptors to search; by default the queries themselves, self excluded")
    add("--k", type=int, default=300, help="neighbours an image (default: 300)")
    add("--out", type=Path, required=True, help="folder of the lists, e.g. ROOT/neighbours/train.train")
    add("--block", type=int, default=8192, help="rows that meet at once: memory is block² · 4 bytes (default: 8192)")
    add("--process", type=int, default=0, help="number of this host, where hosts share the work")
    add("--processes", type=int, default=1, help="number of hosts")
    add("--compare-faiss", action="store_true", help="only race faiss.IndexFlatIP on one block and print the ratio")

    text = "Writes descriptors as a TFDS data set of ArrayRecord shards; continued where a killed run was."
    add = command("shards", _shards, text).add_argument
    add("--root", type=Path, required=True, help="folder of the data set")
    add("--name", required=True, help="name of the data set, e.g. gldv2")
    add("--split", required=True, help="e.g. train, test_query, test_gallery")
    add("--features", type=Path, required=True, help="release HDF5 of local descriptors, or the folder of a data set")
    add("--list", type=Path, help="the text list that belongs to the HDF5 file")
    add("--global-descriptors", type=Path, help="global descriptors of the split, kept as ROOT/global/SPLIT.npy")
    add("--global-name", help="how results name the first stage")
    add("--backbone", help="dinov2, cvnet, …")
    add("--descriptors", type=int, help="the strongest kept of each image; by default all")
    add(
        "--dtype",
        choices=("float16", "int8", "bits"),
        help="storage; by default float16, or bits where they are packed",
    )
    add("--shards", type=int, help="files; by default one for every 512 MiB")
    add("--processes", type=int, help="writing processes; by default one a core")
    add("--beam", metavar="OPTIONS", help="write with Apache Beam, e.g. --beam='--runner=DirectRunner'")
    add("--in-place", action="store_true", help="copy nothing: read the HDF5 file itself in training")
    return parser


if __name__ == "__main__":
    run_main(main)
