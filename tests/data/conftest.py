"""Files as the PyTorch release writes them, made from random numbers and without torch."""

import io
import pickle
import struct
import sys
import types

import numpy as np
import pytest

ROWS, WIDTH = 6, 8


class _Storage:
    """Stands for torch's storage while a pickle is written."""

    def __init__(self, data):
        self.data = data

    def __reduce__(self):
        return sys.modules["torch.storage"]._load_from_bytes, (self._legacy(),)

    def _legacy(self):
        file = io.BytesIO()
        for header in (0x1950A86A20F9469CFC6C, 1001, {"protocol_version": 1001, "little_endian": True}):
            pickle.dump(header, file, protocol=2)

        class Pickler(pickle.Pickler):
            def persistent_id(_, value):
                if isinstance(value, _Storage):
                    return ("storage", sys.modules["torch"].FloatStorage, "7", "cpu", len(self.data), None)
                return None

        other = _Storage(self.data)
        Pickler(file, protocol=2).dump(other)
        pickle.dump(["7"], file, protocol=2)
        file.write(struct.pack("<q", len(self.data)) + self.data.astype("<f4").tobytes())
        return file.getvalue()


class _Tensor:
    def __init__(self, array):
        self.array = np.ascontiguousarray(array, np.float32)

    def __reduce__(self):
        stride = tuple(step // 4 for step in self.array.strides)
        arguments = (_Storage(self.array.ravel()), 0, self.array.shape, stride, False, {})
        return sys.modules["torch._utils"]._rebuild_tensor_v2, arguments


@pytest.fixture
def dump_tensor(monkeypatch):
    """`dump_tensor(path, array)` writes the pickle that torch writes for a float32 tensor."""
    modules = {name: types.ModuleType(name) for name in ("torch", "torch._utils", "torch.storage")}

    def named(module, name, value):
        value.__module__, value.__qualname__ = module, name
        setattr(modules[module], name, value)

    named("torch", "FloatStorage", type("FloatStorage", (), {}))
    named("torch._utils", "_rebuild_tensor_v2", lambda *_: None)
    named("torch.storage", "_load_from_bytes", lambda *_: None)

    def dump(path, array):
        with monkeypatch.context() as patch, path.open("wb") as file:
            for name, module in modules.items():
                patch.setitem(sys.modules, name, module)
            pickle.dump(_Tensor(array), file)

    return dump


@pytest.fixture
def release(tmp_path, dump_tensor):
    """Writes a small training set in the release's formats to `release.folder`."""
    return Release(tmp_path, dump_tensor)


class Release:
    """60 images of 4 labels; neighbours that share the label more often than chance."""

    def __init__(self, folder, dump_tensor, images=60):
        random = np.random.default_rng(0)
        self.folder, self.images, self._dump = folder, images, dump_tensor
        self.labels = random.integers(0, 4, images) * 1009 + 5
        self.features = random.normal(size=(images, ROWS, WIDTH)).astype(np.float16)
        self.metadata = random.random((images, ROWS, 5)).astype(np.float16)
        self.metadata[..., 4] = np.sort(self.metadata[..., 4], axis=1)[:, ::-1]
        self.metadata[..., 3] = np.arange(ROWS) >= ROWS - (np.arange(images) % 3)[:, None]
        self.features[self.metadata[..., 3] == 1] = 0
        means = random.normal(size=(4, 16))
        values = means[self.labels // 1009] + 0.7 * random.normal(size=(images, 16))
        self.globals = (values / np.linalg.norm(values, axis=1, keepdims=True)).astype(np.float32)

    @property
    def flat(self):
        """[N, K, 5 + D] float16."""
        return np.concatenate([self.metadata, self.features], axis=2)

    def hdf5(self, name="dinov2_local.hdf5", data=None, **options):
        """Writes `data` (the flat layout by default) as `features`."""
        import h5py

        with h5py.File(self.folder / name, "w") as file:
            file.create_dataset("features", data=self.flat if data is None else data, **options)
        return self.folder / name

    def structured(self, descriptor, name="dinov2_local.hdf5"):
        """The structured layout with these descriptors."""
        kind = np.dtype([("metadata", np.float32, (5,)), ("descriptor", descriptor.dtype, descriptor.shape[2:])])
        data = np.zeros(descriptor.shape[:2], kind)
        data["metadata"], data["descriptor"] = self.metadata, descriptor
        return self.hdf5(name, data)

    def virtual(self, parts=3, absolute=False):
        """The flat layout in parts `dinov2_xa?_local.hdf5`, and the file that maps them."""
        import h5py

        size = self.images // parts
        layout = h5py.VirtualLayout(self.flat.shape, np.float16)
        for part in range(parts):
            rows = slice(part * size, (part + 1) * size)
            path = self.hdf5(f"dinov2_xa{'abc'[part]}_local.hdf5", self.flat[rows])
            layout[rows] = h5py.VirtualSource(
                str(path) if absolute else path.name, "features", (size, *self.flat.shape[1:]), np.float16
            )
        with h5py.File(self.folder / "dinov2_local.hdf5", "w") as file:
            file.create_virtual_dataset("features", layout)
        return self.folder / "dinov2_local.hdf5"

    def list(self, order=None, name="train.txt"):
        """The text list, in another order where one is given."""
        order = range(self.images) if order is None else order
        lines = [f"train/{i}, a.jpg,{self.labels[i]},480,640\n" for i in order]
        (self.folder / name).write_text("".join(lines))
        return self.folder / name

    def lists(self, k=20, itself=False):
        """Similarities and indices of the k nearest, the image itself left out unless asked for."""
        similarities = self.globals @ self.globals.T
        np.fill_diagonal(similarities, 2 if itself else -2)
        indices = np.argsort(-similarities, axis=1)[:, :k]
        return np.take_along_axis(similarities, indices, axis=1), indices

    def neighbours(self, values=None, name="nn_dinov2.pkl"):
        """The neighbour pickle of these lists [2, N, k]."""
        self._dump(self.folder / name, np.stack(self.lists()) if values is None else values)
        return self.folder / name

    def pickle(self, name, value):
        """Any value, pickled."""
        with (self.folder / name).open("wb") as file:
            pickle.dump(value, file)
        return self.folder / name
