"""Reading and writing PyTorch checkpoints without PyTorch: a zip file of one pickle and the raw memory of the tensors."""

from __future__ import annotations

import collections
import io
import json
import pickle
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from ames_jax.data.safe_pickle import read_pickle
from ames_jax.runtime.errors import UserError
from ames_jax.runtime.files import write_file

KEY = "state"  # where the release keeps the weights, beside `optim` and `epoch`
WRAPPERS = ("module.", "_orig_mod.")  # what DataParallel and torch.compile put before every name
CONFIG = "config"  # where we keep, as JSON, what weights do not show; the release does not look there


def read_checkpoint(path: str | Path) -> dict[str, np.ndarray]:
    """The weights of a release `.pt` file: name → array. Runs none of the file's code.

    Raises UserError, naming the file, where it is missing, damaged, or holds no weights under `state`.
    """
    content = read_pickle(path)
    state = content.get(KEY) if isinstance(content, Mapping) else None
    if not isinstance(state, Mapping) or not all(isinstance(value, np.ndarray) for value in state.values()):
        raise UserError(f"{path}: expected a checkpoint with the weights under {KEY!r}; it is of another kind")
    for prefix in WRAPPERS * 2:  # in any order
        if state and all(str(name).startswith(prefix) for name in state):
            state = {str(name).removeprefix(prefix): value for name, value in state.items()}
    return {str(name): np.asarray(value) for name, value in state.items()}


def read_config(path: str | Path) -> dict[str, Any] | None:
    """The configuration that `write_checkpoint` put beside the weights; None in a file of the release."""
    content = read_pickle(path)
    if not isinstance(content, Mapping) or CONFIG not in content:
        return None
    try:
        config = json.loads(content[CONFIG])
    except (TypeError, ValueError, RecursionError) as error:
        raise UserError(f"{path}: its {CONFIG!r} is no JSON ({error}): copy the file again") from error
    if not isinstance(config, dict):
        raise UserError(f"{path}: expected a JSON object under {CONFIG!r}, found {type(config).__name__}")
    return config


def write_checkpoint(
    path: str | Path, weights: Mapping[str, np.ndarray], config: Mapping[str, Any] | None = None
) -> None:
    """Writes float32 weights as the release does (`state`), for `torch.load`; `config`: plain values, for `read_config`.

    Raises UserError where the file cannot be written.
    """
    arrays = [np.asarray(array, np.float32) for array in weights.values()]
    state = collections.OrderedDict(
        (name, _Tensor(_Storage(str(number), array.size), array.shape))
        for number, (name, array) in enumerate(zip(weights, arrays, strict=True))
    )
    pickled = io.BytesIO()
    _Pickler(pickled, protocol=2).dump(
        {KEY: state} if config is None else {KEY: state, CONFIG: json.dumps(dict(config))}
    )
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", zipfile.ZIP_STORED) as archive:
        archive.writestr("archive/data.pkl", pickled.getvalue())
        archive.writestr("archive/byteorder", "little")
        for number, array in enumerate(arrays):
            archive.writestr(f"archive/data/{number}", array.astype("<f4").tobytes())
        archive.writestr("archive/version", "3\n")
    try:
        write_file(Path(path), content.getvalue())
    except OSError as error:
        raise UserError(f"{path} cannot be written: {error.strerror}") from error


@dataclass(frozen=True)
class _Global:
    """A name that the reader looks up; here it is only written, so PyTorch need not be installed."""

    module: str
    name: str

    def __call__(self) -> None:
        """Never called: the pickler insists that what rebuilds an object is callable."""


@dataclass(frozen=True)
class _Storage:
    key: str
    count: int


@dataclass(frozen=True)
class _Tensor:
    storage: _Storage
    shape: tuple[int, ...]

    def __reduce__(self) -> tuple:
        strides = np.cumprod([1, *self.shape[:0:-1]])[::-1]
        stride = tuple(int(step) for step in strides[-len(self.shape) :]) if self.shape else ()
        return REBUILD, (self.storage, 0, self.shape, stride, False, collections.OrderedDict())


REBUILD = _Global("torch._utils", "_rebuild_tensor_v2")


class _Pickler(pickle._Pickler):
    """Writes `_Global` by its name and `_Storage` as a reference to a file of the archive."""

    dispatch: ClassVar = dict(pickle._Pickler.dispatch)

    def persistent_id(self, obj: Any) -> Any:
        if isinstance(obj, _Storage):
            return "storage", _Global("torch", "FloatStorage"), obj.key, "cpu", obj.count
        return None

    def _save_global_name(self, obj: _Global) -> None:
        self.write(pickle.GLOBAL + f"{obj.module}\n{obj.name}\n".encode())

    dispatch[_Global] = _save_global_name
