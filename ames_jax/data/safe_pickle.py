"""Reads pickles and torch files that hold nothing but plain containers, NumPy arrays and torch tensors; runs no code.

torch is not needed: its tensors become NumPy arrays. Large arrays are mapped from the file, so that a few columns of an
18 GB neighbour list cost no more memory than themselves.
"""

from __future__ import annotations

import collections
import dataclasses
import math
import mmap
import pickle
import struct
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import ml_dtypes
import numpy as np

from ames_jax.data.pickled_arrays import (
    NoArray,
    array_state,
    byte_array,
    dtype_state,
    encode,
    plain_dict,
    plain_dtype,
    reconstruct,
    scalar,
)
from ames_jax.runtime.checksums import READ_ON_OPENING, check, note_unchecked
from ames_jax.runtime.errors import UserError

# Bytes of a pickle from this size on stay in the file.
MAPPED = 2**20
DEEPEST = 1000
STORAGES = {
    "FloatStorage": np.float32,
    "DoubleStorage": np.float64,
    "HalfStorage": np.float16,
    "BFloat16Storage": ml_dtypes.bfloat16,
    "LongStorage": np.int64,
    "IntStorage": np.int32,
    "ShortStorage": np.int16,
    "CharStorage": np.int8,
    "ByteStorage": np.uint8,
    "BoolStorage": np.bool_,
}


