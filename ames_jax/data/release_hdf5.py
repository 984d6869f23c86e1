"""The release's HDF5 files of local descriptors, in all their layouts, and the text lists that belong to them."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import numpy as np

from ames_jax.data.lists import RELEASE, read_list
from ames_jax.data.records import ImageRecord, RecordFormat
from ames_jax.descriptors import DescriptorSet
from ames_jax.runtime.checksums import check, note_unchecked
from ames_jax.runtime.errors import UserError
from ames_jax.runtime.fingerprints import content_of, fingerprint_of

# Columns before the descriptor: x, y (share of the image), scale, mask (1 = padding), weight.
METADATA = 5
X, Y, SCALE, MASK, WEIGHT = range(METADATA)
CHUNK_CACHE = 64 * 2**20
# Reading this much in vain costs about as much as one more call.
GAP_BYTES = 2**14
MOST_BYTES = 2**30  # of an image


def open_hdf5(path: str | Path) -> Any:
    """Opens an HDF5 file for reading (`h5py.File`).

    Raises UserError: the file is missing, cut short, or no HDF5.
    """
    import h5py

    if not (path := Path(path)).is_file():
        raise UserError(f"{path} is missing")
    check(path)
    try:
        # Rows that share a compressed chunk are then unpacked once.
        file = h5py.File(path, "r", rdcc_nbytes=CHUNK_CACHE)
    except Exception as error:  # a damaged file can fail in any part of HDF5
        if "unable to lock" in str(error):
            raise UserError(
                f"{path} is open in another process that writes it ({error}): wait until it has finished, or stop it"
            ) from None
        if "truncated" in str(error):
            size = path.stat().st_size
            raise UserError(f"{path} is cut short at {size} bytes: copy or download it again ({error})") from None
        raise UserError(f"{path} is not a readable HDF5 file ({error}): copy or download it again") from None
    note_unchecked(path)
    return file


def features_of(file: Any, path: Path) -> Any:
    """The dataset `features` of an open file; raises UserError where there is none, or it lies in another file."""
    return _dataset_of(file, "features", path)


def _dataset_of(file: Any, name: str, path: Path) -> Any:
    """A dataset that is in the file itself: a link, or storage outside, could lead to any file of the machine."""
    import h5py

    try:
        link = file.get(name, getlink=True)
        if link is None:
            raise UserError(f"{path}: no dataset `{name}`; it has {sorted(file)}")
        if not isinstance(link, h5py.HardLink):
            raise UserError(f"{path}: `{name}` is a link to another place; expected the dataset itself")
        dataset = file[name]
        if not isinstance(dataset, h5py.Dataset) or dataset.shape is None:
            raise UserError(
                f"{path}: `{name}` is a {type(dataset).__name__.lower()} without values, expected a dataset"
            )
        if dataset.external:
            raise UserError(
                f"{path}: `{name}` is stored in other files ({dataset.external[0][0]}); copy it into one file"
            )
    except UserError:
        raise
    except Exception as error:  # a damaged file can fail in any part of HDF5
        reason = " ".join(str(error).split())
        raise UserError(f"{path}: `{name}` cannot be read ({reason}): copy or download the file again") from None
    return dataset


def _part_of(path: Path, name: str) -> Path:
    """The file that HDF5 opens for a part: an absolute path that is gone counts as a file beside the virtual one."""
    place = Path(name)
    if place.is_absolute() and not place.exists():
        return path.parent / place.name
    return path if name == "." else path.parent / place


def check_parts(path: Path, dataset: Any) -> list[Path]:
    """Opens every file that a virtual dataset maps, and names them; HDF5 itself gives zeros for what is not there.

    Raises UserError: a part is missing, cut short, in another folder, virtual itself, or not what the virtual file maps.
    """
    sources = list(dataset.virtual_sources())
    parts = {source.file_name: _part_of(path, source.file_name) for source in sources}
    for part in parts.values():
        if part.parent.resolve() != path.parent.resolve():
            raise UserError(
                f"{path} maps {part}; parts are read from its own folder alone: copy them there, and make {path.name} anew"
            )
    gone = [part for part in parts.values() if not part.exists()]
    if gone:
        raise UserError(
            f"{path} is a virtual file and its part {gone[0]} is missing ({len(gone)} in all), which HDF5 would "
            "read as zeros: copy the parts into the same folder"
        )
    for source in sources:
        part, name = parts[source.file_name], source.dset_name
        with open_hdf5(part) as file:
            values = _dataset_of(file, name, part)
            if values.is_virtual:
                raise UserError(f"{path} maps `{name}` of {part}, which is virtual itself: map the files that hold it")
            held = values.size
        mapped = source.vspace.get_select_npoints()
        if held < mapped:
            raise UserError(
                f"{path} maps {mapped} values of `{name}` of {part}, which holds {held}: copy that part again, or make the "
                "virtual file anew"
            )
    return [part for part in parts.values() if part != path]


class ReleaseSource:
    """The images of a release file: picklable, safe in threads, and in memory one image (or one read) at a time.

    `len(source)` images; `source[i]` is an `ImageRecord` with x, y, scale and weight; `read` makes it a `DescriptorReader`.
    Layouts: flat `features` [N, K, 5 + D] float32 or float16; structured, fields `metadata` [N, K, 5] and `descriptor`
    [N, K, D], where uint8 descriptors are packed bits; plain uint8 `features` [N, K, D / 8], bits alone as ELViS's extraction
    writes them, whose rows of zeros are padding; each of them also as a virtual file.

    Attributes:
      path: the file; files: it and, for a virtual file, its parts.
      rows: K, descriptors of each image in it; width: D, or the number of bits; dtype: of the descriptors.
      layout: "flat", "structured" or "plain"; packed: the descriptors are bits; virtual: a virtual file.
      format: how shards hold these images.
      arguments: what the source was opened with, as plain values.
    """

    def __init__(self, features: str | Path, images: str | Path | None = None, descriptors: int | None = None) -> None:
        """Opens the files.

        Args:
          features: HDF5 file of local descriptors.
          images: text list; without it the ids are row numbers and the labels -1.
          descriptors: the strongest that are read of each image; None for all.

        Raises:
          UserError: a file is missing, cut short, of no layout known here, or virtual with a part missing; the list has
            another number of images.
        """
        paths = (None if path is None else str(Path(path).resolve()) for path in (features, images))
        self.arguments = {**dict(zip(("features", "images"), paths)), "descriptors": descriptors}
        self.path = Path(features)
        self.files = [self.path]
        self._lock = threading.Lock()
        self._file = open_hdf5(self.path)
        self._dataset = features_of(self._file, self.path)
        self.virtual = bool(getattr(self._dataset, "is_virtual", False))
        if self.virtual:
            self.files += check_parts(self.path, self._dataset)
        self._describe()
        self._kept = min(descriptors or self.rows, self.rows)
        self.format = RecordFormat(self._kept, self.width, "bits" if self.packed else "float16")
        self._list = read_list(images, RELEASE) if images else None
        if self._list is not None and len(self._list) != len(self):
            raise UserError(
                f"{images} lists {len(self._list)} images, {features} holds {len(self)}: give the list it was made from"
            )

    def _describe(self) -> None:
        """Finds the layout; raises UserError where it is none known here."""
        dtype, shape, fields = self._dataset.dtype, self._dataset.shape, self._dataset.dtype.fields
        if not fields and dtype == np.uint8 and len(shape) == 3:
            self.layout, self.dtype = "plain", dtype
        elif not fields:
            if len(shape) != 3 or shape[2] <= METADATA or dtype.kind != "f":
                raise UserError(
                    f"{self.path}: `features` is {dtype} {shape}, expected floats [images, descriptors, 5 + D] "
                    "(local descriptors; files named *_global or *_cls hold global ones)"
                )
            self.layout, self.dtype, shape = "flat", dtype, (*shape[:2], shape[2] - METADATA)
        elif not {"metadata", "descriptor"} <= set(fields):
            raise UserError(f"{self.path}: `features` has fields {sorted(fields)}, expected metadata and descriptor")
        else:
            metadata, descriptor = ((*shape, *fields[name][0].shape) for name in ("metadata", "descriptor"))
            if len(descriptor) != 3 or metadata != (*descriptor[:2], METADATA):
                raise UserError(f"{self.path}: fields of shape {descriptor}, expected [images, descriptors, D]")
            self.layout, self.dtype, shape = "structured", fields["descriptor"][0].base, descriptor
        self.packed = self.dtype == np.uint8
        if self.dtype.kind != "f" and not self.packed:
            raise UserError(f"{self.path}: descriptors are {self.dtype}; expected floats, or bits packed in uint8")
        if 0 in shape:
            raise UserError(f"{self.path}: holds no descriptors: `features` has the shape {self._dataset.shape}")
        if shape[0] >= 2**31:
            raise UserError(
                f"{self.path}: claims {shape[0]:,} images; a list holds row numbers in 32 bits: copy it again"
            )
        if (shape[1] * (shape[2] + METADATA)) * self.dtype.itemsize > MOST_BYTES:
            raise UserError(
                f"{self.path}: {shape[1]} descriptors of {shape[2]} values per image take more than 1 GiB each"
            )
        self._images, self.rows, self.width = shape[0], shape[1], shape[2] * (8 if self.packed else 1)

    def __len__(self) -> int:
        return self._images

    def __getitem__(self, row: int) -> ImageRecord:
        row = int(row)
        if not 0 <= row < len(self):
            raise IndexError(f"{self.path}: image {row} of {len(self)}")
        metadata, features = self._read_clean(row, self._kept)
        columns = {} if self.layout == "plain" else {"xy": [X, Y], "scale": SCALE, "weight": WEIGHT}
        geometry = {name: metadata[..., column] for name, column in columns.items()}
        descriptors = DescriptorSet(features, metadata[..., MASK] == 0, **geometry)
        name, labels = (str(row), None) if self._list is None else (self._list.ids[row], self._list.labels)
        return ImageRecord(name, -1 if labels is None else int(labels[row]), descriptors)

    def read(self, rows: np.ndarray, count: int) -> DescriptorSet:
        """As `DescriptorReader`; rows that lie close together are read in one go."""
        count = min(count, self._kept)
        row_bytes = count * self.width * self.dtype.itemsize
        breaks = np.flatnonzero(np.diff(rows) > 1 + GAP_BYTES // row_bytes) + 1
        pieces = []
        for run in np.split(rows, breaks):
            metadata, features = self._read_clean(slice(run[0], run[-1] + 1), count)
            chosen = run - run[0]
            piece = features[chosen], metadata[chosen, :, MASK] == 0, metadata[chosen][..., [X, Y]]
            pieces.append(piece[:2] if self.layout == "plain" else piece)
        return DescriptorSet(*map(np.concatenate, zip(*pieces)))

    def read_raw(self, rows: int | slice, count: int | None = None) -> tuple[np.ndarray, np.ndarray]:
        """The first `count` (None: all) descriptors of one image [k, ·] or of a range of images [n, k, ·] as stored.

        The rest of a row is not read where the file is stored in smaller chunks.

        Returns:
          metadata float32 [..., k, 5] with the mask as it is (1 is padding), zeros but for the mask where the file has none,
          and features in the file's dtype.

        Raises UserError: the file is damaged there.
        """
        count = self.rows if count is None else min(count, self.rows)
        try:
            # HDF5 is not safe in threads of its own accord, and h5py's lock covers single calls only.
            with self._lock:
                values = self._dataset[rows, :count] if self._dataset.ndim > 1 else self._dataset[rows]
        except Exception as error:  # a damaged file can fail in any part of HDF5
            raise UserError(f"{self.path}: images {rows} cannot be read ({error}): copy or download it again") from None
        if self.layout == "structured":
            metadata, features = values["metadata"][..., :count, :], values["descriptor"][..., :count, :]
        elif self.layout == "flat":
            metadata, features = values[..., :METADATA], values[..., METADATA:]
        else:
            metadata, features = np.zeros((*values.shape[:-1], METADATA), np.float32), values
            metadata[..., MASK] = ~values.any(axis=-1)
        return np.asarray(metadata, np.float32), features

    def _read_clean(self, rows: int | slice, count: int) -> tuple[np.ndarray, np.ndarray]:
        """As `read_raw`, with zeros for NaN and infinity in padding rows: 0 times NaN would still be NaN.

        Raises UserError where the mask is neither real nor padding: of NaN, or of a file that begins with other columns.
        """
        metadata, features = self.read_raw(rows, count)
        padding = metadata[..., MASK] != 0
        if (metadata[..., MASK][padding] != 1).any():
            expected = f"the mask (value {MASK} of {METADATA} before the descriptor) is not 0 or 1"
            raise UserError(f"{self.path}: images {rows}: {expected}: copy or extract it again")
        if not self.packed and not np.isfinite(features[padding]).all():
            features = np.where(padding[..., None], 0, features)
        return metadata, features

    def fingerprint(self) -> str:
        """A hash of where the files lie, their sizes, when they were changed, and samples of them."""
        return fingerprint_of(self.files)

    def content(self) -> str:
        """A hash of the files and of the list that is the same wherever they lie; see `files.content_of`."""
        listed = self.arguments["images"]
        return content_of([*self.files, *([] if listed is None else [listed])])

    def ids(self) -> list[str]:
        """The id of every image."""
        return list(map(str, range(len(self)))) if self._list is None else self._list.ids

    def labels(self) -> np.ndarray:
        """int64 [N], the label of every image; raises UserError where the list has none."""
        if self._list is None or self._list.labels is None:
            raise UserError(f"{self.arguments['images'] or self.path}: no labels; give the list of the training images")
        return self._list.labels

    def __getstate__(self) -> dict[str, Any]:
        return self.arguments

    def __setstate__(self, arguments: dict[str, Any]) -> None:
        self.__init__(**arguments)
