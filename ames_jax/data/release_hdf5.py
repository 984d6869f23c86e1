"""The release's HDF5 files: local descriptors in all their layouts, read row by row."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import numpy as np

from ames_jax.descriptors import DescriptorSet
from ames_jax.runtime.errors import UserError

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


def check_parts(path: Path, dataset: Any) -> list[Path]:
    """Opens every file that a virtual dataset maps, and names them; HDF5 itself gives zeros for what is not there.

    Raises:
      UserError: a part is missing, cut short, or not what the virtual file maps.
    """
    sources = [source for source in dataset.virtual_sources() if source.file_name != "."]
    parts = {source.file_name: _part_path(path, source.file_name) for source in sources}
    gone = [part for part in parts.values() if not part.exists()]
    if gone:
        raise UserError(
            f"{path} is a virtual file and its part {gone[0]} is missing ({len(gone)} in all), which HDF5 would "
            "read as zeros: copy the parts into the same folder"
        )
    for source in sources:
        part, name = parts[source.file_name], source.dset_name
        with open_hdf5(part) as file:
            held = file[name].size if name in file else 0
        mapped = source.vspace.get_select_npoints()
        if held < mapped:
            raise UserError(
                f"{path} maps {mapped} values of `{name}` of {part}, which holds {held}: copy that part again, or make the "
                "virtual file anew"
            )
    return list(parts.values())


def _part_path(path: Path, name: str) -> Path:
    beside = path.parent / name
    return Path(name) if not beside.exists() and Path(name).exists() else beside


class LocalFeatures:
    """Random access to the local descriptors of a release file; picklable, memory of one image at a time.

    Layouts: flat `features` [N, K, 5 + D] float32 or float16; structured, fields `metadata` [N, K, 5] and `descriptor`
    [N, K, D], where uint8 descriptors are packed bits; each of them also as a virtual file.

    Attributes:
      path: the file; files: it and, for a virtual file, its parts. images: N. rows: K. width: D, or the number of bits.
      layout: "flat" or "structured"; packed: the descriptors are bits; virtual: a virtual file.
      dtype: of the descriptors, as stored.
    """

    def __init__(self, path: str | Path) -> None:
        """Opens the file.

        Raises:
          UserError: it is missing, cut short, of no layout known here, or virtual with a part missing.
        """
        self.path = Path(path)
        self.files = [self.path]
        self._lock = threading.Lock()
        self._file: Any = None
        dataset = self._dataset()
        self.virtual = bool(getattr(dataset, "is_virtual", False))
        if self.virtual:
            self.files += check_parts(self.path, dataset)
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
        metadata, features = self.read_raw(row, descriptors)
        return DescriptorSet(
            features,
            valid=metadata[..., MASK] == 0,
            xy=metadata[..., [X, Y]],
            scale=metadata[..., SCALE],
            weight=metadata[..., WEIGHT],
        )

    def read_raw(self, row: int | slice, descriptors: int | None = None) -> tuple[np.ndarray, np.ndarray]:
        """The same as stored: metadata float32 [..., k, 5] with the mask as it is (1 is padding), and features."""
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
        return np.asarray(metadata, np.float32), features

    def _dataset(self) -> Any:
        if self._file is None:
            self._file = open_hdf5(self.path)
        return features_of(self._file, self.path)

    def __getstate__(self) -> dict[str, Any]:
        return {"path": self.path}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(**state)
