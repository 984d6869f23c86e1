"""The commands of `python -m ames_jax.prepare`: parameters are the flags, docstrings their help."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from cyclopts import Parameter
from etils import epy

from ames_jax.runtime.errors import UserError
from ames_jax.runtime.flag_values import Count, CountOrZero

with epy.lazy_imports():  # help needs none of them
    from ames_jax import scenes
    from ames_jax.data import global_descriptors as global_files
    from ames_jax.data import lists, neighbour_search, readers, release_hdf5, release_pickles, shard_writing
    from ames_jax.data import neighbours as neighbour_lists
    from ames_jax.data import shards as shard_files
    from ames_jax.data import store as packed_store
    from ames_jax.data.checks import validation
    from ames_jax.extraction import sift
    from ames_jax.index import model_choice
    from ames_jax.model import packing, weights
    from ames_jax.retrieval import refinement
    from ames_jax.runtime import cache, checksums, files

Paths = Annotated[list[Path], Parameter(consume_multiple=True)]


def validate(files: list[Path], /, *, full: bool = False, record: bool = False) -> int:
    """Check release files, or data sets of ours, alone and together.

    Args:
      files: .hdf5, .npy, .pkl and .txt files of one data set, folders of `prepare shards` or `prepare neighbours`; and by
        themselves .json files and PyTorch's.
      full: Read all values; without it files of gigabytes are sampled.
      record: Keep sizes and checksums of the files beside them (CHECKSUMS) where there is no problem; whatever reads
        them compares.
    """
    if record:
        checksums.expect_unchecked(files)
    report = validation.validate(files, full=full)
    print(report)
    if record and not report.problems:
        validation.record_checksums(files)
    return 2 if report.problems else 0


def import_pickles(
    *,
    root: Path,
    query: str,
    database: str | None = None,
    neighbours: Path | None = None,
    columns: Count | None = None,
    dtype: Literal["float32", "float16"] = "float32",
    global_name: str | None = None,
    ground_truth: Path | None = None,
    name: str | None = None,
    public: bool = False,
) -> None:
    """Turn neighbour and ground-truth pickles into safe files of ours.

    Args:
      root: Folder of the data set.
      query: Split of the queries, e.g. test_query; train for training lists.
      database: Split that is searched, e.g. test_gallery (default: the queries' own).
      neighbours: nn_*.pkl.
      columns: Only the first so many neighbours (training uses 300, itself left out: 301).
      dtype: Of the similarities.
      global_name: Name that results give the search that made the neighbours, e.g. 'DINOv2 CLS'.
      ground_truth: gnd_*.pkl.
      name: Of the ground truth (default: that of the file).
      public: GLDv2: only the public queries count, not the last 750 (for validation).
    """
    if not neighbours and not ground_truth:
        raise UserError("nothing to import: give --neighbours nn_*.pkl, --ground-truth gnd_*.pkl, or both")
    if global_name and not neighbours:
        raise UserError("--global-name names the search that made --neighbours, which is missing")
    database = database or query
    if neighbours:
        folder = root / "neighbours" / f"{query}.{database}"
        about = {"global": global_name} if global_name else None
        count, columns = release_pickles.import_neighbours(
            neighbours, folder, columns=columns, dtype=dtype, about=about
        )
        print(f"{folder}: {columns} neighbours of {count} images")
    if ground_truth:
        path = root / "ground_truth" / f"{name or ground_truth.stem.removeprefix('gnd_')}.json"
        count = release_pickles.import_ground_truth(ground_truth, path, query=query, database=database, public=public)
        print(f"{path}: {count} queries" + (", of which the public ones count" if public else ""))


def neighbours(
    *,
    queries: Paths,
    database: Paths | None = None,
    k: Count = 300,
    out: Path | None = None,
    block: Count = 8192,
    process: CountOrZero = 0,
    processes: Count = 1,
    compare_faiss: bool = False,
    refine: str | None = None,
) -> None:
    """Find exact nearest neighbours in global descriptors; a killed run is continued.

    Args:
      queries: Global descriptors, .hdf5 or .npy; several files are taken as one (a gallery and its distractors).
      database: The same, to search (default: the queries, each without itself).
      k: Neighbours of each image.
      out: Folder of the lists, e.g. ROOT/neighbours/train.train.
      block: Rows that meet at once: memory is block² · 4 bytes.
      process: Number of this host, where hosts share the work: 0, 1, …
      processes: Number of hosts; all must see --out.
      compare_faiss: Only race faiss.IndexFlatIP on one block and print the ratio.
      refine: Refine the lists by global descriptors alone: superglobal, expand, augment, or several joined by +; in memory.
    """
    searching = global_files.GlobalDescriptors(queries)
    searched = searching if database is None else global_files.GlobalDescriptors(database)
    if compare_faiss:
        print(neighbour_search.race_faiss(searching, searched, k, block=block))
        return
    if out is None:
        raise UserError("--out is missing: name the folder of the lists, e.g. ROOT/neighbours/train.train")
    if refine:
        if database is None or processes > 1:
            raise UserError(f"--refine={refine}: needs --database, and one host")
        found = refinement.refine(refinement.Lists.search(searching[:], searched[:], k), refine)
        neighbour_lists.save_neighbours(out, found.similarities, found.ranks, {"refined": refine})
        print(f"{out}: complete, refined by {refine}")
        return
    shares = {"process": process, "processes": processes}
    complete = neighbour_lists.search_to_folder(
        out, searching, searched, k, exclude_self=database is None, block=block, **shares
    )
    print(f"{out}: " + ("complete" if complete else "this host's part is done, others are still at work"))


def shards(
    *,
    root: Path,
    name: str,
    split: str,
    features: Path,
    list_file: Annotated[Path | None, Parameter(name="--list")] = None,
    global_descriptors: Paths | None = None,
    global_name: str | None = None,
    backbone: str | None = None,
    descriptors: Count | None = None,
    dtype: Literal["float16", "int8", "bits"] | None = None,
    shards: Count | None = None,
    processes: Count | None = None,
    beam: str | None = None,
    in_place: bool = False,
) -> None:
    """Write descriptors as a TFDS data set of ArrayRecord shards; a killed run is continued.

    Args:
      root: Folder of the data set.
      name: Name of the data set, e.g. gldv2.
      split: For example train, test_query, test_gallery.
      features: Release HDF5 of local descriptors, or the folder of a data set.
      list_file: The text list that belongs to the HDF5 file.
      global_descriptors: Of the split, kept as ROOT/global/SPLIT.npy.
      global_name: Name that results give the first stage.
      backbone: dinov2, cvnet, …
      descriptors: The strongest kept of each image (default: all).
      dtype: Storage (default: float16, or bits where they are packed).
      shards: Files (default: one for every 512 MiB).
      processes: Writing processes (default: one per core).
      beam: Write with Apache Beam and these options, e.g. --beam='--runner=DirectRunner'.
      in_place: Copy nothing: read the HDF5 file itself in training.
    """
    source, facts = _open_images(features, split, list_file, descriptors)
    stored = source.format
    values = global_files.GlobalDescriptors(global_descriptors) if global_descriptors else None
    if values is not None and len(values) != len(source):
        raise UserError(f"{global_descriptors[0]}: {len(values)} images, but split {split} has {len(source)}")
    if in_place:
        shard_files.link_split(root, split, source)
    else:
        settings = {"width": stored.width, "dtype": dtype or stored.dtype, "shards": shards, "processes": processes}
        settings["descriptors"] = min(descriptors or stored.descriptors, stored.descriptors)
        beam_options = None if beam is None else beam.split()
        shard_writing.write_shards(root, name, {split: source}, **settings, beam=beam_options)
    facts |= {"name": name, "width": stored.width} | ({"backbone": backbone} if backbone else {})
    if values is not None:
        facts["global"] = global_name or global_descriptors[0].stem
        values.save(root / "global" / f"{split}.npy")
    shard_files.write_about(root, shard_files.read_about(root) | facts)
    print(f"{root}: split {split} of {len(source)} images" + (" (read in place)" if in_place else ""))


def _open_images(features: Path, split: str, list_file: Path | None, descriptors: int | None) -> tuple[Any, dict]:
    """The images, and what is known of the data set that they come from."""
    if features.is_dir():
        return shard_files.open_split(features, split), shard_files.read_about(features)
    return release_hdf5.ReleaseSource(features, list_file, descriptors), {}


def store(
    *,
    features: Paths,
    split: str | None = None,
    list_files: Annotated[list[Path] | None, Parameter(name="--list", consume_multiple=True)] = None,
    model: str,
    descriptors: Count = 64,
    out: Path,
) -> None:
    """Pack a gallery into binary descriptors of 16 bytes, for evaluation and search with a binary model.

    Args:
      features: HDF5 of local descriptors (several are taken as one), or the folder of a data set.
      split: Of that data set, e.g. test_gallery.
      list_files: Text lists of the images, for their ids (default: row numbers).
      model: Binary model: released name, .pt file, run or model directory.
      descriptors: Strongest kept of each image; 64 take 1 KB.
      out: The store, e.g. gallery.store.
    """
    reader, ids = _gallery(features, split, list_files)
    lists.refuse_repeats(ids, list_files[0] if list_files else features[0])
    chosen = model_choice.ChosenModel.load(model, "")
    if split:
        about, statistics = shard_files.read_about(features[0]), sift.statistics_of(features[0])
        weights.refuse_other_descriptors(model, chosen.facts, about, statistics)
    with files.lock(out, cache.home()):
        built = packed_store.build_store(
            out,
            reader,
            ids,
            packing.BitPacker(chosen.model),
            descriptors,
            model=Path(model).name,
            source=str(features[0]),
            setting=None if chosen.lam is None or chosen.gamma is None else (chosen.lam, chosen.gamma),
        )
    size = built.header["descriptors"] * built.header["bits"] // 8
    print(f"{out}: {len(built)} images, {size} B of descriptors each")


def _gallery(
    features: Sequence[Path], split: str | None, list_files: Sequence[Path] | None
) -> tuple[readers.DescriptorReader, list[str]]:
    """A reader of the descriptors, and the id of every image."""
    if features[0].is_dir():
        if split is None or len(features) > 1:
            raise UserError(f"{features[0]} is a data set: name one, and --split, e.g. --split=test_gallery")
        source = shard_files.open_split(features[0], split)
        return source, source.ids()
    reader = readers.ConcatenatedReader([release_hdf5.ReleaseSource(path) for path in features])
    if list_files is None:
        return reader, [str(row) for row in range(len(reader))]
    ids = [name for path in list_files for name in lists.read_list(path, lists.RELEASE).ids]
    if len(ids) != len(reader):
        raise UserError(
            f"{list_files[0]}: the lists name {len(ids)} images, the descriptor files hold {len(reader)}: give the lists "
            "that the descriptors were extracted from"
        )
    return reader, ids


def render_scenes(
    *,
    preset: Literal["landmarks", "transfer"] = "landmarks",
    contact_sheet: Path | None = None,
    root: Path | None = None,
    seed: CountOrZero = 0,
    processes: Count | None = None,
    rebuild: bool = False,
) -> None:
    """Render the embedded landmarks or the transfer scenes, or draw a contact sheet of them, and print where they are.

    Args:
      preset: Which of the two.
      contact_sheet: Draw some photos into this picture (.png) instead of building the set.
      root: Folder of built sets (default: AMES_JAX_HOME or the user's cache).
      seed: Another seed gives other scenes.
      processes: Rendering processes (default: one per core).
      rebuild: Build again even where the set is there.
    """
    settings = dataclasses.replace(scenes.PRESETS[preset], seed=seed)
    if contact_sheet is None:
        print(scenes.build(settings, root, processes=processes, rebuild=rebuild))
    else:
        scenes.write_contact_sheet(contact_sheet, settings)
        print(contact_sheet)
