"""The gallery as a web page: one file, pictures inside as thumbnails, no script, nothing fetched."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from html import escape
from pathlib import Path
from string import Template

import cv2
import numpy as np

from ames_jax.extraction.images import shrink
from ames_jax.report.figures import INK
from ames_jax.report.gallery import NEUTRAL, RIGHT, WRONG, GalleryQuery, RankedImage, has_labels, query_caption
from ames_jax.runtime.files import write_file

THUMBNAIL, QUERY_THUMBNAIL, JPEG_QUALITY = 240, 480, 82  # pixels of the longer side
LEGEND = "Green, solid border: right; red, dashed: wrong."
STYLE = Path(__file__).with_name("gallery.css")
KINDS = {True: "right", False: "wrong", None: ""}


def write_page(title: str, note: str, queries: Sequence[GalleryQuery], path: str | Path) -> None:
    """Writes the page of `queries`: for each the first stage's ranking above the re-ranked one, with scores and moves.

    Borders: green and solid for a right image, red and dashed for a wrong one, grey where that is unknown.
    note: a line below the title.
    """
    colors = {"INK": INK, "NEUTRAL": NEUTRAL, "RIGHT": RIGHT, "WRONG": WRONG}
    style = Template(STYLE.read_text(encoding="utf-8")).substitute(colors)
    note = f"{note} {LEGEND}" if has_labels(queries) else note
    sections = "\n".join(map(_section, queries))
    page = (
        f'<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">\n<title>{escape(title)}</title>\n'
        f"<style>\n{style}</style>\n</head>\n<body>\n<h1>{escape(title)}</h1>\n"
        f'<p class="note">{escape(note)}</p>\n{sections}\n</body>\n</html>\n'
    )
    write_file(Path(path), page)


def _section(query: GalleryQuery) -> str:
    before, after = ("".join(map(_figure, images, range(1, 1 + len(images)))) for images in (query.before, query.after))
    return (
        f'<section>\n<figure class="query">{_picture(query.image, query.name or "query", QUERY_THUMBNAIL)}'
        f"<figcaption>{escape(query_caption(query))}</figcaption></figure>\n<div>\n"
        f'<h2>Global ranking</h2>\n<div class="ranking">{before}</div>\n'
        f'<h2>Re-ranked</h2>\n<div class="ranking">{after}</div>\n</div>\n</section>'
    )


def _figure(image: RankedImage, place: int) -> str:
    caption = str(place)
    if image.old_place not in (None, place):
        kind, arrow = ("up", "▲") if image.old_place > place else ("down", "▼")
        caption += f' <span class="{kind}">{arrow} from {image.old_place}</span>'
    if image.score is not None:
        caption += f" · {image.score:.3f}"
    picture = _picture(image.pixels, image.id, THUMBNAIL)
    head = f'<figure class="{KINDS[image.right]}" title="{escape(image.id)}">'
    return f"{head}{picture}<figcaption>{caption}</figcaption></figure>"


def _picture(pixels: np.ndarray, name: str, side: int) -> str:
    thumbnail = cv2.cvtColor(shrink(pixels, side), cv2.COLOR_RGB2BGR)
    jpeg = cv2.imencode(".jpg", thumbnail, [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])[1]
    data = base64.b64encode(jpeg.tobytes()).decode()
    return f'<img src="data:image/jpeg;base64,{data}" alt="{escape(name)}">'
