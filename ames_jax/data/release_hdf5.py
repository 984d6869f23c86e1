"""The release's HDF5 files: local descriptors in all their layouts, read row by row, and global descriptors."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import numpy as np

from ames_jax.descriptors import DescriptorSet
from ames_jax.errors import UserError

# Columns before the descriptor: x, y (share of the image), scale, mask (1 = padding), weight.
METADATA = 5
X, Y, SCALE, MASK, WEIGHT = range(METADATA)
CHUNK_CACHE = 64 * 2**20


def open_hdf5(path: str | Path) -> Any:
    """Opens an HDF5 file for reading (`h5py.File`).

    Raises:
      UserError: the file is missing, cut short, or no HDF5.
    """
    import h5py

    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path} is missing")
    try:
        # Rows that share a compressed chunk are then unpacked once.
        return h5py.File(path, "r", rdcc_nbytes=CHUNK_CACHE)
    except OSError as error:
        if "truncated" in str(error):
            size = path.stat().st_size
            raise UserError(f"{path} is cut short at {size} bytes: copy or download it again ({error})") from None
        raise UserError(f"{path} is not a readable HDF5 file ({error}): copy or download it again") from None


def features_of(file: Any, path: Path) -> Any:
    """The dataset `features` of an open file; raises UserError where there is none."""
    if "features" not in file:
        raise UserError(f"{path}: no dataset `features`; it has {sorted(file)}")
    return file["features"]


def missing_parts(path: str | Path) -> list[Path]:
    """The files that a virtual HDF5 file maps and that are not there; HDF5 would give zeros in their place."""
    with open_hdf5(path) as file:
        dataset = file.get("features")
        if dataset is None or not getattr(dataset, "is_virtual", False):
            return []
        names = dict.fromkeys(source.file_name for source in dataset.virtual_sources())
    folder = Path(path).parent
    return [folder / name for name in names if name != "." and not (folder / name).exists() and not Path(name).exists()]


class LocalFeatures:
    """Random access to the local descriptors of a release file; picklable, memory of one image at a time.

    Layouts: flat `features` [N, K, 5 + D] float32 or float16; structured, fields `metadata` [N, K, 5] and `descriptor`
    [N, K, D], where uint8 descriptors are packed bits; each of them also as a virtual file.

    Attributes:
      path: the file. images: N. rows: K. width: D, or the number of bits.
      layout: "flat" or "structured"; packed: the descriptors are bits; virtual: a virtual file.
      dtype: of the descriptors, as stored.
    """

    def __init__(self, path: str | Path) -> None:
        """Opens the file.

        Raises:
          UserError: it is missing, cut short, of no layout known here, or virtual with a part missing.
        """
        self.path = Path(path)
        gone = missing_parts(self.path)
        if gone:
            raise UserError(
                f"{self.path} is a virtual file and its part {gone[0]} is missing ({len(gone)} in all), which HDF5 would "
                "read as zeros: copy the parts into the same folder"
            )
        self._lock = threading.Lock()
        self._file: Any = None
        dataset = self._dataset()
        self.virtual = bool(getattr(dataset, "is_virtual", False))
        if dataset.dtype.names:
            self._describe_structured(dataset)
        else:
            self._describe_flat(dataset)

    def _describe_flat(self, dataset: Any) -> None:
        if dataset.ndim != 3 or dataset.shape[2] <= METADATA or dataset.dtype.kind != "f":
            raise UserError(
                f"{self.path}: `features` is {dataset.dtype} {dataset.shape}, expected floats [images, descriptors, 5 + D] "
                "(local descriptors; files named *_global or *_cls hold global ones)"
            )
        self.layout, self.packed, self.dtype = "flat", False, dataset.dtype
        self.images, self.rows, self.width = dataset.shape[0], dataset.shape[1], dataset.shape[2] - METADATA

    def _describe_structured(self, dataset: Any) -> None:
        fields = dataset.dtype.fields
        if not {"metadata", "descriptor"} <= set(fields):
            raise UserError(f"{self.path}: `features` has fields {sorted(fields)}, expected metadata and descriptor")
        metadata, descriptor = fields["metadata"][0], fields["descriptor"][0]
        shape = (*dataset.shape, *descriptor.shape)
        if len(shape) != 3 or (*dataset.shape, *metadata.shape) != (*shape[:2], METADATA):
            raise UserError(f"{self.path}: fields of shape {shape}, expected [images, descriptors, D]")
        self.layout, self.dtype = "structured", descriptor.base
        self.packed = self.dtype == np.uint8
        self.images, self.rows, self.width = shape[0], shape[1], shape[2] * (8 if self.packed else 1)

    def __len__(self) -> int:
        return self.images

    def read(self, row: int | slice, descriptors: int | None = None) -> DescriptorSet:
        """Descriptors of one image [k, ·] or of a range of images [n, k, ·], the first k = `descriptors` of each.

        The rest of a row is not read where the file is stored in smaller chunks. Features keep the file's dtype; x, y,
        scale and weight come as float32; `valid` is the release's mask turned round.

        Raises:
          UserError: the file is damaged there.
        """
        count = self.rows if descriptors is None else min(descriptors, self.rows)
        dataset = self._dataset()
        try:
            # HDF5 is not safe in threads of its own accord, and h5py's lock covers single calls only.
            with self._lock:
                values = dataset[row, :count] if dataset.ndim > 1 else dataset[row]
        except OSError as error:
            raise UserError(f"{self.path}: images {row} cannot be read ({error}): copy or download it again") from None
        if self.layout == "structured":
            metadata, features = values["metadata"][..., :count, :], values["descriptor"][..., :count, :]
        else:
            metadata, features = values[..., :METADATA], values[..., METADATA:]
        metadata = np.asarray(metadata, np.float32)
        return DescriptorSet(
            features,
            valid=metadata[..., MASK] == 0,
            xy=metadata[..., [X, Y]],
            scale=metadata[..., SCALE],
            weight=metadata[..., WEIGHT],
        )

    def raw_mask(self, rows: slice) -> np.ndarray:
        """The mask column as stored, float32 [n, K]: 1 is padding."""
        values = self._dataset()[rows]
        metadata = values["metadata"] if self.layout == "structured" else values[..., :METADATA]
        return np.asarray(metadata[..., MASK], np.float32)

    def _dataset(self) -> Any:
        if self._file is None:
            self._file = open_hdf5(self.path)
        return features_of(self._file, self.path)

    def __getstate__(self) -> dict[str, Any]:
        return {"path": self.path}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(**state)


def open_global(path: str | Path) -> np.ndarray:
    """Global descriptors [N, Dg]: float32 and in memory from a release HDF5, or memory-mapped from an .npy file.

    Raises:
      UserError: the file is missing, cut short, or holds something else.
    """
    path = Path(path)
    if path.suffix == ".npy":
        if not path.is_file():
            raise UserError(f"{path} is missing")
        values = np.load(path, mmap_mode="r")
        shape = values.shape
    else:
        with open_hdf5(path) as file:
            dataset = features_of(file, path)
            shape = dataset.shape
            values = dataset[:] if len(shape) == 2 else None
    if len(shape) != 2:
        raise UserError(f"{path}: expected global descriptors [images, values], found {shape}")
    return values
