"""Search results as galleries: a web page or a PNG."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from ames_jax.extraction.images import load_image, shrink
from ames_jax.index.collection import SearchIndex
from ames_jax.index.labels import Labels
from ames_jax.index.reranking import Hit
from ames_jax.index.searcher import SearchResult
from ames_jax.report.gallery import GalleryQuery, Shown, draw_gallery
from ames_jax.report.gallery_page import write_page
from ames_jax.runtime.cores import usable_cores
from ames_jax.runtime.errors import UserError

PICTURE_SIDE = 480
SUFFIXES = (".html", ".htm", ".png")


def write_gallery(
    path: Path, index: SearchIndex, queries: Sequence[Path], results: Sequence[SearchResult],
    *, shortlist: int, columns: int = 10, labels: Labels | None = None, pictures: Path | None = None,
) -> None:  # fmt: skip
    """Draws what was found: `path` ends in .html (one file, works offline) or .png.

    Args:
      shortlist: images that were re-ranked.
      columns: images shown of each ranking.
      labels: to mark right and wrong images.
      pictures: folder of the index's pictures, where they are no longer in the one that they were extracted from.

    Raises:
      UserError: another suffix; a picture that is not where it was.
    """
    check_suffix(path)
    shown = [_query(index, query, result, columns, labels, pictures) for query, result in zip(queries, results)]
    name = str(index.about.get("name") or index.path.name)
    if path.suffix.lower() == ".png":
        draw_gallery(name, "AMES", shown, path, order="")
        return
    facts = index.facts
    stored = f"{facts['descriptors'] * facts['bits'] // 8:,} B of local descriptors an image"
    note = f"{len(index):,} images, the first {shortlist} re-ranked from {stored}."
    write_page(f"{name}: global search, and re-ranked by AMES", note, shown, path)


def check_suffix(path: Path) -> None:
    """Raises UserError for a gallery that is neither a web page nor a PNG: before searching, not after."""
    if path.suffix.lower() not in SUFFIXES:
        raise UserError(f"--gallery={path}: expected a name that ends in .html or .png")


def _query(
    index: SearchIndex, query: Path, result: SearchResult, columns: int, labels: Labels | None, pictures: Path | None
) -> GalleryQuery:
    rows = {hit.row for hit in (*result.first_stage[:columns], *result.hits[:columns])}
    with ThreadPoolExecutor(usable_cores()) as pool:
        loaded = dict(zip(rows, pool.map(lambda row: _picture(index, row, pictures), rows)))

    def shown(hits: Sequence[Hit], with_global: bool) -> list[Shown]:
        return [
            Shown(
                loaded[hit.row], labels.right(query, hit.id) if labels else None,
                hit.global_similarity if with_global else hit.score, hit.id,
            )
            for hit in hits[:columns]
        ]  # fmt: skip

    return GalleryQuery(
        shrink(load_image(query), PICTURE_SIDE),
        shown(result.first_stage, True),
        shown(result.hits, False),
        [hit.old_place for hit in result.hits[:columns]],
        None,
        query.name,
    )


def _picture(index: SearchIndex, row: int, pictures: Path | None) -> np.ndarray:
    return shrink(load_image(index.picture_path(row, pictures)), PICTURE_SIDE)
