"""Galleries of what re-ranking did, as a picture and as web pages: queries with the head of their ranking before and after."""

from __future__ import annotations

import base64
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from string import Template
from urllib.parse import quote

import cv2
import numpy as np
from matplotlib.axes import Axes

from ames_jax.extraction.images import shrink
from ames_jax.report.figures import INK, new_figure
from ames_jax.runtime.files import write_file

# Green and red as Okabe and Ito have them; wrong images also have a dashed border, so that colour is not needed.
RIGHT, WRONG, NEUTRAL = "#009E73", "#D55E00", "#666666"
LEGEND = "green, solid: right   red, dashed: wrong"
LONGEST_NAME = 22  # letters below a picture
ORDER = "queries from the largest gain to the largest loss"
THUMBNAIL, QUERY_THUMBNAIL, WEBP_QUALITY = 200, 400, 60  # pixels of the longer side
QUERIES_PER_PAGE = 25
PAGE_LEGEND = "Green, solid border: right; red, dashed: wrong."
STYLE = Path(__file__).with_name("gallery.css")
KINDS = {True: "right", False: "wrong", None: ""}


@dataclass(frozen=True)
class RankedImage:
    """One image of a ranking.

    Attributes:
      pixels: RGB uint8 [height, width, 3].
      right: whether it shows what the query shows; None where that is unknown.
      score: drawn below it, if any.
      id: of the image, if any.
      old_place: its place in the other ranking, counted from 1.
      probability: that it shows what the query shows, if known.
      picture: its file, if known; explanation: a picture, relative to the page, of why it was found, if there is one.
      through: place or id of the image that it was found through, if it was.
    """

    pixels: np.ndarray
    right: bool | None
    score: float | None = None
    id: str = ""
    old_place: int | None = None
    probability: float | None = None
    picture: Path | None = None
    explanation: str = ""
    through: str = ""


@dataclass(frozen=True)
class GalleryQuery:
    """A query, RGB uint8 [height, width, 3], and the first images of its two rankings: the first stage's, re-ranked.

    average_precision: before and after, percent; None where it is unknown. name: of the query, if any. match: whether an
    image shows what the query shows; None where it is unknown. picture: the query's file, if known.
    """

    image: np.ndarray
    before: Sequence[RankedImage]
    after: Sequence[RankedImage]
    average_precision: tuple[float, float] | None = None
    name: str = ""
    match: bool | None = None
    picture: Path | None = None


def has_labels(queries: Sequence[GalleryQuery]) -> bool:
    """True where it is known of any image whether it is right."""
    return any(image.right is not None for query in queries for image in (*query.before, *query.after))


def pick_queries(before: np.ndarray, after: np.ndarray, count: int) -> np.ndarray:
    """Rows of `count` queries spread evenly from the largest gain in AP to the largest loss: losses are shown too.

    before, after: AP per query, NaN for queries without a right image (never picked). Of equal gains the first row.
    """
    gain = after - before
    counted = np.flatnonzero(~np.isnan(gain))
    by_gain = counted[np.argsort(-gain[counted], kind="stable")]
    return by_gain[np.unique(np.linspace(0, len(by_gain) - 1, min(count, len(by_gain))).round().astype(int))]


def gallery_query(
    image: np.ndarray,
    database_image: Callable[[int], np.ndarray],
    before: np.ndarray,
    after: np.ndarray,
    right: Collection[int],
    average_precision: tuple[float, float],
    columns: int = 8,
) -> GalleryQuery:
    """A query as it is drawn.

    Args:
      image: of the query, uint8 [height, width, 3].
      database_image: from a database row to its picture, asked only for the images that are drawn.
      before, after: the whole rankings, int [R].
      right: database rows that are right.
      average_precision: before and after, percent.
      columns: images drawn of each ranking.
    """

    def ranked(row: int, old_place: int | None = None) -> RankedImage:
        return RankedImage(database_image(row), row in right, old_place=old_place)

    moved = [ranked(row, before.tolist().index(row) + 1) for row in after[:columns].tolist()]
    return GalleryQuery(image, [ranked(row) for row in before[:columns].tolist()], moved, average_precision)


