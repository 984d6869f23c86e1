"""Readers give the same descriptors wherever these lie, and tell when these are others."""

from __future__ import annotations

import os

import h5py
import numpy as np
import pytest
import synthetic

from ames_jax.data.readers import ConcatenatedReader, MemoryReader, PartReader
from ames_jax.data.release_hdf5 import ReleaseSource
from ames_jax.data.shards import open_split
from ames_jax.descriptors import DescriptorSet

IMAGES, STORED, WIDTH = 6, 4, 8


def write_hdf5(path, seed=0):
    rows = np.zeros((IMAGES, STORED, 5 + WIDTH), np.float16)
    rows[..., 5:] = np.random.default_rng(seed).normal(size=(IMAGES, STORED, WIDTH))
    with h5py.File(path, "w") as file:
        file["features"] = rows
    return path


def test_memory_and_parts_read_as_the_file_does(tmp_path):
    file = ReleaseSource(write_hdf5(tmp_path / "a.hdf5"))
    memory = MemoryReader.load(file, 3)
    rows = np.array([1, 4, 5])
    np.testing.assert_array_equal(memory.read(rows, 2).features, file.read(rows, 2).features)
    assert memory.read(rows, 9).count == 3
    part = PartReader(file, rows)
    assert len(part) == 3
    np.testing.assert_array_equal(part.read(np.array([0, 2]), 2).features, file.read(rows[[0, 2]], 2).features)


def test_padding_stays_marked(tmp_path):
    valid = np.arange(STORED) < np.array([[2], [4]])
    padded = MemoryReader(DescriptorSet(np.ones((2, STORED, WIDTH)), valid))
    np.testing.assert_array_equal(MemoryReader.load(padded, 3).read(np.array([0]), 3).valid, valid[:1, :3])
    assert MemoryReader.load(padded, 2).read(np.array([0]), 2).valid is None


@pytest.mark.parametrize("kind", ["file", "virtual", "joined", "part"])
def test_a_changed_file_has_another_fingerprint(tmp_path, kind):
    path = write_hdf5(tmp_path / "a.hdf5")
    whole = tmp_path / "virtual.hdf5"
    with h5py.File(whole, "w") as file:
        layout = h5py.VirtualLayout((IMAGES, STORED, 5 + WIDTH), np.float16)
        layout[:] = h5py.VirtualSource("a.hdf5", "features", (IMAGES, STORED, 5 + WIDTH))
        file.create_virtual_dataset("features", layout)
    open_again = {
        "file": lambda: ReleaseSource(path),
        "virtual": lambda: ReleaseSource(whole),
        "joined": lambda: ConcatenatedReader((MemoryReader(DescriptorSet(np.ones((1, 4, 8)))), ReleaseSource(path))),
        "part": lambda: PartReader(ReleaseSource(path), np.arange(2)),
    }[kind]
    before = open_again().fingerprint()
    assert open_again().fingerprint() == before
    write_hdf5(path, seed=1)
    os.utime(path, ns=(0, 0))  # as a slow disk clock might have it: another time than before, same size
    assert open_again().fingerprint() != before


def test_fingerprints_of_shards_and_memory(tmp_path):
    root = synthetic.write(tmp_path / "set")
    names = ("test_query", "test_gallery")
    assert len({open_split(root, name).fingerprint() for name in names}) == 2
    assert open_split(root, "test_query").ids()[0] == "test_query/0"
    features = np.ones((2, 3, 4))
    other = features.copy()
    other[1, 2, 3] = 2
    assert MemoryReader(DescriptorSet(features)).fingerprint() != MemoryReader(DescriptorSet(other)).fingerprint()
