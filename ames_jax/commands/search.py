"""The commands of `python -m ames_jax.search`: parameters are the flags, docstrings their help."""

from __future__ import annotations

import dataclasses
import json
import time
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter
from etils import epy

from ames_jax.runtime.command_line import Count, Fraction, Scale, Size
from ames_jax.runtime.errors import UserError
from ames_jax.runtime.files import write_json
from ames_jax.runtime.progress import Progress

with epy.lazy_imports():  # help needs none of them
    from ames_jax.extraction import listing
    from ames_jax.index import building, changes, collection, explaining, model_choice, searcher
    from ames_jax.report import explanation, search_results


@Parameter(name="*")
@dataclasses.dataclass(frozen=True, kw_only=True)
class SearcherFlags:
    """Flags of the commands that search.

    Attributes:
      index: What `search index` wrote.
      pictures: Folder of the indexed pictures, where they have moved.
      shortlist: Images that are re-ranked.
      query_descriptors: The strongest descriptors of a query, which are used.
      lam: Weight λ of the global similarity (default: the index's).
      gamma: Scale γ of the logits (default: the index's).
      faiss: Parameters of FAISS's search, e.g. nprobe=64 or efSearch=256.
    """

    index: Path
    pictures: Path | None = None
    shortlist: Count = 100
    query_descriptors: Count = 100
    lam: Fraction | None = None
    gamma: Scale | None = None
    faiss: str | None = None

    def open(self) -> searcher.Searcher:
        """The searcher that the flags describe."""
        index = collection.SearchIndex.open(self.index, self.faiss)
        counts = {"shortlist": self.shortlist, "query_descriptors": self.query_descriptors}
        return searcher.Searcher(index, **counts, lam=self.lam, gamma=self.gamma)


def index(
    *,
    descriptors: Path,
    out: Path,
    split: str = "images",
    add: bool = False,
    budget: Size = 1024,
    global_index: str = "flat",
    model: str | None = None,
    lam: Fraction | None = None,
    gamma: Scale | None = None,
) -> None:
    """Index extracted descriptors: a FAISS index and about 1 KB of bits per image.

    Args:
      descriptors: Folder that `python -m ames_jax.extract` wrote.
      out: Folder of the index.
      split: Split of the data set.
      add: Add the images that the index at --out does not hold yet.
      budget: Bytes of local bits per image.
      global_index: flat (exact), ivf or hnsw (millions of images), or a factory string of FAISS, e.g. SQfp16.
      model: Run or model directory, release .pt or released name (default: the one shipped for the descriptors).
      lam: Weight λ of the global similarity (default: the model's).
      gamma: Scale γ of the logits (default: the model's).
    """
    images = building.Descriptors.open(descriptors, split)
    if add:
        if model:
            raise UserError("--add uses the model of the index: leave --model out")
        added = changes.add_images(out, images)
        built = collection.SearchIndex.open(out)
    else:
        chosen = model_choice.ChosenModel.load(model, images.about.get("backbone", ""), lam, gamma)
        built = building.build_index(out, images, chosen, budget=budget, global_index=global_index)
        added = len(built)
    print(search_results.index_text(built, added))


def query(
    flags: SearcherFlags,
    *,
    image: list[Path] | None = None,
    images: Path | None = None,
    top: Count = 20,
    gallery: list[Path] | None = None,
    columns: Count = 10,
    labels: str | None = None,
    json_file: Annotated[list[Path] | None, Parameter(name="--json", consume_multiple=(0, 1))] = None,
    timing: bool = False,
) -> None:
    """Find the images that show what a picture shows: global search, then re-ranked by AMES.

    Args:
      image: A query; may be given several times.
      images: Queries: all pictures of a folder, or a list of files.
      top: Images listed per query.
      gallery: Draw the rankings: .html (one file, works offline) or .png; may be given twice.
      columns: Images of a ranking in the gallery.
      labels: What pictures show: the word folder (the name of their folder), or a file with lines of picture,label.
      json_file: Print the results as JSON, or write them to this file.
      timing: Print how long each stage took.
    """
    queries = [*(image or []), *(file.path for file in (listing.list_images(images).files if images else []))]
    if not queries:
        raise UserError("nothing to search for: give --image=FILE, or --images=DIR or a list of files")
    galleries = gallery or []
    for path in galleries:
        search_results.check_suffix(path)
    known = search_results.Labels.read(labels) if labels else None
    start = time.perf_counter()
    with Progress("opening the index"):
        opened = flags.open()
        opened.warm_up()
    start = time.perf_counter() - start
    with Progress("searching", len(queries), "queries") as progress:
        results = opened.search_many(queries, max(top, columns), progress.update)
    for path in galleries:
        search_results.write_gallery(
            path, opened, queries, results, columns=columns, labels=known, pictures=flags.pictures
        )
    results = [dataclasses.replace(result, hits=result.hits[:top]) for result in results]
    facts = search_results.results_facts(queries, results, opened.index)
    if json_file == []:  # the flag without a file
        print(json.dumps(facts, indent=1))
        return
    for path in json_file or []:
        write_json(path, facts)
    print("\n\n".join(map(search_results.result_text, queries, results)))
    if timing:
        print(search_results.timing_text(results, start))
    for path in galleries:
        print(path)


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
    with Progress(f"explaining {image_id}"):
        explained = explaining.explain(flags.open(), image, image_id, flags.pictures)
        explanation.draw_explanation(explained, out, lines)
    print(f"score {explained.hit.score:.4f}: {len(explained.pairs)} correspondences, drawn in {out}")