def draw_gallery(
    data_set: str,
    method: str,
    queries: Sequence[GalleryQuery],
    path: str | Path,
    order: str = ORDER,
    reranked_first: bool = False,
) -> None:
    """Writes a PNG: two rows per query, the first stage's ranking above the re-ranked one, or below it.

    Borders: green and solid for a right image, red and dashed for a wrong one, grey where that is unknown. Below each
    image: its place, the place it came from if that was another, and its score if it has one. order: how the queries
    are ordered, for the title.
    """
    columns = max(max(len(query.before), len(query.after)) for query in queries)
    notes = [note for note in (LEGEND if has_labels(queries) else "", order) if note]
    with new_figure(path, 1.35 * (columns + 1.6), 2.45 * len(queries) + 0.25 + 0.25 * bool(notes)) as figure:
        figure.get_layout_engine().set(w_pad=0.05, h_pad=0.04, wspace=0.02, hspace=0.02)
        title = f"{data_set}: first stage, and re-ranked by {method}"
        figure.suptitle("\n".join([title, "   ".join(notes)]) if notes else title, x=0.01, ha="left", fontsize=10)
        blocks = figure.subfigures(len(queries), 1, squeeze=False)[:, 0]
        for block, query in zip(blocks, queries, strict=True):
            grid = block.add_gridspec(2, columns + 1, width_ratios=[1.6, *[1] * columns])
            _show(block.add_subplot(grid[:, 0]), query.image, NEUTRAL, query_caption(query), "-")
            rows = [("before", query.before), ("after", query.after)]
            for line, (text, images) in enumerate(reversed(rows) if reranked_first else rows):
                for place, shown in enumerate(images, 1):
                    axes = block.add_subplot(grid[line, place])
                    _show_ranked(axes, shown, place)
                    if place == 1:
                        axes.set_ylabel(text, fontsize=8, color=INK)


def query_caption(query: GalleryQuery) -> str:
    """The caption of a query: its name, that nothing matches it, and its AP before and after, where they are known."""
    lines = [query.name or "query"]
    if query.match is False:
        lines.append("no match")
    if query.average_precision is not None:
        lines.append("AP {:.0f} → {:.0f}".format(*query.average_precision))
    return "\n".join(lines)


def _show_ranked(axes: Axes, image: RankedImage, place: int) -> None:
    caption = str(place)
    if image.old_place not in (None, place):
        caption += f"  ({'▲' if image.old_place > place else '▼'} from {image.old_place})"
    if image.score is not None:
        caption += f" · {image.score:.2f}"
    if image.id:
        caption += f"\n{shortened(image.id)}"
    color, line = {True: (RIGHT, "-"), False: (WRONG, "--"), None: (NEUTRAL, "-")}[image.right]
    _show(axes, image.pixels, color, caption, line)


def shortened(name: str) -> str:
    """The end of a long name, which tells images apart."""
    return name if len(name) <= LONGEST_NAME else f"…{name[1 - LONGEST_NAME :]}"


def _show(axes: Axes, pixels: np.ndarray, color: str, caption: str, line: str) -> None:
    axes.imshow(pixels)
    axes.set(xticks=[], yticks=[])
    axes.set_xlabel(caption, fontsize=7, color=INK, labelpad=2)
    for spine in axes.spines.values():
        spine.set(color=color, linewidth=2.5, linestyle=line)


