"""The gallery as a web page: one file, pictures inside as thumbnails, no script, nothing fetched."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from html import escape
from pathlib import Path

import cv2
import numpy as np

from ames_jax.extraction.images import shrink
from ames_jax.report.figures import INK
from ames_jax.report.gallery import NEUTRAL, RIGHT, WRONG, GalleryQuery, RankedImage, has_labels, query_caption
from ames_jax.runtime.files import write_file

THUMBNAIL, QUERY_THUMBNAIL, JPEG_QUALITY = 240, 480, 82  # pixels of the longer side

LEGEND = "Green, solid border: right; red, dashed: wrong."
STYLE = f"""
body {{ font: 15px/1.4 system-ui, sans-serif; color: {INK}; background: #fff; margin: 1.5rem; }}
h1 {{ font-size: 1.25rem; margin: 0 0 .25rem; }}
.note {{ margin: 0 0 1.5rem; color: #666; }}
section {{ display: grid; grid-template-columns: 15rem minmax(0, 1fr); gap: 1rem 1.5rem; padding: 1rem 0;
  border-top: 1px solid #ddd; }}
.query img {{ width: 100%; border-radius: 4px; }}
.query figcaption {{ white-space: pre-line; overflow-wrap: anywhere; }}
h2 {{ font-size: .85rem; font-weight: 600; margin: 0 0 .3rem; color: #666; }}
.ranking {{ display: flex; flex-wrap: wrap; gap: .6rem; margin-bottom: 1rem; }}
figure {{ margin: 0; }}
.ranking img {{ height: 6.5rem; max-width: 100%; box-sizing: border-box; display: block;
  border: 4px solid {NEUTRAL}; border-radius: 4px; }}
.ranking .right img {{ border-color: {RIGHT}; }}
.ranking .wrong img {{ border-color: {WRONG}; border-style: dashed; }}
figcaption {{ font-size: .8rem; font-variant-numeric: tabular-nums; }}
.up {{ color: {RIGHT}; }}
.down {{ color: {WRONG}; }}
@media (max-width: 45rem) {{ section {{ grid-template-columns: minmax(0, 1fr); }} .query img {{ max-width: 15rem; }} }}
"""


def write_page(title: str, note: str, queries: Sequence[GalleryQuery], path: str | Path) -> None:
    """Writes the page of `queries`: for each the first stage's ranking above the re-ranked one, with scores and moves.

    Borders: green and solid for a right image, red and dashed for a wrong one, grey where that is unknown.
    note: a line below the title.
    """
    note = f"{note} {LEGEND}" if has_labels(queries) else note
    sections = "\n".join(_section(query) for query in queries)
    page = (
        f'<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">\n<title>{escape(title)}</title>\n'
        f"<style>{STYLE}</style>\n</head>\n<body>\n<h1>{escape(title)}</h1>\n"
        f'<p class="note">{escape(note)}</p>\n{sections}\n</body>\n</html>\n'
    )
    write_file(Path(path), page)


def _section(query: GalleryQuery) -> str:
    before = [_ranked(shown, str(place), "") for place, shown in enumerate(query.before, 1)]
    after = [
        _ranked(shown, str(place), _move(place, old))
        for place, (shown, old) in enumerate(zip(query.after, query.old_places, strict=True), 1)
    ]
    caption = escape(query_caption(query))
    return (
        f'<section>\n<figure class="query">{_picture(query.image, query.name or "query", QUERY_THUMBNAIL)}'
        f"<figcaption>{caption}</figcaption></figure>\n<div>\n"
        f'<h2>Global ranking</h2>\n<div class="ranking">{"".join(before)}</div>\n'
        f'<h2>Re-ranked</h2>\n<div class="ranking">{"".join(after)}</div>\n</div>\n</section>'
    )


def _ranked(shown: RankedImage, place: str, moved: str) -> str:
    kind = {True: "right", False: "wrong", None: ""}[shown.right]
    score = "" if shown.score is None else f" · {shown.score:.3f}"
    return (
        f'<figure class="{kind}" title="{escape(shown.id)}">{_picture(shown.image, shown.id, THUMBNAIL)}'
        f"<figcaption>{place}{moved}{score}</figcaption></figure>"
    )


def _move(place: int, old: int) -> str:
    if place == old:
        return ""
    kind, arrow = ("up", "▲") if old > place else ("down", "▼")
    return f' <span class="{kind}">{arrow} from {old}</span>'


def _picture(image: np.ndarray, name: str, side: int) -> str:
    thumbnail = cv2.cvtColor(shrink(image, side), cv2.COLOR_RGB2BGR)
    jpeg = cv2.imencode(".jpg", thumbnail, [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])[1]
    data = base64.b64encode(jpeg.tobytes()).decode()
    return f'<img src="data:image/jpeg;base64,{data}" alt="{escape(name)}">'
