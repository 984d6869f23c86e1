"""The command line of `python -m ames_jax.search`: subcommands, flags, and what their values may be."""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable, Mapping
from pathlib import Path

from ames_jax.model.ames import NAMED

UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}
Run = Callable[[argparse.Namespace], int]


def size_in_bytes(text: str) -> int:
    """ "1KB" → 1024, "800" → 800, "1.5 MB" → 1572864 (1 KB = 1024 B, as in our tables)."""
    match = re.fullmatch(r"\s*(\d+\.?\d*(?:e\d+)?)\s*([KMGT]?)i?B?\s*", text, re.IGNORECASE)
    if not match or float(match[1]) <= 0:
        raise argparse.ArgumentTypeError(f"expected a size such as 800B, 1KB or 2MB, found {text!r}")
    return round(float(match[1]) * UNITS[match[2].upper()])


def count(text: str) -> int:
    """ "1e8" → 100000000."""
    try:
        value = float(text)
    except ValueError:
        value = 0
    if not 1 <= value < float("inf") or value != int(value):
        raise argparse.ArgumentTypeError(f"expected a whole number above 0, e.g. 1000000 or 1e8, found {text!r}")
    return int(value)


def make_parser(description: str, runs: Mapping[str, Run]) -> argparse.ArgumentParser:
    """The parser; `arguments.run` is what `runs` names for the subcommand."""
    parser = argparse.ArgumentParser(prog="python -m ames_jax.search", description=description)
    commands = parser.add_subparsers(required=True, metavar=" | ".join(SUBCOMMANDS))
    for name, (text, add_flags) in SUBCOMMANDS.items():
        command = commands.add_parser(name, help=text, description=text)
        command.set_defaults(run=runs[name])
        add_flags(command)
    return parser


def _index_flags(command: argparse.ArgumentParser) -> None:
    add = command.add_argument
    add("--descriptors", type=Path, required=True, metavar="DIR", help="what python -m ames_jax.extract wrote")
    add("--split", default="images", help="split of the data set (default: images)")
    add("--out", type=Path, required=True, metavar="INDEX", help="folder of the index")
    add("--add", action="store_true", help="add the images that the index does not hold yet to the one at --out")
    add("--budget", type=size_in_bytes, default=1024, help="bytes of local bits an image (default: 1KB)")
    add(
        "--global-index", default="flat", metavar="KIND",
        help="flat (exact, default), ivf or hnsw (millions), or a factory string of FAISS, e.g. SQfp16",
    )  # fmt: skip
    _model_flag(command)
    add("--lam", type=float, help="weight of the global similarity (default: the model's)")
    add("--gamma", type=float, help="scale of the logits (default: the model's)")


def _model_flag(command: argparse.ArgumentParser) -> None:
    text = "run or model directory, release .pt or released name (default: the one shipped for the descriptors)"
    command.add_argument("--model", metavar="MODEL", help=text)


def _query_flags(command: argparse.ArgumentParser) -> None:
    add = command.add_argument
    _asked_flags(command)
    add("--image", type=Path, action="append", default=[], metavar="FILE", help="a query; may be given several times")
    add("--images", type=Path, metavar="DIR|LIST", help="queries: all pictures of a folder, or a list of files")
    add("--top", type=count, default=20, help="images listed of each query (default: 20)")
    add(
        "--gallery", type=Path, action="append", default=[], metavar="FILE",
        help="draw the rankings: .html (one file, works offline) or .png; may be given twice",
    )  # fmt: skip
    add("--columns", type=count, default=10, help="images of a ranking in the gallery (default: 10)")
    add("--labels", metavar="folder|FILE", help="what pictures show: their folder's name, or lines of picture,label")
    add(
        "--json", nargs="?", const="-", metavar="FILE", help="print the results as JSON, or write them to FILE"
    )  # fmt: skip
    add("--timing", action="store_true", help="print how long each stage took")


