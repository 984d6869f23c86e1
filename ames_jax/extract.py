"""Descriptors of any images: `python -m ames_jax.extract --images=DIR|LIST --backbone=sift|dinov2|cvnet --out=DIR`.

Writes a data set like any other: shards of local descriptors, global descriptors, ids, and labels from the names of
sub-folders. A killed run goes on where it was when the same command is given again.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from ames_jax.runtime import cache
from ames_jax.runtime.errors import UserError, run_main


def main(argv: Sequence[str] | None = None) -> int:
    """Lists, extracts, writes."""
    arguments = _parser().parse_args(argv)
    from ames_jax.extraction.backbones import open_backbone
    from ames_jax.extraction.extracting import ExtractionJob, extract_chunks
    from ames_jax.extraction.listing import list_images
    from ames_jax.extraction.writing import prepare_folder, write_data_set

    if not 0 <= arguments.process < arguments.processes:
        raise UserError(f"--process={arguments.process}: expected 0 to {arguments.processes - 1} (--processes - 1)")
    images = list_images(arguments.images, arguments.root, arguments.boxes)
    cache.start()
    backbone = open_backbone(
        arguments.backbone, weights=arguments.weights, detector=arguments.detector, statistics=arguments.statistics,
        descriptors=arguments.descriptors, max_side=arguments.max_side, dtype=arguments.dtype, batch=arguments.batch,
    )  # fmt: skip
    job = ExtractionJob(
        images=images,
        backbone=backbone,
        root=arguments.out,
        split=arguments.split,
        skip_broken=arguments.skip_broken,
        process=arguments.process,
        processes=arguments.processes,
        chunk=arguments.chunk,
    )
    facts = prepare_folder(job)
    if facts is None:
        if not extract_chunks(job):
            print(f"{job.root}: this host's part is done, others are still at work; the last one writes the data set")
            return 0
        facts = write_data_set(job, name=arguments.name, dtype=arguments.store, hdf5=arguments.hdf5)
    print(f"{job.root}: split {job.split} of {facts['written']} images")
    if facts["broken"]:
        print(f"left out {len(facts['broken'])} broken images: {job.root / 'images' / job.split}.broken.txt")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m ames_jax.extract", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--images", type=Path, required=True, metavar="DIR|LIST", help="a folder, or a list with a line an image")
    add("--backbone", required=True, metavar="sift|dinov2|cvnet", help="sift needs no download")
    add("--out", type=Path, required=True, help="folder of the data set; each --split of it is a run of its own")
    add("--split", default="images", help="name of these images in the data set (default: images)")
    add("--name", help="name of the data set; by default the folder's")
    add("--root", type=Path, help="folder that the paths of a list are relative to; by default the list's own")
    add(
        "--boxes",
        type=Path,
        metavar="FILE",
        help="look at a part of each image: gnd_*.pkl, or lines left,top,right,bottom",
    )
    add("--skip-broken", action="store_true", help="leave out and list images that cannot be read, instead of stopping")
    add("--descriptors", type=int, help="the strongest kept of each image (default: sift 600, dinov2 and cvnet 700)")
    add("--max-side", type=int, help="longer side, pixels (default: sift at most 640, cvnet at most 1024, dinov2 770)")
    add("--statistics", type=Path, metavar="FILE", help="sift_statistics.npz; by default those of the shipped model")
    add(
        "--weights",
        type=Path,
        metavar="FILE",
        help="of the network, from its authors (dinov2: downloaded if not given)",
    )
    add("--detector", type=Path, metavar="FILE", help="*_detector.pt; by default the release's, downloaded")
    add("--dtype", choices=("float32", "bfloat16"), help="compute type of a network (default: float32)")
    add("--batch", type=int, help="images a device at a time of a network (default: 1 on CPU, 8 elsewhere)")
    add(
        "--store",
        choices=("float16", "int8"),
        default="float16",
        help="storage of local descriptors (default: float16)",
    )
    add("--hdf5", action="store_true", help="write the release's HDF5 files and list too")
    add("--chunk", type=int, help="images extracted together, which a killed run loses at most; by default what suits")
    add("--process", type=int, default=0, help="number of this host, where hosts share the list and the folder")
    add("--processes", type=int, default=1, help="number of hosts")
    return parser


if __name__ == "__main__":
    run_main(main)