def pages_of(path: Path, queries: int) -> list[Path]:
    """The files of the pages of a gallery: NAME.html, NAME-2.html, …"""
    count = max(1, -(-queries // QUERIES_PER_PAGE))
    return [path, *(path.with_name(f"{path.stem}-{number}{path.suffix}") for number in range(2, count + 1))]


def write_page(
    title: str, note: str, queries: Sequence[GalleryQuery], path: str | Path, pages: Sequence[Path] = ()
) -> None:
    """Writes the page of `queries`: for each the re-ranked ranking above the first stage's, with scores, moves and names.

    A click on a picture opens its file. Borders: green and solid for a right image, red and dashed for a wrong one, grey where
    that is unknown. note: a line below the title. pages: all pages of the gallery, for links between them.
    """
    colors = {"INK": INK, "NEUTRAL": NEUTRAL, "RIGHT": RIGHT, "WRONG": WRONG}
    style = Template(STYLE.read_text(encoding="utf-8")).substitute(colors)
    note = f"{note} {PAGE_LEGEND}" if has_labels(queries) else note
    sections = "\n".join(map(_section_html, queries))
    page = (
        f'<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">\n<title>{escape(title)}</title>\n'
        f"<style>\n{style}</style>\n</head>\n<body>\n<h1>{escape(title)}</h1>\n"
        f'<p class="note">{escape(note)}</p>\n{_links(Path(path), pages)}{sections}\n</body>\n</html>\n'
    )
    write_file(Path(path), page)


def _links(path: Path, pages: Sequence[Path]) -> str:
    if len(pages) < 2:
        return ""
    names = [
        f"<b>{number}</b>" if page == path else f'<a href="{quote(page.name)}">{number}</a>'
        for number, page in enumerate(pages, 1)
    ]
    return f"<nav>Page {' '.join(names)}</nav>\n"


def _section_html(query: GalleryQuery) -> str:
    before, after = (
        "".join(map(_figure_html, images, range(1, 1 + len(images)))) for images in (query.before, query.after)
    )
    return (
        f'<section>\n<figure class="query">'
        f"{_linked(_picture_html(query.image, query.name or 'query', QUERY_THUMBNAIL), query.picture)}"
        f"<figcaption>{escape(query_caption(query))}</figcaption></figure>\n<div>\n"
        f'<h2>Re-ranked</h2>\n<div class="ranking">{after}</div>\n'
        f'<h2>Global ranking</h2>\n<div class="ranking">{before}</div>\n</div>\n</section>'
    )


def _figure_html(image: RankedImage, place: int) -> str:
    caption = str(place)
    if image.old_place not in (None, place):
        kind, arrow = ("up", "▲") if image.old_place > place else ("down", "▼")
        caption += f' <span class="{kind}">{arrow} from {image.old_place}</span>'
    if image.score is not None:
        caption += f" · {image.score:.3f}"
    if image.probability is not None:
        caption += f" · p&nbsp;{image.probability:.2f}"
    if image.id:
        caption += f'<span class="id">{escape(shortened(image.id))}</span>'
    if image.through:
        caption += f'<span class="id">through {escape(shortened(image.through))}</span>'
    if image.explanation:
        caption += f' <a href="{quote(image.explanation)}">why</a>'
    picture = _linked(_picture_html(image.pixels, image.id, THUMBNAIL), image.picture)
    head = f'<figure class="{KINDS[image.right]}" title="{escape(image.id)}">'
    return f"{head}{picture}<figcaption>{caption}</figcaption></figure>"


def _linked(content: str, picture: Path | None) -> str:
    return content if picture is None else f'<a href="{picture.absolute().as_uri()}">{content}</a>'


def _picture_html(pixels: np.ndarray, name: str, side: int) -> str:
    thumbnail = cv2.cvtColor(shrink(pixels, side), cv2.COLOR_RGB2BGR)
    content = cv2.imencode(".webp", thumbnail, [cv2.IMWRITE_WEBP_QUALITY, WEBP_QUALITY])[1]
    data = base64.b64encode(content.tobytes()).decode()
    return f'<img src="data:image/webp;base64,{data}" alt="{escape(name)}">'
