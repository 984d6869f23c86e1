"""The first stage: FAISS over global descriptors, by inner product."""

from __future__ import annotations

import dataclasses
import errno
import re
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
from etils import epy
from jaxtyping import Float, Float32, Int, Int64

from ames_jax.runtime.errors import UserError
from ames_jax.runtime.files import need_space
from ames_jax.runtime.progress import Progress

with epy.lazy_imports():
    import faiss

BLOCK = 4096
# FAISS asks for 39 to 256 training vectors per list; more only cost time.
TRAINING_PER_LIST, LEAST_PER_LIST = 128, 39
# Lists or nodes that a search visits: with FAISS's own defaults (1 list of thousands) most right images are lost.
PROBED, HNSW_EFFORT, HNSW_LINKS = 32, 128, 32
# Numbers in a factory string for which FAISS ends the process, or waits without end, instead of refusing them.
FATAL = re.compile(r"(?<!\d)0+(?!\d)|HNSW1(?!\d)")
# Rounding to float16 moves the length of a vector by less than 0.001.
LENGTH_TOLERANCE = 1e-2
# Vectors asked for beyond k and the share of removed ones.
SPARE = 16


@runtime_checkable
class GlobalVectors(Protocol):
    """Global descriptors float [N, G]: an array, a memory map, or a `GlobalIndex`, whose rows are given as an array."""

    shape: tuple[int, int]

    def __len__(self) -> int: ...

    def __getitem__(self, rows: Any) -> np.ndarray: ...