def read_pickle(path: str | Path) -> Any:
    """Reads a pickle, or a file of `torch.save` in its old or its new (zip) format.

    Tensors and arrays come as NumPy arrays; large ones are memory maps and read-only.

    Raises UserError: the file is missing or damaged, or asks for anything else, which is named and not touched.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path} is missing")
    if not path.stat().st_size:
        raise UserError(f"{path} is empty: copy or download it again")
    check(path)
    with path.open("rb") as file:
        data = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
    try:
        if data[:4] == b"PK\x03\x04":
            return _read_zip(path, data)  # which has checksums of its own
        value = _Unpickler(_View(data)).load()
        value = _read_legacy(data) if type(value) is int and value == TORCH_MAGIC else value
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    except Exception as error:  # a damaged pickle can fail in any of its operations
        raise UserError(
            f"{path}: cannot be read as a pickle ({type(error).__name__}: {error}): damaged or cut short? Copy it again"
        ) from error
    note_unchecked(path)
    return value


class _View:
    """A file over a memory map; `take` gives bytes without copying them."""

    def __init__(self, data: memoryview) -> None:
        self.data, self.position = data, 0

    def take(self, count: int) -> memoryview:
        start, self.position = self.position, self.position + count
        if self.position > len(self.data):
            raise EOFError(f"{self.position - len(self.data)} bytes are missing at the end")
        return self.data[start : self.position]

    def read(self, count: int) -> bytes:
        return bytes(self.take(min(count, len(self.data) - self.position)))

    def readline(self) -> bytes:
        end = self.position
        while end < len(self.data) and self.data[end] != ord("\n"):
            end += 1
        return self.read(end + 1 - self.position)


@dataclasses.dataclass
class _Storage:
    """The flat memory behind tensors; `data` is None while its place in the file is not known yet."""

    dtype: Any
    count: int
    data: np.ndarray | None


class _Unpickler(pickle._Unpickler):
    """Python's own unpickler with every door closed but those that plain data needs."""

    dispatch: ClassVar = dict(pickle._Unpickler.dispatch)

    def __init__(self, file: _View, storages: Callable[[Any], _Storage] | None = None) -> None:
        super().__init__(file, encoding="latin1")  # of Python 2's texts, NumPy's bytes among them
        self._view, self._storages = file, storages
        self._depth: dict[int, int] = {}  # of tuples by their identity: hashing one recurses without a bound

    def find_class(self, module: str, name: str) -> Any:
        if module == "torch" and name in STORAGES:
            return np.dtype(STORAGES[name])
        try:
            return ALLOWED[module, name]
        except KeyError:
            raise UserError(
                f"refused: it asks for {module}.{name}, and only plain containers, NumPy arrays and torch tensors are "
                "loaded; nothing was run. Get the file from its authors again"
            ) from None

    def persistent_load(self, pid: Any) -> _Storage:
        if self._storages is None or not isinstance(pid, tuple) or pid[0] != "storage":
            raise UserError("refused: it refers to something outside of the file")
        storage = self._storages(pid)
        if not isinstance(storage.dtype, np.dtype) or type(storage.count) is not int or storage.count < 0:
            raise UserError("refused: a storage without a type or a size")
        return storage

    def load_build(self) -> None:
        state = self.stack.pop()
        target = self.stack[-1]
        if isinstance(target, np.dtype):
            target.__setstate__(dtype_state(target, state))
        elif isinstance(target, np.ndarray):
            target.__setstate__(array_state(state))
        elif not isinstance(target, collections.OrderedDict):  # a state dict's `_metadata` is of no use here
            raise UserError(f"refused: it sets attributes of a {type(target).__name__}")

    def load_large(self, size: str, kind: type = bytes) -> None:
        (count,) = struct.unpack(size, self.read(struct.calcsize(size)))
        framed = self._unframer.current_frame is not None
        self.append(self._view.take(count) if count >= MAPPED and not framed else kind(self.read(count)))

    def load_mark(self) -> None:
        if len(self.metastack) > DEEPEST:
            raise UserError(f"refused: its containers are nested more than {DEEPEST} deep")
        super().load_mark()

    def load_tuple_with(self, load: Callable[[Any], None]) -> None:
        load(self)
        inside = self.stack[-1]
        depth = 1 + max((self._depth.get(id(part), 0) for part in inside if type(part) is tuple), default=0)
        if depth > DEEPEST:
            raise UserError(f"refused: its containers are nested more than {DEEPEST} deep")
        self._depth[id(inside)] = depth

    dispatch[pickle.BUILD[0]] = load_build
    dispatch[pickle.MARK[0]] = load_mark
    for _code in (pickle.TUPLE, pickle.TUPLE1, pickle.TUPLE2, pickle.TUPLE3):
        dispatch[_code[0]] = lambda self, load=dispatch[_code[0]]: self.load_tuple_with(load)
    dispatch[pickle.BINBYTES[0]] = lambda self: self.load_large("<I")
    dispatch[pickle.BINBYTES8[0]] = lambda self: self.load_large("<Q")
    dispatch[pickle.BYTEARRAY8[0]] = lambda self: self.load_large("<Q", bytearray)


TORCH_MAGIC = 0x1950A86A20F9469CFC6C  # the first of the pickles of the old format


def _read_legacy(data: memoryview) -> Any:
    """The old format: five pickles, then the storages one after the other, each behind its count."""
    places: dict[str, np.ndarray | None] = {}
    kinds: dict[str, _Storage] = {}

    def storage(pid: tuple) -> _Storage:
        _, dtype, key, _, count, *view = pid
        if any(part is not None for part in view):
            raise UserError("tensors that share a part of a storage are not supported; save clones of them")
        kinds[key] = _Storage(dtype, count, places.get(key))
        return kinds[key]

    file = _View(data)
    for _ in range(3):
        _Unpickler(file).load()
    start = file.position
    # Tensors are built before their memory's place is known, so the pickle is read a second time once it is.
    _Unpickler(file, storage).load()
    for key in _Unpickler(file).load():
        (count,) = struct.unpack("<q", file.take(8))
        if count != kinds[key].count:
            raise UserError(f"a storage of {kinds[key].count} values holds {count}")
        places[key] = np.frombuffer(file.take(count * kinds[key].dtype.itemsize), kinds[key].dtype)
    file.position = start
    return _Unpickler(file, storage).load()


