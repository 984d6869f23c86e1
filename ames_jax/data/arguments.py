"""The flags of `python -m ames_jax.prepare`."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from pathlib import Path

from ames_jax.runtime.command_line import Parser

TEXTS = {
    "validate": "Checks release files, or data sets of ours, alone and together.",
    "import": "Turns neighbour and ground-truth pickles into safe files of ours.",
    "neighbours": "Exact nearest neighbours in global descriptors; continued where a killed run was.",
    "shards": "Writes descriptors as a TFDS data set of ArrayRecord shards; continued where a killed run was.",
    "store": "Packs a gallery into binary descriptors of 16 bytes, for evaluation and search with a binary model.",
}


def make_parser(runs: Mapping[str, Callable[[argparse.Namespace], int]], description: str) -> Parser:
    """The parser; `runs`: what each subcommand does, kept as `run` of the parsed arguments."""
    parser = Parser(prog="python -m ames_jax.prepare", description=description)
    commands = parser.add_subparsers(required=True, metavar=" | ".join(TEXTS))
    for name, add_flags in FLAGS.items():
        command = commands.add_parser(name, help=TEXTS[name], description=TEXTS[name])
        command.set_defaults(run=runs[name])
        add_flags(command.add_argument)
    return parser


def positive(text: str) -> int:
    """A whole number above 0."""
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number above 0, found {text!r}")
    return int(text)


def _validate(add: Callable) -> None:
    files = ".hdf5, .npy, .pkl and .txt files of one data set, or folders of `prepare shards`"
    add("files", nargs="+", type=Path, help=files)
    add("--full", action="store_true", help="read all values; without it files of gigabytes are sampled")


def _import(add: Callable) -> None:
    add("--root", type=Path, required=True, help="folder of the data set")
    add("--query", required=True, help="split of the queries, e.g. test_query; train for training lists")
    add("--database", help="split that is searched, e.g. test_gallery; by default the queries' own")
    add("--neighbours", type=Path, help="nn_*.pkl")
    add("--columns", type=positive, help="only the first so many neighbours (training uses 300, itself left out: 301)")
    add("--dtype", choices=("float32", "float16"), default="float32", help="of the similarities")
    add("--global-name", help="how results name the search that made the neighbours, e.g. 'DINOv2 CLS'")
    add("--ground-truth", type=Path, help="gnd_*.pkl")
    add("--name", help="of the ground truth; by default that of the file")
    add("--public", action="store_true", help="GLDv2: only the public queries count, not the last 750 (for validation)")


def _neighbours(add: Callable) -> None:
    several = "global descriptors, .hdf5 or .npy; several files are taken as one (a gallery and its distractors)"
    add("--queries", type=Path, required=True, nargs="+", help=several)
    add("--database", type=Path, nargs="+", help="the same, to search; by default the queries, each without itself")
    add("--k", type=positive, default=300, help="neighbours an image (default: 300)")
    add("--out", type=Path, help="folder of the lists, e.g. ROOT/neighbours/train.train")
    memory = "rows that meet at once: memory is block² · 4 bytes (default: 8192)"
    add("--block", type=positive, default=8192, help=memory)
    add("--process", type=int, default=0, help="number of this host, where hosts share the work: 0, 1, …")
    add("--processes", type=positive, default=1, help="number of hosts; all must see --out")
    add("--compare-faiss", action="store_true", help="only race faiss.IndexFlatIP on one block and print the ratio")


def _shards(add: Callable) -> None:
    add("--root", type=Path, required=True, help="folder of the data set")
    add("--name", required=True, help="name of the data set, e.g. gldv2")
    add("--split", required=True, help="e.g. train, test_query, test_gallery")
    add("--features", type=Path, required=True, help="release HDF5 of local descriptors, or the folder of a data set")
    add("--list", type=Path, help="the text list that belongs to the HDF5 file")
    add("--global-descriptors", type=Path, nargs="+", help="of the split, kept as ROOT/global/SPLIT.npy")
    add("--global-name", help="how results name the first stage")
    add("--backbone", help="dinov2, cvnet, …")
    add("--descriptors", type=positive, help="the strongest kept of each image; by default all")
    storage = "storage; by default float16, or bits where they are packed"
    add("--dtype", choices=("float16", "int8", "bits"), help=storage)
    add("--shards", type=positive, help="files; by default one for every 512 MiB")
    add("--processes", type=positive, help="writing processes; by default one a core")
    add("--beam", metavar="OPTIONS", help="write with Apache Beam, e.g. --beam='--runner=DirectRunner'")
    add("--in-place", action="store_true", help="copy nothing: read the HDF5 file itself in training")


def _store(add: Callable) -> None:
    features = "HDF5 of local descriptors (several are taken as one), or the folder of a data set"
    add("--features", type=Path, required=True, nargs="+", help=features)
    add("--split", help="of that data set, e.g. test_gallery")
    add("--list", type=Path, nargs="+", help="text lists of the images, for their ids; by default row numbers")
    add("--model", required=True, help="binary model: released name, .pt file, run or model directory")
    add("--descriptors", type=positive, default=64, help="strongest kept of each image (default: 64, 1 KB)")
    add("--out", type=Path, required=True, help="the store, e.g. gallery.store")


FLAGS = {"validate": _validate, "import": _import, "neighbours": _neighbours, "shards": _shards, "store": _store}
