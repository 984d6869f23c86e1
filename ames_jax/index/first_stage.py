"""The first stage: FAISS over global descriptors, by inner product."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from etils import epy

from ames_jax.runtime.errors import UserError
from ames_jax.runtime.progress import Progress

with epy.lazy_imports():
    import faiss

BLOCK = 4096
# FAISS asks for 39 to 256 training vectors per list; more only cost time.
TRAINING_PER_LIST, LEAST_PER_LIST = 128, 39
# Lists or nodes that a search visits: with FAISS's own defaults (1 list of thousands) most right images are lost.
PROBED, HNSW_EFFORT = 32, 128


def factory_string(kind: str, images: int) -> str:
    """What `faiss.index_factory` is to build for `images` images.

    kind: "flat" (exact), "ivf" (4·√images inverted lists, for millions), "hnsw" (graph, for millions, more memory), or
    any factory string of FAISS, e.g. "SQfp16" or "IVF4096,PQ96".
    """
    lists = max(1, min(round(4 * images**0.5), images // LEAST_PER_LIST))
    return {"flat": "Flat", "ivf": f"IVF{lists},Flat", "hnsw": "HNSW32,Flat"}.get(kind, kind)


def make_empty(kind: str, descriptors: np.ndarray) -> Any:
    """A FAISS index without vectors, trained on global descriptors float [N, G] of length 1.

    Raises UserError for a kind that FAISS does not know or cannot train on them.
    """
    images, width = descriptors.shape
    factory = factory_string(kind, images)
    try:
        index = faiss.index_factory(width, factory, faiss.METRIC_INNER_PRODUCT)
        ivf = faiss.try_extract_index_ivf(index)
        if not index.is_trained:
            count = min(images, max(TRAINING_PER_LIST * getattr(ivf, "nlist", 1), 10_000))
            rows = np.sort(np.random.default_rng(0).choice(images, count, replace=False))
            with Progress(f"training the global index {factory}"):
                index.train(np.asarray(descriptors[rows], np.float32))
    except RuntimeError as error:
        reason = str(error).strip().rpartition(": ")[2]
        raise UserError(
            f"--global-index={kind}: FAISS cannot make {factory!r} of {images} vectors of {width} values ({reason}); "
            "use flat, ivf, hnsw or another factory string"
        ) from error
    if ivf is not None:
        ivf.nprobe = min(PROBED, ivf.nlist)
    elif isinstance(index, faiss.IndexHNSW):
        index.hnsw.efSearch = HNSW_EFFORT
    return index


def write_empty(index: Any, path: Path) -> None:
    """Keeps a trained index without vectors, from which every part of a collection starts."""
    faiss.write_index(index, str(path))


def write_part(empty: Path, descriptors: np.ndarray, path: Path) -> None:
    """Writes the index of some images: a copy of the empty one with their descriptors float [N, G], in order."""
    index = faiss.read_index(str(empty))
    if descriptors.shape[1] != index.d:
        raise UserError(f"global descriptors have {descriptors.shape[1]} values, those of the index {index.d}")
    with Progress("global index", len(descriptors), "images") as progress:
        for start in range(0, len(descriptors), BLOCK):
            block = np.ascontiguousarray(descriptors[start : start + BLOCK], np.float32)
            index.add(block)
            progress.update(len(block))
    faiss.write_index(index, str(path))


class GlobalIndex:
    """The parts of a collection as one FAISS index: the rows of the first part, then those of the second, …

    Flat parts are memory-mapped: opening reads nothing. `faiss_index` is FAISS's own object, for whatever it offers.
    """

    def __init__(self, paths: Sequence[Path], parameters: str | None = None):
        """parameters: of FAISS's search, e.g. "nprobe=64" or "efSearch=256"; raises UserError where it has none such."""
        parts = [_open(path, parameters) for path in paths]
        self.faiss_index = parts[0]
        if len(parts) > 1:
            self._parts = parts  # FAISS holds them without owning them
            self.faiss_index = faiss.IndexShards(parts[0].d, False, True)
            for part in parts:
                self.faiss_index.add_shard(part)

    def __len__(self) -> int:
        return self.faiss_index.ntotal

    @property
    def width(self) -> int:
        """G, values of a global descriptor."""
        return self.faiss_index.d

    def search(self, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """The k most similar images of queries [Nq, G]: similarities float32 [Nq, k'] falling, rows int64 [Nq, k'].

        k' is k, or the number of images where that is less. An approximate index may find fewer: row −1, similarity −∞.
        """
        similarities, rows = self.faiss_index.search(np.ascontiguousarray(queries, np.float32), min(k, len(self)))
        return np.where(rows < 0, -np.inf, similarities).astype(np.float32), rows


def _open(path: Path, parameters: str | None) -> Any:
    try:
        index = faiss.read_index(str(path), faiss.IO_FLAG_MMAP_IFC)
    except RuntimeError as error:
        raise UserError(f"{path} cannot be read as a FAISS index; build the search index again") from error
    if parameters:
        try:
            faiss.ParameterSpace().set_index_parameters(index, parameters)
        except RuntimeError as error:
            raise UserError(f"--faiss={parameters}: this index has no such search parameter") from error
    return index
