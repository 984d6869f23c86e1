"""The command `python -m ames_jax.extract`: parameters are the flags, docstrings their help."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter
from etils import epy

from ames_jax.runtime.command_line import check_paths
from ames_jax.runtime.errors import UserError
from ames_jax.runtime.flag_values import Count, CountOrZero
from ames_jax.runtime.progress import Progress

with epy.lazy_imports():  # help needs none of them
    import h5py
    import numpy as np

    from ames_jax.data import records, shards
    from ames_jax.data import release_hdf5 as layout
    from ames_jax.extraction import backbone, backbones, extracting, listing
    from ames_jax.runtime import checksums, files


# Of pictures, joined with `backbones.DEFAULT_GLOBAL`.
DEFAULT_BACKBONE = "xfeat"


@Parameter(name="*")
@dataclasses.dataclass(frozen=True, kw_only=True)
class BackboneFlags:
    """Flags of the network.

    Attributes:
      backbone: Of the local descriptors: sift (no download), xfeat, dinov2, cvnet, dinov2_small, dinov2_base, dinov2_large,
        and the last three with _reg, _pooled or _reg_pooled; or package.module:Class of your own.
      global_: The backbone whose global descriptor is taken (default: its own; of xfeat, dinov2_small_pooled).
      global_weights: File of its network, from its authors (default: downloaded).
      global_block: Of a DINOv2 network, its class token is taken after so many blocks (default: all).
      descriptors: The strongest kept of each image (default: sift 600, xfeat 500, others 700).
      max_side: Longer side in pixels (default: sift at most 640, cvnet at most 1024, xfeat 640, dinov2 770, others 364).
      statistics: Of sift, a sift_statistics.npz (default: those of the shipped model).
      weights: File of the network, from its authors (dinov2: downloaded if not given).
      detector: File *_detector.pt (default: the release's, downloaded).
      dtype: Compute type of a network (default: float32).
      batch: Images per device at a time of a network (default: 1 on CPU, 8 elsewhere).
      block: Of a DINOv2 network, tokens are taken after so many blocks (default: all).
    """

    backbone: str = DEFAULT_BACKBONE
    global_: Annotated[str | None, Parameter(name="--global")] = None
    global_weights: Path | None = None
    global_block: Count | None = None
    descriptors: Count | None = None
    max_side: Count | None = None
    statistics: Path | None = None
    weights: Path | None = None
    detector: Path | None = None
    dtype: Literal["float32", "bfloat16"] | None = None
    batch: Count | None = None
    block: Count | None = None

    def open(self) -> backbone.Backbone:
        """The backbone of these flags; raises UserError."""
        options = {key: value for key, value in vars(self).items() if not key.startswith("global_")}
        options["name"] = options.pop("backbone")
        if self.global_weights or self.global_block or self.global_:
            other = {"name": self.global_ or backbones.DEFAULT_GLOBAL}
            other |= {"weights": self.global_weights, "block": self.global_block}
            options["global_backbone"] = other
        return backbones.open_backbone(**options)


def extract(
    flags: BackboneFlags | None = None,
    *,
    images: Path,
    out: Path,
    split: str = "images",
    name: str | None = None,
    root: Path | None = None,
    boxes: Path | None = None,
    skip_broken: bool = False,
    store: Literal["float16", "int8"] = "float16",
    hdf5: bool = False,
    chunk: Count | None = None,
    process: CountOrZero = 0,
    processes: Count = 1,
) -> None:
    """Extract the descriptors of images.

    Args:
      images: A folder, or a list with one line per image.
      out: Folder of the data set; each --split of it is a run of its own.
      split: Name of these images in the data set.
      name: Name of the data set (default: the folder's).
      root: Folder that the paths of a list are relative to (default: the list's own).
      boxes: Look at a part of each image: gnd_*.pkl, or lines left,top,right,bottom.
      skip_broken: Leave out and list images that cannot be read, instead of stopping.
      store: Storage of local descriptors.
      hdf5: Write the release's HDF5 files and list too.
      chunk: Images per file of the data set, which a killed run loses at most (default: 512 MiB of them).
      process: Number of this host, where several share the list and the folder.
      processes: Number of hosts.
    """
    if process >= processes:
        raise UserError(f"--process={process}: expected 0 to {processes - 1} (--processes - 1)")
    check_paths(images=images, root=root, boxes=boxes)
    records.check_split(split)
    if name is not None:
        records.check_name(name)
    with Progress("listing the images"):
        listed = listing.list_images(images, root, boxes)
    job = extracting.ExtractionJob(
        images=listed,
        backbone=(flags or BackboneFlags()).open(),
        root=out,
        split=split,
        name=name,
        dtype=store,
        skip_broken=skip_broken,
        chunk=chunk,
        process=process,
        processes=processes,
    )
    facts = extracting.extract(job, _hdf5_bytes(job) if hdf5 else 0)
    if facts is None:
        print(f"{out}: this host's part is done, others are still at work; the last one completes the data set")
        return
    if hdf5:
        _write_hdf5(job)
    print(f"{out}: split {split} of {facts['written']} images")
    if facts["broken"]:
        print(f"left out {len(facts['broken'])} broken images: {out / 'images' / split}.broken.txt")


def _hdf5_bytes(job: extracting.ExtractionJob) -> int:
    """Bytes of the HDF5 files of a split."""
    local = 2 * job.backbone.descriptors * (layout.METADATA + job.backbone.width)
    return len(job.images) * (local + 4 * job.backbone.global_width)


def _write_hdf5(job: extracting.ExtractionJob) -> None:
    """Writes the split, which is finished, in the release's layout, unless that was done after it was finished.

    `BACKBONE_SPLIT_local.hdf5` (flat, float16), `BACKBONE_SPLIT_global.hdf5` and `SPLIT.txt`, and their checksums.
    """
    prefix, kinds = f"{job.backbone.name}_{job.split}", ("local.hdf5", "global.hdf5")
    local, globally, text = [*(job.root / f"{prefix}_{kind}" for kind in kinds), job.root / f"{job.split}.txt"]
    names, finished = [path.name for path in (local, globally, text)], job.facts_file.stat().st_mtime_ns
    if all(path.exists() and path.stat().st_mtime_ns >= finished for path in (local, globally, text)):
        if not checksums.entries(job.root).keys() >= set(names):  # a run that was killed after the last of them
            checksums.record(job.root, *names)
        return
    files.need_space(job.root, _hdf5_bytes(job))
    with checksums.recorded(job.root, *names):
        _write_files(job, local, globally, text)


def _write_files(job: extracting.ExtractionJob, local: Path, globally: Path, text: Path) -> None:
    source = shards.open_split(job.root, job.split)
    sizes = files.read_array(job.root / "images" / f"{job.split}.sizes.npy")
    shape, lines = (job.backbone.descriptors, layout.METADATA + job.backbone.width), []
    labelled = (source.labels() >= 0).all()
    with (
        Progress("writing HDF5", len(source), "images") as progress,
        files.whole_file(local) as path,
        h5py.File(path, "w") as file,
    ):
        features = file.create_dataset("features", (len(source), *shape), np.float16, chunks=(1, *shape))
        for i in progress.over(range(len(source))):
            record, row = source[i], np.zeros(shape, np.float16)
            descriptors = record.descriptors
            row[:, [layout.X, layout.Y]] = descriptors.xy
            row[:, layout.SCALE], row[:, layout.WEIGHT] = descriptors.scale, descriptors.weight
            row[:, layout.MASK], row[:, layout.METADATA :] = ~descriptors.valid, descriptors.features
            features[i] = row
            label = [str(record.label)] if labelled else []
            lines.append(",".join([record.id, *label, *map(str, sizes[i])]))
    with files.whole_file(globally) as path, h5py.File(path, "w") as file:
        file.create_dataset("features", data=files.read_array(job.root / "global" / f"{job.split}.npy"))
    files.write_file(text, "".join(f"{line}\n" for line in lines))
