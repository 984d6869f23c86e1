"""One image as one record of a data set: what is in it, and how it becomes bytes and an image again."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from etils import epy

from ames_jax.descriptors import DescriptorSet
from ames_jax.runtime.errors import UserError
from ames_jax.runtime.files import read_json

with epy.lazy_imports():  # does not exist for Windows, where all but shards works
    import tensorflow_datasets as tfds
    from array_record.python import array_record_module
    from tensorflow_datasets import proto
    from tensorflow_datasets.core import example_serializer

LINK = ".source.json"  # of a split that is read in place: SPLIT.source.json
STORED = {"float16": np.float16, "int8": np.int8, "bits": np.uint8}
# Of shards.json: an entry of a split, and one of a shard.
SETTINGS = {"descriptors": int, "width": int, "dtype": str, "geometry": [str]}
FILES = {re.compile(".*"): {"records": int, "bytes": int, "sha256": str, "file_bytes": int}}
FINISHED = {re.compile(".*"): {"settings": SETTINGS, "files": FILES}}
GEOMETRY = {"xy": (2,), "scale": (), "weight": ()}


@dataclasses.dataclass(frozen=True)
class ImageRecord:
    """One image: its id (str), its label (int64, -1 where there is none) and its descriptors (NumPy, [N, D])."""

    id: str
    label: int
    descriptors: DescriptorSet


@dataclasses.dataclass(frozen=True)
class RecordFormat:
    """The form in which the records of a data set are stored.

    Attributes:
      descriptors: K, rows stored for every image; images with fewer are padded with zeros behind their last real row.
      width: D, values of a descriptor; for "bits" the number of bits.
      dtype: "float16"; "int8" (one float16 scale per descriptor, so that value = integer · scale); or "bits" (packed).
        int8 takes half the space. On the embedded landmarks (SIFT, 64 queries, 48 × 48 descriptors, top 50) it moved
        the teacher's logits by 0.012 and the binary student's by 0.09 on average, of a spread of 1.5, and mAP by 0.02
        and 0.2 percent points, upwards: no cost that can be told from noise.
      geometry: which of "xy", "scale", "weight" every record carries (float32).
    """

    descriptors: int
    width: int
    dtype: str = "float16"
    geometry: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.dtype not in STORED:
            raise UserError(f"storage dtype {self.dtype!r} is not one of {', '.join(STORED)}")
        if self.dtype == "bits" and self.width % 8:
            raise UserError(f"bits are stored in bytes: {self.width} bits per descriptor is not a multiple of 8")

    @property
    def row_shape(self) -> tuple[int, int]:
        """Shape of the stored features: [K, D], or [K, D / 8] for bits."""
        return self.descriptors, self.width // 8 if self.dtype == "bits" else self.width

    @property
    def record_bytes(self) -> int:
        """About the size of a record."""
        rows, columns = self.row_shape
        return rows * (columns * np.dtype(STORED[self.dtype]).itemsize + 16)

    @functools.cached_property
    def features(self) -> tfds.features.FeaturesDict:
        """The TFDS features of a record; arrays are stored as plain bytes."""

        def array(shape: tuple[int, ...], dtype: Any) -> tfds.features.Tensor:
            return tfds.features.Tensor(shape=shape, dtype=dtype, encoding=tfds.features.Encoding.BYTES)

        fields = {
            "id": tfds.features.Text(),
            "label": tfds.features.Scalar(np.int64),
            "count": tfds.features.Scalar(np.int32),
            "features": array(self.row_shape, STORED[self.dtype]),
        }
        if self.dtype == "int8":
            fields["feature_scale"] = array((self.descriptors,), np.float16)
        for name in self.geometry:
            fields[name] = array((self.descriptors, *GEOMETRY[name]), np.float32)
        return tfds.features.FeaturesDict(fields)

    @functools.cached_property
    def _serializer(self) -> Any:
        return example_serializer.ExampleSerializer(self.features.get_serialized_info())

    @classmethod
    def of_features(cls, features: Mapping[str, Any]) -> RecordFormat:
        """The format behind the features of a data set on disk; raises UserError where they are not ours."""
        try:
            stored = features["features"]
            names = {np.dtype(dtype): name for name, dtype in STORED.items()}
            dtype = names[np.dtype(stored.np_dtype)]
            count, width = stored.shape
        except (KeyError, ValueError) as error:
            raise UserError(f"the records hold {sorted(features)}, not an image's descriptors ({error})") from error
        geometry = tuple(name for name in GEOMETRY if name in features)
        return cls(count, width * 8 if dtype == "bits" else width, dtype, geometry)

    def encode(self, record: ImageRecord) -> bytes:
        """The bytes of a record: real descriptors first and in their order, cut and padded to K.

        Raises UserError: naming the image, where its descriptors do not fit the format or hold NaN or infinity.
        """
        real = real_rows(record.descriptors).truncate(self.descriptors)
        self._check(record.id, real)
        padded = real.pad(self.descriptors)
        values = {"id": record.id, "label": int(record.label), "count": real.count}
        if self.dtype == "int8":
            values["features"], values["feature_scale"] = quantize(padded.features)
            _check_finite(values["feature_scale"][:, None], record.id)
        else:
            with np.errstate(over="ignore"):
                values["features"] = np.ascontiguousarray(padded.features, STORED[self.dtype])
            _check_finite(values["features"], record.id)
        for name in self.geometry:
            values[name] = np.ascontiguousarray(getattr(padded, name), np.float32)
        # A proto's map has no order of its own; sorted, the same image gives the same bytes in every process.
        return self._serializer.get_tf_example(self.features.encode_example(values)).SerializeToString(
            deterministic=True
        )

    def decode(self, data: bytes) -> ImageRecord:
        """The image in a record's bytes: features [K, D] as stored (int8 becomes float32) and `valid` [K]."""
        # TFDS's own decoding gives the same and takes several times as long for small records.
        stored = proto.tf_example_pb2.Example.FromString(data).features.feature

        def array(name: str, dtype: Any, shape: tuple[int, ...]) -> np.ndarray:
            return np.frombuffer(stored[name].bytes_list.value[0], dtype).reshape(shape)

        features = array("features", STORED[self.dtype], self.row_shape)
        if self.dtype == "int8":
            features = features * array("feature_scale", np.float16, (-1, 1)).astype(np.float32)
        valid = np.arange(self.descriptors) < stored["count"].int64_list.value[0]
        geometry = {name: array(name, np.float32, (self.descriptors, *GEOMETRY[name])) for name in self.geometry}
        return ImageRecord(
            id=stored["id"].bytes_list.value[0].decode(),
            label=stored["label"].int64_list.value[0],
            descriptors=DescriptorSet(features, valid, **geometry),
        )

    def _check(self, name: str, real: DescriptorSet) -> None:
        features = np.asarray(real.features)
        if features.ndim != 2 or features.shape[1] != self.row_shape[1]:
            raise UserError(f"image {name}: descriptors of shape {features.shape}, expected [N, {self.row_shape[1]}]")
        if (features.dtype == np.uint8) != (self.dtype == "bits"):
            raise UserError(f"image {name}: descriptors are {features.dtype}, which cannot be stored as {self.dtype}")
        for missing in (field for field in self.geometry if getattr(real, field) is None):
            raise UserError(f"image {name}: has no {missing}, which other images of the data set have")


