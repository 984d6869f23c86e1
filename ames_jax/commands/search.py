"""The commands of `python -m ames_jax.search`: parameters are the flags, docstrings their help."""

from __future__ import annotations

import dataclasses
import json
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter
from etils import epy

from ames_jax.commands.search_flags import PhotoFlags, SearcherFlags
from ames_jax.runtime.command_line import check_paths
from ames_jax.runtime.cores import usable_cores
from ames_jax.runtime.errors import UserError
from ames_jax.runtime.files import write_json
from ames_jax.runtime.flag_values import Count, CountOrZero, Fraction, Scale, Size
from ames_jax.runtime.progress import Progress

with epy.lazy_imports():  # help needs none of them
    from ames_jax.extraction import backbones, listing
    from ames_jax.extraction import images as picture_files
    from ames_jax.index import building, changes, collection, database_index, explaining, model_choice
    from ames_jax.index import photos as index_photos
    from ames_jax.report import explanation, search_results


def index(
    photos: PhotoFlags | None = None,
    *,
    descriptors: Path | None = None,
    out: Path,
    split: str = "images",
    add: bool = False,
    budget: Annotated[Size | None, Parameter(show_default=False)] = None,
    global_index: str | None = None,
    model: str | None = None,
    lam: Fraction | None = None,
    gamma: Scale | None = None,
    database: str | None = None,
) -> None:
    """Index pictures, or extracted descriptors: a FAISS index and about 1 KB of bits per image.

    Args:
      photos: Flags of pictures.
      descriptors: In place of --images, a folder that `python -m ames_jax.extract` wrote.
      out: Folder of the index.
      split: Split of the data set of --descriptors.
      add: Add the images that the index at --out does not hold yet.
      budget: Bytes of local bits per image (default: 1024).
      global_index: flat (exact, the default), ivf or hnsw (millions of images), or a factory string of FAISS, e.g. SQfp16.
      model: Run or model directory, release .pt or released name, or mutual: hand-made matching, whose bits are learned from
        the pictures (default: the one shipped for the descriptors).
      lam: Weight λ of the global similarity (default: the model's).
      gamma: Scale γ of the logits (default: the model's).
      database: Also make qdrant:PATH_OR_URL#COLLECTION, milvus:FILE.db_OR_URL#COLLECTION or
        pgvector:postgresql://…#TABLE hold these images, and no others.
    """
    photos = photos or PhotoFlags()
    check_paths(images=photos.images, descriptors=descriptors, out=out if add else None)
    if (photos.images is None) == (descriptors is None):
        raise UserError("give either --images=DIR, a folder of pictures, or --descriptors=DIR, which extract wrote")
    if photos.images and split != "images":
        raise UserError(f"--split={split} belongs to --descriptors: leave it out with --images")
    if descriptors and photos != PhotoFlags():
        raise UserError("--backbone and its options belong to --images: the descriptors of --descriptors are extracted")
    if add:
        of_build = {
            "--model": model,
            "--budget": budget,
            "--global-index": global_index,
            "--lam": lam,
            "--gamma": gamma,
        }
        for flag in (flag for flag, value in of_build.items() if value is not None):
            raise UserError(f"--add uses the {flag.strip('-')} of the index: leave {flag} out")
        added = _add(out, photos, descriptors, split)
        built = collection.SearchIndex.open(out)
    else:
        settings = {"budget": budget or building.KILOBYTE, "global_index": global_index or "flat"}
        built = _build(out, photos, descriptors, split, (model, lam, gamma), settings)
        added = len(built)
    print(search_results.index_text(built, added))
    if not add:
        print(f"a page to search it: python -m ames_jax.search serve --index={out}")
    if database:
        print(search_results.database_text(database, len(built), *database_index.write_index(built, database)))


def _add(out: Path, photos: PhotoFlags, descriptors: Path | None, split: str) -> int:
    """The number of images added."""
    if descriptors:
        return changes.add_images(out, building.Descriptors.open(descriptors, split))
    if dataclasses.replace(photos, images=None, skip_broken=False) != PhotoFlags():
        raise UserError(
            "--add extracts as the images of the index were extracted: leave --backbone and its options out"
        )
    before = len(collection.SearchIndex.open(out))
    report = index_photos.sync_photos(
        out, listing.list_images(photos.images), remove=False, skip_broken=photos.skip_broken
    )
    print(report)
    return len(collection.SearchIndex.open(out)) - before


def _build(
    out: Path,
    photos: PhotoFlags,
    descriptors: Path | None,
    split: str,
    of_model: tuple[str | None, float | None, float | None],
    settings: dict[str, Any],
) -> collection.SearchIndex:
    model, lam, gamma = of_model
    building.refuse_taken(out)
    if descriptors:
        images = building.Descriptors.open(descriptors, split)
        chosen = model_choice.ChosenModel.for_collection(model, images.about.get("backbone", ""), lam, gamma)
        return building.build_index(out, images, chosen, **settings)
    name = photos.name_of(model)
    backbones.class_of(name, "--backbone")  # before a model for it is missed
    chosen = model_choice.ChosenModel.for_collection(model, name, lam, gamma)
    listed, extractor = listing.list_images(photos.images), photos.open(name)
    built, broken = index_photos.index_photos(
        out, listed, extractor, chosen, **settings, skip_broken=photos.skip_broken
    )
    for name, why in broken.items():
        print(f"left out {name}: {why}")
    return built


