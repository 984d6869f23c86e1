"""Galleries as web pages: bounded in size, with names, links to files and explanations, the re-ranked row first."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np

from ames_jax.report.gallery import QUERIES_PER_PAGE, GalleryQuery, RankedImage, pages_of, write_page


def noise(seed: int, side: int = 480) -> np.ndarray:
    """What compresses worst, uint8 [side, side, 3]."""
    return np.random.default_rng(seed).integers(0, 256, (side, side, 3), np.uint8)


def test_a_page_names_and_links_its_pictures(tmp_path):
    before = [RankedImage(noise(1), True, 0.5, "a/1.jpg")]
    why = {"probability": 0.75, "picture": tmp_path / "a b.jpg", "explanation": "found_files/why 1.jpg"}
    why["through"] = "<i>/0"
    after = [RankedImage(noise(2), False, 0.9, "<b>/a-name-that-is-long-indeed.jpg", 4, **why)]
    query = GalleryQuery(noise(0), before, after, name="asked.jpg", match=False, picture=tmp_path / "asked.jpg")
    pages = pages_of(tmp_path / "found.html", 2 * QUERIES_PER_PAGE + 1)
    assert [page.name for page in pages] == ["found.html", "found-2.html", "found-3.html"]
    write_page("A title", "A note.", [query], pages[1], pages)
    text = pages[1].read_text()
    assert text.index("Re-ranked") < text.index("Global ranking")
    links = re.findall(r'href="([^"]+)"', text)
    assert links == [
        "found.html",
        "found-3.html",
        (tmp_path / "asked.jpg").as_uri(),
        (tmp_path / "a b.jpg").as_uri(),
        "found_files/why%201.jpg",
    ]
    for part in (
        "▲ from 4",
        "p&nbsp;0.75",
        "…at-is-long-indeed.jpg",
        "no match",
        "&lt;b&gt;/a-name",
        "through &lt;i&gt;/0",
    ):
        assert part in text
    assert "<b>/" not in text


def test_a_page_stays_small_whatever_its_pictures_show(tmp_path):
    images = [RankedImage(noise(seed), None, 0.5, f"{seed}.jpg", 1) for seed in range(10)]
    query = GalleryQuery(noise(10), images, images, name="asked.jpg")
    path = Path(tmp_path / "found.html")
    write_page("A title", "", [query], path, pages_of(path, 1))
    assert path.stat().st_size * QUERIES_PER_PAGE < 25e6  # of noise; photographs take a fifth
    assert "<nav>" not in path.read_text()
