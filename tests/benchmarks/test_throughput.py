"""The throughput bench runs on files that it makes itself, and its rows are whole."""

import math

import numpy as np
import pytest

from ames_jax.benchmarks.throughput import SyntheticImages, make_files, measure
from ames_jax.data.shards import open_split


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bench")
    make_files(folder, images=60, descriptors=4, width=8)
    return folder


def test_all_storages_hold_the_same_images(folder):
    import h5py

    expected = SyntheticImages(60, 4, 8)[17].descriptors.features
    np.testing.assert_array_equal(open_split(folder / "float16", "train")[17].descriptors.features, expected)
    # half a step of int8, of values below 5
    np.testing.assert_allclose(open_split(folder / "int8", "train")[17].descriptors.features, expected, atol=0.025)
    with h5py.File(folder / "local.hdf5") as file:
        np.testing.assert_array_equal(file["features"][17, :, 5:], expected)


def test_every_reader_has_a_row(folder):
    rows = measure(folder, images=60, descriptors=4, width=8, batch=5, batches=3, step_seconds=0.001, torch_python=None)
    assert [row.reader.split(",")[0] for row in rows] == ["ArrayRecord float16", "ArrayRecord int8", "HDF5 float16"]
    for row in rows:
        assert row.images_per_second > 0
        assert math.isclose(row.megabytes_per_second, row.images_per_second * 4 * 8 * 2 / 1e6)
        assert 0 <= row.waiting <= 1


def test_without_torch_its_row_is_left_out(folder, tmp_path, capsys):
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\necho \"ModuleNotFoundError: No module named 'torch'\" >&2\nexit 1\n")
    python.chmod(0o755)
    settings = {"images": 60, "descriptors": 4, "width": 8, "batch": 5, "batches": 1, "step_seconds": 0.0}
    assert len(measure(folder, **settings, torch_python=str(python))) == 3
    assert "PyTorch loader left out: ModuleNotFoundError" in capsys.readouterr().err