def query(
    flags: SearcherFlags,
    *,
    image: list[Path] | None = None,
    images: Path | None = None,
    skip_broken: bool = False,
    top: Count = 20,
    gallery: list[Path] | None = None,
    columns: Count = 10,
    explanations: CountOrZero = 0,
    labels: str | None = None,
    json_file: Annotated[list[Path] | None, Parameter(name="--json", consume_multiple=(0, 1))] = None,
    timing: bool = False,
) -> None:
    """Find the images that show what a picture shows: global search, then re-ranked.

    Args:
      image: A query; may be given several times.
      images: Queries: all pictures of a folder, or a list of files.
      skip_broken: Leave out queries that cannot be read, instead of stopping.
      top: Images listed per query.
      gallery: Draw the rankings: .html (works offline, 25 queries per page) or .png (20 queries); may be given twice.
      columns: Images of a ranking in the gallery.
      explanations: Hits per query that link to a drawing of why they were found, in a .html gallery.
      labels: What pictures show, for mAP and P@1: the word folder (the name of their folder), or a file with lines of
        picture,label.
      json_file: Print the results as JSON, or write them to this file.
      timing: Print how long each stage took.
    """
    check_paths(image=image, images=images, labels=Path(labels) if labels not in (None, "folder") else None)
    for path in gallery or []:
        search_results.check_suffix("--gallery", path)
    if labels and flags.database:
        raise UserError("--labels measures whole rankings, which a database does not list: leave --database out")
    known = search_results.Labels.read(labels) if labels else None
    queries = _listed(image, images, skip_broken)
    start = time.perf_counter()
    with Progress("opening the index"):
        opened = flags.open()
        opened.warm_up()
    start = time.perf_counter() - start
    with Progress("searching", len(queries), "queries") as progress:
        wanted = len(opened.index) if known else max(top, columns)  # mAP is that of whole rankings
        results = opened.search_many(queries, wanted, progress.update)
    shown = [dataclasses.replace(result, hits=result.hits[:top]) for result in results]
    facts = search_results.results_facts(queries, shown, opened.index)
    for path in json_file or []:
        write_json(path, facts)
    if json_file == []:  # the flag without a file
        print(json.dumps(facts, indent=1))
    else:
        print("\n\n".join(map(search_results.result_text, queries, shown)))
        if known:
            print(f"\n{search_results.quality_of(opened, queries, results, known)}")
        if timing:
            print(search_results.timing_text(results, start))
    for path in gallery or []:
        options = {"columns": columns, "labels": known, "pictures": flags.pictures, "explained": explanations}
        files = search_results.write_gallery(path, opened, queries, results, **options)
        if json_file != []:
            print(*files, sep="\n")


def _listed(image: list[Path] | None, images: Path | None, skip_broken: bool) -> list[Path]:
    queries = [*(image or []), *(file.path for file in (listing.list_images(images).files if images else []))]
    if not queries:
        raise UserError("nothing to search for: give --image=FILE, or --images=DIR or a list of files")
    return _readable(queries) if skip_broken else queries


def _readable(queries: list[Path]) -> list[Path]:
    """The queries that can be read; says why of the others. Raises UserError where there is none."""

    def reason(query: Path) -> UserError | None:
        try:
            picture_files.load_image(query)
        except UserError as error:
            return error
        return None

    with ThreadPoolExecutor(usable_cores()) as pool:
        reasons = dict(zip(queries, pool.map(reason, queries)))
    for query, why in reasons.items():
        if why:
            print(f"left out {query}: {why}", file=sys.stderr)
    readable = [query for query in queries if not reasons[query]]
    if not readable:
        raise UserError("none of the queries can be read")
    return readable


def explain(
    flags: SearcherFlags,
    *,
    image: Path,
    image_id: Annotated[str, Parameter(name="--id")],
    lines: Count = 30,
    out: Path = Path("explanation.png"),
) -> None:
    """Draw what connects a picture and an indexed image.

    Args:
      image: The query.
      image_id: Id of an indexed image, as `search query` lists it.
      lines: Correspondences drawn, strongest first.
      out: A .png file.
    """
    check_paths(image=image)
    search_results.check_suffix("--out", out, search_results.PICTURES)
    with Progress(f"explaining {image_id}"):
        explained = explaining.explain(flags.open(), image, image_id, flags.pictures)
        explanation.draw_explanation(explained, out, lines)
    print(f"score {explained.hit.score:.4f}: {len(explained.pairs)} correspondences, drawn in {out}")