def _read_zip(path: Path, data: memoryview) -> Any:
    """The new format: a zip file of `data.pkl` and a file for every storage, none of them compressed."""
    with zipfile.ZipFile(path) as archive:
        members = {entry.filename.partition("/")[2]: entry for entry in archive.infolist()}
    if "data.pkl" not in members:
        raise UserError("a zip file, but not one of torch.save (no data.pkl)")

    def content(name: str) -> memoryview:
        entry = members[name]
        if entry.compress_type != zipfile.ZIP_STORED:
            raise UserError(f"{name} is compressed, which torch.save never does")
        name_length, extra_length = struct.unpack("<HH", data[entry.header_offset + 26 : entry.header_offset + 30])
        start = entry.header_offset + 30 + name_length + extra_length
        found = data[start : start + entry.file_size]
        # Larger ones, lists of gigabytes, stay mapped and are not read whole.
        if entry.file_size <= READ_ON_OPENING and zlib.crc32(found) != entry.CRC:
            raise UserError(f"{name} in it is damaged: its checksum is wrong; copy or download the file again")
        return found

    big = "byteorder" in members and bytes(content("byteorder")) == b"big"

    def storage(pid: tuple) -> _Storage:
        _, dtype, key, _, count = pid
        if not isinstance(dtype, np.dtype):
            raise UserError("refused: a storage without a type")
        stored = dtype.newbyteorder(">") if big else dtype
        return _Storage(dtype, count, np.frombuffer(content(f"data/{key}"), stored, count))

    return _Unpickler(_View(content("data.pkl")), storage).load()


def _rebuild_tensor(storage: _Storage, offset: int, size: tuple, stride: tuple, *_rest: Any) -> np.ndarray | None:
    if storage.data is None:
        return None
    if any(length < 0 or step < 0 for length, step in zip(size, stride)) or offset < 0 or len(size) != len(stride):
        raise UserError("a tensor with negative sizes or strides")
    if math.prod(size) > len(storage.data):  # a repeated value could fill any memory
        raise UserError(f"a tensor of {math.prod(size)} values in a storage of {len(storage.data)}")
    last = offset + sum((length - 1) * step for length, step in zip(size, stride))
    if 0 not in size and last >= len(storage.data):
        raise UserError(f"a tensor reaches to value {last} of a storage of {len(storage.data)}")
    itemsize = storage.data.itemsize
    return np.lib.stride_tricks.as_strided(
        storage.data[offset:], tuple(size), tuple(step * itemsize for step in stride), writeable=False
    )


def _rebuild_parameter(data: np.ndarray, *_rest: Any) -> np.ndarray:
    return data


def _load_from_bytes(data: bytes | memoryview) -> Any:
    return _read_legacy(memoryview(data))


ALLOWED: dict[tuple[str, str], Any] = {
    ("torch._utils", "_rebuild_tensor_v2"): _rebuild_tensor,
    ("torch._utils", "_rebuild_tensor"): _rebuild_tensor,
    ("torch._utils", "_rebuild_parameter"): _rebuild_parameter,
    ("torch.storage", "_load_from_bytes"): _load_from_bytes,
    ("collections", "OrderedDict"): collections.OrderedDict,
    ("_codecs", "encode"): encode,
    ("collections", "Counter"): plain_dict,
    ("collections", "defaultdict"): plain_dict,
    ("numpy", "ndarray"): NoArray,
    ("numpy", "dtype"): plain_dtype,
    **{(module, name): kind for module in ("builtins", "__builtin__") for name, kind in
       {"set": set, "frozenset": frozenset, "list": list, "dict": dict, "bytearray": byte_array}.items()},
    **{(f"numpy.{core}.multiarray", name): function
       for core in ("core", "_core") for name, function in {"_reconstruct": reconstruct, "scalar": scalar}.items()},
    **{(f"numpy.{core}.numeric", "_frombuffer"): np._core.numeric._frombuffer for core in ("core", "_core")},
}  # fmt: skip
