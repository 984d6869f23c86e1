"""Results of a search, for people and programs: tables, JSON, and galleries that mark what is right."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePath
from typing import Any

import numpy as np

from ames_jax.data.lists import read_labels
from ames_jax.data.shards import read_about
from ames_jax.extraction.images import load_image, shrink
from ames_jax.index.collection import SearchIndex
from ames_jax.index.explaining import explain
from ames_jax.index.searcher import STAGES, Searcher, SearchResult
from ames_jax.index.shortlist_scoring import Hit
from ames_jax.report.explanation import draw_explanation
from ames_jax.report.gallery import QUERIES_PER_PAGE, GalleryQuery, RankedImage, draw_gallery, pages_of, write_page
from ames_jax.retrieval.judgements import find_hits, judge
from ames_jax.retrieval.metrics import average_precision, hit_at, percent
from ames_jax.runtime.cores import usable_cores
from ames_jax.runtime.errors import UserError
from ames_jax.runtime.progress import Progress

PICTURE_SIDE = 480
# In place of a picture that is gone or broken.
GREY = np.full((PICTURE_SIDE * 3 // 4, PICTURE_SIDE, 3), 200, np.uint8)
PAGES, PICTURES = (".html", ".htm"), (".png",)
MOST_DRAWN = 20  # queries of a .png
FOLDER = "folder"


def result_text(query: Path, result: SearchResult) -> str:
    """The hits of one query as a table."""
    known = result.match is not None  # else nothing is claimed
    lines = [f"{query}", f"place   from   score  global   logit  {'prob.  ' if known else ''}image"]
    for place, hit in enumerate(result.hits, 1):
        came = str(hit.old_place) if hit.old_place != place else ""
        score = "-" if hit.score is None else f"{hit.score:.4f}"
        logit = "-" if hit.logit is None else f"{hit.logit:.2f}"
        chance = "    -  " if hit.probability is None else f"{hit.probability:5.2f}  "
        rest = f"{chance if known else ''}{hit.id}{f'  through {hit.through}' if hit.through else ''}"
        lines.append(f"{place:5}  {came:>5}  {score:>6}  {hit.global_similarity:6.3f}  {logit:>6}  {rest}")
    if result.query_id is not None:
        lines.insert(1, f"itself in the index as {result.query_id}, which is left out (--keep-query lists it)")
    if result.match is False:
        best = max((hit.probability or 0.0 for hit in result.hits), default=0.0)
        lines.insert(1, f"no match: the most probable image has {best:.2f}, a match {result.threshold:g} or more")
    return "\n".join(lines)


def results_facts(queries: Sequence[Path], results: Sequence[SearchResult], index: SearchIndex) -> dict[str, Any]:
    """The hits of all queries as plain JSON."""

    def facts(place: int, hit: Hit) -> dict[str, Any]:
        picture = index.picture(hit.row)
        return {"place": place, **dataclasses.asdict(hit), "picture": picture and str(picture)}

    found = [[facts(place, hit) for place, hit in enumerate(result.hits, 1)] for result in results]
    return {
        "queries": [
            {"query": str(query), "query_id": result.query_id, "match": result.match}
            | {"hits": hits, "seconds": result.seconds}
            for query, hits, result in zip(queries, found, results)
        ]
    }


def timing_text(results: Sequence[SearchResult], start: float) -> str:
    """The split of the time, in milliseconds per query, and the seconds of the start."""
    mean = {stage: sum(result.seconds[stage] for result in results) / len(results) for stage in STAGES}
    text = f"{1e3 * sum(mean.values()):.1f} ms per query: {_milliseconds(mean)}"
    return f"{text} (start, with opening and compiling: {start:.1f} s)"


def index_text(index: SearchIndex, added: int) -> str:
    """A line on an index: its images, and the bytes that they take."""
    facts = index.facts
    local = facts["descriptors"] * facts["bits"] // 8
    vectors = sum(part["global_bytes"] for part in facts["parts"]) / max(1, facts["images"])
    return (
        f"{index.path}: {facts['images']:,} images ({added:,} new), each {local:,} B of local bits "
        f"({facts['descriptors']} descriptors of {facts['bits'] // 8} B; budget {facts['budget']:,} B), and apart from "
        f"these {vectors:,.0f} B for the global search ({facts['global_index']}, {facts['global_width']} values), "
        f"2 B for the number of descriptors, 4 B for a checksum, and the id"
    )


def database_text(address: str, images: int, written: int, removed: int) -> str:
    """A line on a vector database that was brought up to date with an index of so many images."""
    return f"{address}: {written:,} records written, {removed:,} removed, {images - written:,} left as they were"


def speed_text(facts: dict[str, Any]) -> str:
    """The figures of `search_speed.measure_speed`."""
    sizes = ", ".join(f"{label} {size:,.1f}" for label, size in facts["bytes_per_image"].items())
    return (
        f"{facts['images']:,} images, first {facts['shortlist']} re-ranked, {facts['query_descriptors']} query × "
        f"{facts['descriptors']} stored descriptors: {1e3 * facts['total']:.0f} ms per query "
        f"({_milliseconds(facts['seconds'])})\nstart {facts['start']:.1f} s; bytes per image on disk: {sizes}"
    )


def _milliseconds(seconds: Mapping[str, float]) -> str:
    return ", ".join(f"{stage} {1e3 * value:.1f}" for stage, value in seconds.items())


@dataclasses.dataclass(frozen=True)
class Labels:
    """Labels: names of what pictures show. `by_name`: label by picture; None: a picture's label is its folder's name."""

    by_name: Mapping[str, str] | None

    @classmethod
    def read(cls, source: str) -> Labels:
        """source: "folder", or a list whose lines are a picture's id (or file name), a comma or tab, and its label.

        Raises UserError, naming file and line, for what is not such a list.
        """
        return cls(None if source == FOLDER else read_labels(source))

    def of(self, name: str | Path) -> str | None:
        """The label of a picture by id or path; None where it has none."""
        if self.by_name is None:
            return PurePath(name).parent.name or None
        return self.by_name.get(str(name), self.by_name.get(PurePath(name).name))

    def right(self, query: str | Path, image: str) -> bool | None:
        """True if an image has the query's label; None where one of them has no label."""
        labels = self.of(query), self.of(image)
        return None if None in labels else labels[0] == labels[1]


