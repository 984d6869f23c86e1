"""The files of the PyTorch release: images from HDF5 and a text list, neighbour lists and ground truth from pickles."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ames_jax.data.lists import RELEASE, read_list
from ames_jax.data.records import ImageRecord, RecordFormat
from ames_jax.data.release_hdf5 import LocalFeatures
from ames_jax.data.safe_pickle import read_pickle
from ames_jax.runtime.errors import UserError

GLDV2_PRIVATE = 750  # queries at the end of GLDv2's test set; the others are public


class ReleaseSource:
    """A release's local descriptors and their list as images, in the way of `open_split`: `source[i]`, ids, labels."""

    def __init__(self, features: str | Path, images: str | Path | None = None, descriptors: int | None = None) -> None:
        """Opens both files.

        Args:
          features: HDF5 file of local descriptors.
          images: text list; without it the ids are row numbers and the labels -1.
          descriptors: the strongest that are read of each image; None for all.

        Raises:
          UserError: a file is not readable, or the list has another number of images.
        """
        paths = (None if path is None else str(Path(path).resolve()) for path in (features, images))
        self.arguments = {**dict(zip(("features", "images"), paths)), "descriptors": descriptors}
        self.local = LocalFeatures(features)
        self.descriptors = min(descriptors or self.local.rows, self.local.rows)
        self.format = RecordFormat(self.descriptors, self.local.width, "bits" if self.local.packed else "float16")
        self._list = None if images is None else read_list(images, RELEASE)
        if self._list is not None and len(self._list) != len(self.local):
            raise UserError(
                f"{images} lists {len(self._list)} images, {features} holds {len(self.local)}: give the list it was made from"
            )

    @property
    def files(self) -> list[Path]:
        """The HDF5 file and the parts that it maps."""
        return self.local.files

    def __len__(self) -> int:
        return len(self.local)

    def __getitem__(self, row: int) -> ImageRecord:
        row = int(row)
        if not 0 <= row < len(self):
            raise IndexError(f"{self.local.path}: image {row} of {len(self)}")
        if self._list is None:
            return ImageRecord(str(row), -1, self.local.read(row, self.descriptors))
        label = -1 if self._list.labels is None else int(self._list.labels[row])
        return ImageRecord(self._list.ids[row], label, self.local.read(row, self.descriptors))

    def ids(self) -> list[str]:
        """The id of every image."""
        return list(map(str, range(len(self)))) if self._list is None else self._list.ids

    def labels(self) -> np.ndarray:
        """int64 [N], the label of every image; raises UserError where the list has none."""
        if self._list is None or self._list.labels is None:
            raise UserError(
                f"{self.arguments['images'] or self.local.path}: no labels; give the list of the training images"
            )
        return self._list.labels

    def __getstate__(self) -> dict[str, Any]:
        return self.arguments

    def __setstate__(self, arguments: dict[str, Any]) -> None:
        self.__init__(**arguments)


def read_neighbours(path: str | Path) -> tuple[np.ndarray, np.ndarray]:
    """Similarities float [Nq, k] and indices (as floats, mapped from the file) of an `nn_*.pkl`.

    Raises:
      UserError: the file holds something else than one tensor [2, Nq, k].
    """
    values = read_pickle(path)
    if not isinstance(values, np.ndarray) or values.ndim != 3 or values.shape[0] != 2:
        found = f"shape {values.shape}" if isinstance(values, np.ndarray) else f"a {type(values).__name__}"
        raise UserError(f"{path}: expected a tensor [2, queries, neighbours], found {found}")
    return values[0], values[1]


def read_ground_truth(path: str | Path) -> tuple[list[dict[str, list]], list[str] | None, list[str] | None]:
    """Of a `gnd_*.pkl`: a mapping a query (row lists "easy", "hard", "junk" or "ok"; "bbx"), database ids, query ids.

    Raises:
      UserError: the file holds something else.
    """
    values = read_pickle(path)
    if not isinstance(values, Mapping) or "gnd" not in values:
        raise UserError(f"{path}: expected a dict with the key gnd, found a {type(values).__name__}")
    truth = []
    for i, entry in enumerate(values["gnd"]):
        if not isinstance(entry, Mapping) or not ({"ok"} <= set(entry) or {"easy", "hard", "junk"} <= set(entry)):
            raise UserError(f"{path}: query {i} has neither `ok` nor `easy`, `hard`, `junk`")
        kinds = {kind: [int(row) for row in entry[kind]] for kind in ("ok", "easy", "hard", "junk") if kind in entry}
        if "bbx" in entry:
            kinds["bbx"] = [float(value) for value in entry["bbx"]]
        truth.append(kinds)
    return truth, values.get("imlist"), values.get("qimlist")
