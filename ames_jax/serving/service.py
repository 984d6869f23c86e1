"""An open index at the service of many askers: searched in batches, changed, and opened again when it was changed."""

from __future__ import annotations

import dataclasses
import math
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np

from ames_jax.extraction.backbone import Backbone
from ames_jax.extraction.images import load_image
from ames_jax.index import explaining, thumbnails
from ames_jax.index.collection import SearchIndex
from ames_jax.index.index_json import FACTS
from ames_jax.index.searcher import QUERIES_AT_A_TIME, Query, Searcher, SearchResult
from ames_jax.index.uploading import WAIT_SECONDS, Upload, add_uploads, check_id, is_upload, remove_image
from ames_jax.runtime.cores import usable_cores
from ames_jax.runtime.errors import UserError
from ames_jax.serving.batching import Batcher, Busy

WATCH_SECONDS = 1.0
# A collection up to this size gets its thumbnails in the background; those of a larger one are made when asked for.
FILLED = 20_000


class Unknown(Exception):
    """There is no such image, or no picture of it."""


class ReadOnly(Exception):
    """The images are those of a database, which the server does not change."""


class Taken(Exception):
    """There is an image of this id already."""


@dataclasses.dataclass(frozen=True)
class Question:
    """A query, and how many images are wanted (`top`) and re-ranked (`shortlist`; None: as many as the server does)."""

    query: Query
    top: int
    shortlist: int | None = None