def check_suffix(flag: str, path: Path, suffixes: Sequence[str] = (*PAGES, *PICTURES)) -> None:
    """Raises UserError for the name of a picture of another kind, and makes its folder: before searching, not after."""
    if path.suffix.lower() not in suffixes:
        expected = " or ".join(suffix for suffix in suffixes if suffix != ".htm")
        raise UserError(f"{flag}={path}: expected a name that ends in {expected}")
    path.parent.mkdir(parents=True, exist_ok=True)


def quality_of(searcher: Searcher, queries: Sequence[Path], results: Sequence[SearchResult], labels: Labels) -> str:
    """mAP and P@1 of whole rankings, of global search and re-ranked, over the queries that have a right image."""
    alike: dict[str, list[int]] = {}
    for row, name in enumerate(searcher.index.ids):
        label = labels.of(name)
        if label is not None:
            alike.setdefault(label, []).append(row)
    own = [
        result.query_id and searcher.index.find(result.query_id) for result in results
    ]  # not in lists, nor to be found
    truth = [{"ok": [r for r in alike.get(labels.of(query), ()) if r != row]} for query, row in zip(queries, own)]
    with_right = sum(bool(kinds["ok"]) for kinds in truth)
    if not with_right:
        return "no query has an image of its label in the index: there is no mAP"
    figures = []
    for name, lists in (
        ("global search", [result.first_stage for result in results]),
        ("re-ranked", [result.hits for result in results]),
    ):
        ranks = np.full((len(lists), max(map(len, lists))), -1)
        for row, hits in zip(ranks, lists):
            row[: len(hits)] = [hit.row for hit in hits]
        places = find_hits(judge(ranks, truth))
        figures.append(f"{name}: mAP {percent(average_precision(places)):.1f}, P@1 {percent(hit_at(places, 1)):.1f}")
    return f"{'; '.join(figures)} ({with_right} of {len(queries)} queries with an image of their label)"


