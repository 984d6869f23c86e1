"""TFDS and ArrayRecord do not exist for Windows: everything but shards works without them, and shards say what to install."""

import subprocess
import sys

import numpy as np
from conftest import GOLDEN

from ames_jax.data.release_hdf5 import ReleaseSource
from ames_jax.data.store import build_store

PROGRAM = """
import sys
for name in ("tensorflow_datasets", "array_record", "fcntl", "resource", "grp", "pwd", "apache_beam", "torch", "faiss"):
    sys.modules[name] = None
import numpy as np
from ames_jax.data.checks.validation import validate
from ames_jax.data.neighbours import open_neighbours, search_to_folder
from ames_jax.data.release_hdf5 import ReleaseSource
from ames_jax.data.shards import link_split, open_split, write_shards
from ames_jax.data.store import open_store
from ames_jax.runtime.errors import UserError

features, listed, store, golden, out = sys.argv[1:]
source = ReleaseSource(features, listed)
link_split(out, "train", source)
rows = np.arange(3)
assert (open_split(out, "train").read(rows, 4).features == source.read(rows, 4).features).all()
assert open_store(store).read(rows, 4).is_packed
assert not validate([features, listed]).problems
values = np.eye(9, dtype=np.float32)
assert search_to_folder(f"{out}/lists", values, values, 3) and len(open_neighbours(f"{out}/lists")) == 9
for work in (lambda: open_split(golden, "train"), lambda: write_shards(out, "a", {"b": [source[0]]}, descriptors=6, width=8)):
    try:
        work()
    except UserError as error:
        assert "pip install tensorflow-datasets array-record" in str(error), error
    else:
        raise AssertionError("no error")
"""


class Signs:
    """Stands for the packer of a model."""

    bits, fingerprint = 8, "signs"

    def pack(self, descriptors, name):
        return type(descriptors)(np.packbits(descriptors.features > 0, axis=-1), descriptors.valid)


def test_everything_but_shards_works_without_them(release, tmp_path):
    features, listed = release.hdf5(), release.list()
    source = ReleaseSource(features)
    build_store(tmp_path / "a.store", source, source.ids(), Signs(), 4, model="m", source="s")
    arguments = [features, listed, tmp_path / "a.store", GOLDEN / "data_set", tmp_path / "out"]
    done = subprocess.run([sys.executable, "-c", PROGRAM, *map(str, arguments)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