class Service:
    """The work of the server, without HTTP; its methods may be called from many threads.

    Args:
      path: folder of the index.
      open_searcher: opens the index anew; it is given the backbone that is open already, if any.
      places: requests that may be under way.
      pictures: folder of the index's pictures, where they have moved.
      label_of: the label of an image by its id, for those who look at it.
    """

    def __init__(
        self,
        path: Path,
        open_searcher: Callable[[Backbone | None], Searcher],
        places: int,
        pictures: Path | None = None,
        label_of: Callable[[str], str | None] = lambda image_id: None,
    ) -> None:
        self.path, self._open, self._pictures, self.label_of = path, open_searcher, pictures, label_of
        self._changing, self._reloading = threading.Lock(), threading.Lock()
        self._explaining, self._decoding = threading.Lock(), threading.BoundedSemaphore(usable_cores())
        self._thumbnails = [threading.Lock() for _ in range(64)]  # one thread at a time makes the thumbnail of a row
        self._ended = threading.Event()
        self._stamp = self._now()
        self.searcher = open_searcher(None)
        self.searcher.warm_up()
        self.stale = False  # whether the index on disk could not be opened
        self.batcher: Batcher[Question, SearchResult] = Batcher(self._search, places, QUERIES_AT_A_TIME)
        threads = (self._watch, self._fill)
        self._threads = [threading.Thread(target=work, name=work.__name__, daemon=True) for work in threads]
        for thread in self._threads:
            thread.start()

    def close(self) -> None:
        """Answers what waits and ends."""
        self._ended.set()
        self.batcher.close()
        for thread in self._threads:
            thread.join()

    @property
    def index(self) -> SearchIndex:
        """The index as it is searched now."""
        return self.searcher.index

    def fit(self, picture: np.ndarray) -> np.ndarray:
        """A picture in the size in which queries are extracted."""
        return self.searcher.backbone.fit(picture)

    def decode(self, read: Callable[[], np.ndarray]) -> np.ndarray:
        """Runs what decodes a picture, as many at a time as there are cores, since large ones take much memory."""
        with self._decoding:
            return read()

    def indexed_picture(self, image_id: str) -> np.ndarray:
        """The picture of an indexed image, RGB uint8 [H, W, 3]; raises Unknown."""
        path = self.picture_path(image_id)
        return self.decode(lambda: load_image(path))

    def picture_path(self, image_id: str) -> Path:
        """The picture file of an indexed image; raises Unknown. The id is looked up, it never becomes a path."""
        index = self.index
        row = _row_of(index, image_id)
        path = index.picture(row, self._folder(index, row))
        if path is None or not path.is_file():
            raise Unknown(f"the picture of {image_id!r} is not where it was")
        return path

    def thumbnail(self, image_id: str) -> bytes:
        """A small JPEG of an indexed image; raises Unknown."""
        index = self.index
        row = _row_of(index, image_id)
        with self._thumbnails[row % len(self._thumbnails)], self._decoding:
            try:
                return thumbnails.thumbnail(index, row, self._folder(index, row))
            except UserError as error:
                raise Unknown(f"there is no picture of {image_id!r}, or it cannot be read") from error

    def explain(self, query: np.ndarray, image_id: str) -> explaining.Explanation:
        """Reasons why an indexed image is found for a picture; raises Unknown."""
        self.picture_path(image_id)
        searcher = self.searcher
        folder = self._folder(searcher.index, _row_of(searcher.index, image_id))
        with self._explaining:  # it uses all cores by itself
            return explaining.explain(searcher, query, image_id, folder)

    def add(self, upload: Upload) -> None:
        """Adds an image, which the next search finds.

        Raises Taken, ReadOnly, Busy where another process changes the index for long, and UserError for an id that no upload
        may have.
        """
        self._check_changeable()
        check_id(upload.id)
        with self._changing, _unless_changed_by_another():
            if self.holds(upload.id):
                raise Taken(f"the index holds {upload.id!r} already; remove it first, or give another id")
            add_uploads(self.searcher, [upload])
            self._reload()

    def remove(self, image_id: str) -> None:
        """Removes an image, which no later search finds; raises Unknown, or ReadOnly and Busy as `add`."""
        self._check_changeable()
        with self._changing, _unless_changed_by_another():
            _row_of(self.index, image_id)
            remove_image(self.searcher, image_id)
            self._reload()
            thumbnails.place(self.path, image_id).unlink(missing_ok=True)

    def _check_changeable(self) -> None:
        if not self.index.changeable:
            raise ReadOnly("this server searches a database, which search index --add --database=… changes")

    def holds(self, image_id: str) -> bool:
        """True if there is an image of this id."""
        try:
            _row_of(self.index, image_id)
        except Unknown:
            return False
        return True

    def _folder(self, index: SearchIndex, row: int) -> Path | None:
        """The folder to which the picture of an image has moved, if it has: an upload has not."""
        return None if is_upload(index, row) else self._pictures

    def _search(self, questions: list[Question]) -> Sequence[SearchResult]:
        searcher = self.searcher
        most = max(searcher.shortlist, *(question.top for question in questions))
        results = searcher.search_many([question.query for question in questions], most)
        return [cut(result, question.shortlist, question.top) for result, question in zip(results, questions)]

    def _now(self) -> tuple[int, ...]:
        """Facts that change when the index is replaced."""
        try:
            facts = (self.path / FACTS).stat()
        except OSError:
            return ()
        return facts.st_mtime_ns, facts.st_size, facts.st_ino

    def _watch(self) -> None:
        while not self._ended.wait(WATCH_SECONDS):
            if self._now() != self._stamp:
                self._reload()

    def _reload(self) -> None:
        """Opens the index as it is now; the one before is searched until the new one is ready."""
        with self._reloading:
            stamp = self._now()
            if stamp == self._stamp:
                return
            try:
                searcher = self._open(self.searcher.backbone)
                searcher.warm_up()
                self.searcher, self.stale = searcher, False
            except UserError as error:  # half copied, perhaps: the next change is tried again
                self.stale = True
                print(f"{error}; the index of before is searched", file=sys.stderr)
            self._stamp = stamp

    def _fill(self) -> None:
        """Makes the missing thumbnails of a collection of moderate size while nobody asks."""
        index = self.index
        for row in range(len(index) if index.changeable and len(index) <= FILLED else 0):
            while self.batcher.taken and not self._ended.is_set():
                time.sleep(0.1)
            if self._ended.is_set():
                return
            if not thumbnails.is_kept(index, row):
                with suppress(Unknown):  # the picture, or meanwhile the image, is gone
                    self.thumbnail(index.ids[row])


def cut(result: SearchResult, shortlist: int | None, top: int) -> SearchResult:
    """The first `top` images, and of those re-ranked only the first stage's `shortlist`, as a search of that many finds,
    but for what is found through sure matches below.

    So one compiled program, which scores as many as the server does, answers every request.
    """
    before, hits = result.first_stage, result.hits
    if shortlist is not None:
        below = [
            dataclasses.replace(hit, score=None, logit=None, probability=None, through=None)
            for hit in before[shortlist:]
        ]
        hits = [hit for hit in hits if hit.old_place <= shortlist] + below
        before = before[:shortlist] + below
    return dataclasses.replace(result, hits=hits[:top], first_stage=before[:top])


@contextmanager
def _unless_changed_by_another() -> Iterator[None]:
    try:
        yield
    except UserError as error:
        print(error, file=sys.stderr)
        raise Busy(math.ceil(WAIT_SECONDS)) from error


def _row_of(index: SearchIndex, image_id: str) -> int:
    try:
        return int(index.rows([image_id])[0])
    except UserError as error:
        raise Unknown(f"the index holds no image {image_id!r}") from error