def _asked_flags(command: argparse.ArgumentParser) -> None:
    add = command.add_argument
    add("--index", type=Path, required=True, metavar="INDEX", help="what `search index` wrote")
    add("--pictures", type=Path, metavar="DIR", help="folder of the indexed pictures, where they have moved")
    add("--shortlist", type=count, default=100, help="images re-ranked (default: 100)")
    add("--query-descriptors", type=count, default=100, help="the strongest of a query that are used (default: 100)")
    add("--lam", type=float, help="weight of the global similarity (default: the index's)")
    add("--gamma", type=float, help="scale of the logits (default: the index's)")
    add("--faiss", metavar="PARAMETERS", help="of FAISS's search, e.g. nprobe=64 or efSearch=256")


def _explain_flags(command: argparse.ArgumentParser) -> None:
    add = command.add_argument
    _asked_flags(command)
    add("--image", type=Path, required=True, metavar="FILE", help="the query")
    add("--id", required=True, help="id of an indexed image, as `search query` lists it")
    add("--lines", type=count, default=30, help="correspondences drawn, strongest first (default: 30)")
    add("--out", type=Path, default=Path("explanation.png"), metavar="FILE.png", help="default: explanation.png")


def _quality_flags(command: argparse.ArgumentParser) -> None:
    add = command.add_argument
    _model_flag(command)
    add("--shortlist", type=count, default=100, help="images re-ranked (default: 100)")
    add("--query-descriptors", type=count, default=100, help="of a query (default: 100)")
    add("--counts", type=count, nargs="+", default=[50, 64], help="descriptors stored an image (default: 50 64)")
    add("--json", type=Path, metavar="FILE", help="write the figures there too")


def _speed_flags(command: argparse.ArgumentParser) -> None:
    add = command.add_argument
    _model_flag(command)
    add("--image", type=Path, required=True, metavar="FILE", help="the query")
    add("--statistics", type=Path, metavar="FILE", help="SIFT statistics of the model (default: as shipped)")
    add("--count", type=count, default=100_000, help="images of the made-up index (default: 1e5)")
    add("--budget", type=size_in_bytes, default=800, help="bytes of local bits an image (default: 800B, 50 × 16)")
    add("--global-index", default="flat", metavar="KIND", help="as of `search index` (default: flat)")
    add("--shortlist", type=count, default=100, help="images re-ranked (default: 100)")
    add("--query-descriptors", type=count, default=100, help="of a query (default: 100)")
    add("--json", type=Path, metavar="FILE", help="write the figures there too")


def _plan_flags(command: argparse.ArgumentParser) -> None:
    add = command.add_argument
    add("--images", type=count, required=True, help="images of the collection, e.g. 1e8")
    add("--budget", type=size_in_bytes, required=True, help="for local descriptors, bytes an image, e.g. 1KB (1024 B)")
    add("--shortlist", type=count, default=100, help="images re-ranked a query (default: 100)")
    add(
        "--query-descriptors",
        type=count,
        default=600,
        help="descriptors of a query, which is not stored (default: 600)",
    )
    add("--model", choices=sorted(NAMED), default="dinov2_ames_dist", help="shape of the model (default: %(default)s)")
    add("--dtype", choices=("float32", "bfloat16"), default="float32", help="compute type (default: float32)")
    add("--json", type=Path, metavar="FILE", help="write the figures there too")


SUBCOMMANDS = {
    "index": ("Index extracted descriptors: a FAISS index and about 1 KB of bits an image.", _index_flags),
    "query": ("Find a picture's likes: global search, then re-ranked by AMES.", _query_flags),
    "explain": ("Draw what connects a picture and an indexed image.", _explain_flags),
    "quality": ("mAP on the embedded landmarks' test pictures.", _quality_flags),
    "speed": ("What a query against a made-up index of any size costs on this machine.", _speed_flags),
    "plan": ("How many descriptors fit a budget, and what a query then costs on this machine.", _plan_flags),
}