def write_gallery(
    path: Path,
    searcher: Searcher,
    queries: Sequence[Path],
    results: Sequence[SearchResult],
    *,
    columns: int = 10,
    labels: Labels | None = None,
    pictures: Path | None = None,
    explained: int = 0,
) -> list[Path]:
    """Draws search results and returns the files: `path` ends in .html (pages of some queries, which work offline) or .png.

    Args:
      searcher: the one that found these results for these queries.
      columns: images shown of each ranking.
      labels: to mark right and wrong images.
      pictures: folder of the index's pictures, where they are no longer in the one that they were extracted from.
      explained: hits per query whose explanation a page links, drawn in NAME_files/.

    Raises:
      UserError: another suffix; of a query no picture at all is where it was. Single ones that are gone or broken are grey.
    """
    check_suffix("--gallery", path)
    index = searcher.index
    name = str(read_about(index.path).get("name") or index.path.name)
    work = list(zip(queries, results))
    if path.suffix.lower() in PICTURES:
        if len(work) > MOST_DRAWN:
            print(f"{path}: the first {MOST_DRAWN} of {len(work)} queries; a .html shows all", file=sys.stderr)
        with Progress(f"drawing {path}"):
            shown = [_gallery_query(index, *pair, columns, labels, pictures, {}) for pair in work[:MOST_DRAWN]]
            draw_gallery(name, "AMES", shown, path, order="", reranked_first=True)
        return [path]
    with Progress(f"pictures of {path}", len(work), "queries") as progress:
        stored = f"{index.facts['descriptors'] * index.facts['bits'] // 8:,} B of local descriptors per image"
        note = f"{len(index):,} images, the first {searcher.shortlist} re-ranked from {stored}."
        pages = pages_of(path, len(work))
        for number, page in enumerate(pages):  # one after the other, so that the pictures of one page are in memory
            shown = []
            for place in range(number * QUERIES_PER_PAGE, min((number + 1) * QUERIES_PER_PAGE, len(work))):
                query, result = work[place]
                why = _explanations(path, place, searcher, query, result.hits[:explained], pictures)
                shown.append(_gallery_query(index, query, result, columns, labels, pictures, why))
                progress.update(1)
            write_page(f"{name}: re-ranked, and global search", note, shown, page, pages)
    return pages


def _explanations(
    path: Path, place: int, searcher: Searcher, query: Path, hits: Sequence[Hit], pictures: Path | None
) -> dict[int, str]:
    """Draws why hits of the query at a place were found; names of the files relative to the gallery, by row."""
    folder = path.with_name(f"{path.stem}_files")
    drawn = {}
    for number, hit in enumerate(hits, 1):
        file = folder / f"why-{place + 1}-{number}.jpg"
        folder.mkdir(exist_ok=True)
        try:
            draw_explanation(explain(searcher, query, hit.id, pictures), file)
        except UserError as error:  # a picture that is gone
            print(f"{error}; not explained", file=sys.stderr)
        else:
            drawn[hit.row] = f"{folder.name}/{file.name}"
    return drawn


def _gallery_query(
    index: SearchIndex,
    query: Path,
    result: SearchResult,
    columns: int,
    labels: Labels | None,
    pictures: Path | None,
    explanations: Mapping[int, str],
) -> GalleryQuery:
    before, after = result.first_stage[:columns], result.hits[:columns]
    rows = list({hit.row for hit in (*before, *after)})

    def picture(row: int) -> np.ndarray | UserError:
        try:
            return shrink(load_image(index.picture_path(row, pictures)), PICTURE_SIDE)
        except UserError as error:
            return error

    with ThreadPoolExecutor(usable_cores()) as pool:
        images = list(pool.map(picture, rows))
    errors = [image for image in images if isinstance(image, UserError)]
    if errors and len(errors) == len(images):
        raise errors[0]
    for error in errors:
        print(f"{error}; grey in its place", file=sys.stderr)
    image_of = {row: GREY if isinstance(image, UserError) else image for row, image in zip(rows, images)}

    place_of = {hit.id: f"place {place}" for place, hit in enumerate(result.hits, 1)}

    def ranked(hit: Hit, score: float | None, old_place: int | None = None) -> RankedImage:
        right, file = labels.right(query, hit.id) if labels else None, index.picture(hit.row, pictures)
        chance, why = (hit.probability, explanations.get(hit.row, "")) if old_place else (None, "")
        through = place_of.get(hit.through, hit.through) if hit.through and old_place else ""
        return RankedImage(image_of[hit.row], right, score, hit.id, old_place, chance, file, why, through)

    return GalleryQuery(
        shrink(load_image(query), PICTURE_SIDE),
        [ranked(hit, hit.global_similarity) for hit in before],
        [ranked(hit, hit.score, hit.old_place) for hit in after],
        name=query.name,
        match=result.match,
        picture=query,
    )