def _check_finite(stored: np.ndarray, name: str) -> None:
    if stored.dtype != np.float16:
        return
    # All exponent bits set: NaN or infinity. Arithmetic on float16 is many times slower than on its bits.
    bad = (stored.view(np.uint16) & 0x7C00) == 0x7C00
    if bad.any():
        row = int(np.argmax(bad.any(axis=1)))
        raise UserError(f"image {name}: descriptor {row} holds NaN, infinity or a value beyond float16")


def real_rows(descriptors: DescriptorSet) -> DescriptorSet:
    """The descriptors without padding rows, in their order; `valid` is None."""
    bare = dataclasses.replace(descriptors, valid=None)
    valid = descriptors.valid
    if valid is None or np.all(valid):
        return bare
    count = int(np.count_nonzero(valid))
    # Padding is nearly always at the end, where a slice costs no copy.
    return bare.truncate(count) if np.all(valid[:count]) else bare[np.flatnonzero(valid)]


def check_split(split: str) -> None:
    """Raises UserError for a name that file names and TFDS could not hold; to TFDS, "all" is every split together."""
    if not re.fullmatch(r"(?!all$)[A-Za-z]\w*", split, re.ASCII):
        raise UserError(
            f"split {split!r}: expected letters, digits and underscores, a letter first, and not 'all', e.g. test_query"
        )


def check_new_split(root: str | Path, split: str) -> None:
    """`check_split`; raises UserError, too, where the split is read in place: shards beside that would not be read."""
    check_split(split)
    if (link := Path(root) / f"{split}{LINK}").exists():
        raise UserError(f"{root}: split {split!r} is read in place; take another name, or delete {link.name}")


def check_name(name: str) -> None:
    """Raises UserError for a name of a data set that file names and TFDS could not hold."""
    if not re.fullmatch(r"[a-z][a-z0-9_]*", name):
        raise UserError(
            f"name {name!r} of a data set: expected lower-case letters, digits and underscores, a letter first"
        )


def read_finished(root: Path) -> dict[str, Any]:
    """The content of shards.json, by split; {} where there is none. Raises UserError, naming the key, where it is damaged."""
    return read_json(root / "shards.json", keys=FINISHED, missing={})


def read_shard(path: Path, records: int, sha256: str, record_format: RecordFormat) -> tuple[list[str], list[int]]:
    """Ids and labels of all records of a shard.

    Raises:
      UserError: their number, or the checksum of their bytes, is another; or they cannot be read.
    """
    again = "delete it and write the data set again"
    digest, ids, labels = hashlib.sha256(), [], []
    try:
        reader = array_record_module.ArrayRecordReader(str(path))
        found = reader.num_records()
        for row in range(found):
            data = reader.read([row])[0]
            digest.update(data)
            image = record_format.decode(data)
            ids.append(image.id)
            labels.append(image.label)
        reader.close()
    except Exception as error:  # array_record raises RuntimeError and ValueError, and a bad record fails in many ways
        raise UserError(f"{path}: cannot be read ({str(error).splitlines()[0]}); {again}") from error
    if found != records:
        raise UserError(f"{path}: {found} records, expected {records}; {again}")
    if digest.hexdigest() != sha256:
        raise UserError(f"{path}: its records are not those that were written; {again}")
    return ids, labels


def quantize(features: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """float [N, D] → int8 [N, D] and one float16 scale per descriptor [N]; features ≈ int8 · scale[:, None]."""
    features = np.asarray(features, np.float32)
    # What cannot be stored (NaN, infinity) shows in the scale, which the caller checks.
    with np.errstate(over="ignore", invalid="ignore"):
        scale = (np.abs(features).max(axis=1, initial=0.0) / 127).astype(np.float16)
        # float16 rounds the scale, down as well as up, so the quotient can pass 127.
        divisor = np.where(scale > 0, scale, 1).astype(np.float32)[:, None]
        return np.clip(np.rint(features / divisor), -127, 127).astype(np.int8), scale