def factory_string(kind: str, images: int) -> str:
    """The argument of `faiss.index_factory` for an index of `images` images.

    kind: "flat" (exact), "ivf" (4·√images inverted lists, for millions), "hnsw" (graph, for millions, more memory), or
    any factory string of FAISS, e.g. "SQfp16" or "IVF4096,PQ96".
    """
    lists = max(1, min(round(4 * images**0.5), images // LEAST_PER_LIST))
    return {"flat": "Flat", "ivf": f"IVF{lists},Flat", "hnsw": f"HNSW{HNSW_LINKS},Flat"}.get(kind, kind)


def untrained(kind: str, images: int, width: int) -> Any:
    """A FAISS index for `images` global descriptors of `width` values; raises UserError for a kind that FAISS does not know."""
    if fatal := FATAL.search(factory_string(kind, images)):
        raise UserError(f"--global-index={kind}: FAISS cannot make an index of {fatal[0]!r}; give larger numbers")
    with _refusing(kind, images, width):
        return faiss.index_factory(width, factory_string(kind, images), faiss.METRIC_INNER_PRODUCT)


def make_empty(kind: str, descriptors: GlobalVectors) -> Any:
    """A FAISS index without vectors, trained on global descriptors float [N, G] of length 1.

    Raises UserError for a kind that FAISS does not know or cannot train on them.
    """
    images, width = descriptors.shape
    index = untrained(kind, images, width)
    ivf = faiss.try_extract_index_ivf(index)
    if not index.is_trained:
        count = min(images, max(TRAINING_PER_LIST * getattr(ivf, "nlist", 1), 10_000))
        rows = np.sort(np.random.default_rng(0).choice(images, count, replace=False))
        label = f"training the global index {factory_string(kind, images)}"
        with Progress(label), _refusing(kind, images, width):
            index.train(np.asarray(descriptors[rows], np.float32))
    with _refusing(kind, images, width):  # some kinds take vectors under ids of their own alone
        faiss.deserialize_index(faiss.serialize_index(index)).add(np.asarray(descriptors[:1], np.float32))
    if ivf is not None:
        ivf.nprobe = min(PROBED, ivf.nlist)
    elif isinstance(index, faiss.IndexHNSW):
        index.hnsw.efSearch = HNSW_EFFORT
    return index


@contextmanager
def _refusing(kind: str, images: int, width: int) -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        reason, factory = str(error).strip().rpartition(": ")[2], factory_string(kind, images)
        raise UserError(
            f"--global-index={kind}: FAISS cannot make {factory!r} of {images} vectors of {width} values ({reason}); "
            "use flat, ivf, hnsw or another factory string"
        ) from error


def write_empty(index: Any, path: Path) -> None:
    """Keeps a trained index without vectors, from which every part of a collection starts; raises OSError."""
    with path.open("wb") as file:
        try:
            # FAISS's own writing does not see an error that comes with the last bytes.
            faiss.write_index(index, faiss.PyCallbackIOWriter(file.write))
        except RuntimeError as error:  # which tells the reason in words alone
            free = shutil.disk_usage(path.parent).free
            raise OSError(errno.ENOSPC, f"cannot be written ({free:,} B are free)", str(path)) from error


def write_part(empty: Path, descriptors: GlobalVectors, path: Path) -> None:
    """Writes the index of some images: a copy of the empty one with their descriptors float [N, G], in order.

    Raises UserError for descriptors of another width or a disk without the space, OSError.
    """
    index = faiss.read_index(str(empty))
    if descriptors.shape[1] != index.d:
        raise UserError(f"global descriptors have {descriptors.shape[1]} values, those of the index {index.d}")
    need_space(path, len(descriptors) * _bytes_of_a_vector(index))
    with Progress("global index", len(descriptors), "images") as progress:
        for start in range(0, len(descriptors), BLOCK):
            block = np.ascontiguousarray(descriptors[start : start + BLOCK], np.float32)
            index.add(block)
            progress.update(len(block))
    write_empty(index, path)


def _bytes_of_a_vector(index: Any) -> int:
    """Bytes that FAISS stores of a vector, a graph's links included; 0 where it does not tell."""
    graph = isinstance(index, faiss.IndexHNSW)
    try:
        code = (faiss.downcast_index(index.storage) if graph else index).sa_code_size()
    except RuntimeError:
        return 0
    return code + (8 * HNSW_LINKS if graph else 0)


def check_vectors(descriptors: GlobalVectors, name: Callable[[int], str], source: object) -> None:
    """Raises UserError, naming the image, unless all are floats of length 1 (or 0: a picture that shows nothing).

    name: the id of a row; source: the file.
    """
    for start in range(0, len(descriptors), BLOCK):
        block = np.asarray(descriptors[start : start + BLOCK])
        if block.dtype.kind != "f":
            raise UserError(f"{source} holds {block.dtype}; expected global descriptors, floats of length 1")
        lengths = np.linalg.norm(block.astype(np.float32), axis=1)
        bad = ~((np.abs(lengths - 1) < LENGTH_TOLERANCE) | (lengths == 0))
        if bad.any():
            row = int(np.argmax(bad))
            raise UserError(
                f"{source}: the global descriptor of {name(start + row)} has length {lengths[row]:.4g}, expected 1; "
                "normalise them, and extract images again whose descriptors hold NaN"
            )


@dataclasses.dataclass(frozen=True)
class ChosenVectors:
    """Some rows of global descriptors; they are read block by block."""

    vectors: GlobalVectors
    rows: Int[np.ndarray, " n"]

    @property
    def shape(self) -> tuple[int, int]:
        """[n, G]."""
        return len(self.rows), self.vectors.shape[1]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, part: Any) -> Float[np.ndarray, "m G"]:
        return self.vectors[self.rows[part]]


class GlobalIndex:
    """The parts of a collection as one FAISS index: the rows of the first part, then those of the second, …

    Flat parts are memory-mapped: opening reads nothing. `faiss_index` is FAISS's own object, for whatever it offers.
    """

    def __init__(
        self, paths: Sequence[Path], parameters: str | None = None, kept: Int64[np.ndarray, " N"] | None = None
    ):
        """Opens the files.

        Args:
          parameters: of FAISS's search, e.g. "nprobe=64" or "efSearch=256".
          kept: the stored vectors that count, ascending: row i is vector kept[i]. None: all.

        Raises:
          UserError: a file cannot be read, or the index has no such parameters.
        """
        self._parts, self._kept, self._paths = [_open(path, parameters) for path in paths], kept, paths
        self.faiss_index = self._parts[0]
        if len(paths) > 1:
            self.faiss_index = faiss.IndexShards(self._parts[0].d, False, True)  # does not own its parts
            for part in self._parts:
                self.faiss_index.add_shard(part)

    def __len__(self) -> int:
        return self.faiss_index.ntotal if self._kept is None else len(self._kept)

    @property
    def width(self) -> int:
        """G, values of a global descriptor."""
        return self.faiss_index.d

    @property
    def shape(self) -> tuple[int, int]:
        """[N, G]."""
        return len(self), self.width

    def __getitem__(self, rows: Int[np.ndarray, " n"]) -> Float32[np.ndarray, "n G"]:
        """The descriptors of these rows as FAISS holds them: rounded where the index compresses them."""
        stored = np.asarray(rows) if self._kept is None else self._kept[rows]
        vectors, start = np.empty((len(stored), self.width), np.float32), 0
        for part in self._parts:
            inside = np.flatnonzero((stored >= start) & (stored < start + part.ntotal))
            if len(inside):
                with self._failures_told():
                    lists = faiss.try_extract_index_ivf(part)
                    if lists is not None:
                        lists.make_direct_map()  # where in its lists a vector is
                    vectors[inside] = part.reconstruct_batch(stored[inside] - start)
            start += part.ntotal
        return vectors

    def search(
        self, queries: Float[np.ndarray, "Nq G"], k: int
    ) -> tuple[Float32[np.ndarray, "Nq K"], Int64[np.ndarray, "Nq K"]]:
        """The K most similar images of queries: similarities, falling, and rows.

        K is k, or the number of images where that is less. An approximate index may find fewer: row −1, similarity −∞.
        """
        queries, k = np.ascontiguousarray(queries, np.float32), min(k, len(self))
        if k == 0:
            return np.zeros((len(queries), 0), np.float32), np.zeros((len(queries), 0), np.int64)
        if self._kept is None:
            similarities, rows = self._asked(queries, k)
            return np.where(rows < 0, -np.inf, similarities).astype(np.float32), rows
        return self._search_kept(queries, k)

    def _search_kept(self, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """Asks FAISS for more than k, and again for twice as many, until k that were not removed are among them."""
        total = self.faiss_index.ntotal
        asked = min(total, k * total // len(self) + SPARE)
        while True:
            similarities, stored = self._asked(queries, asked)
            rows = np.searchsorted(self._kept, stored)
            there = self._kept[np.minimum(rows, len(self) - 1)] == stored
            if asked == total or ((there.sum(axis=1) >= k) | (stored[:, -1] < 0)).all():
                break
            asked = min(total, 2 * asked)
        order = np.argsort(~there, axis=1, kind="stable")[:, :k]
        rows, similarities = np.where(there, rows, -1), np.where(there, similarities, -np.inf).astype(np.float32)
        return np.take_along_axis(similarities, order, axis=1), np.take_along_axis(rows, order, axis=1)

    def _asked(self, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        with self._failures_told():
            return self.faiss_index.search(queries, k)

    @contextmanager
    def _failures_told(self) -> Iterator[None]:
        try:
            yield
        except (RuntimeError, MemoryError) as error:
            # Of parameters, or of damage in a file too large to be compared on opening.
            raise UserError(
                f"{', '.join(map(str, self._paths))}: FAISS fails ({' '.join(str(error).split())[-200:]}); "
                "python -m ames_jax.search verify tells whether a file is damaged"
            ) from error


def _open(path: Path, parameters: str | None) -> Any:
    try:
        index = faiss.read_index(str(path), faiss.IO_FLAG_MMAP_IFC)
    except (RuntimeError, MemoryError) as error:
        raise UserError(f"{path} cannot be read as a FAISS index; build the search index again") from error
    if index.metric_type != faiss.METRIC_INNER_PRODUCT:  # damage that would turn the order of all hits around
        raise UserError(f"{path} does not compare by inner product; build the search index again")
    if parameters:
        try:
            faiss.ParameterSpace().set_index_parameters(index, parameters)
        except RuntimeError as error:
            raise UserError(f"--faiss={parameters}: this index has no such search parameter") from error
    return index
