"""Pickles and torch files are read without torch and without running anything in them."""

import collections
import functools
import os
import pickle
import zipfile
from pathlib import Path

import numpy as np
import pytest

from ames_jax.data.safe_pickle import read_pickle
from ames_jax.runtime.errors import UserError

GOLDEN = Path(__file__).parents[1] / "golden"


@pytest.mark.parametrize("name", ["torch_tensors.pkl", "torch_tensors_zip.pt", "torch_tensors_old.pt"])
def test_tensors_written_by_torch(name):
    found = read_pickle(GOLDEN / name)
    with np.load(GOLDEN / "torch_tensors.npz") as expected:
        assert sorted(f"{kind}/{view}" for kind in found for view in found[kind]) == sorted(expected.files)
        for key in expected.files:
            kind, view = key.split("/")
            value = found[kind][view]
            assert value.dtype.name == kind
            assert value.shape == expected[key].shape
            np.testing.assert_array_equal(value.astype(np.float64), expected[key])


@pytest.mark.parametrize("protocol", range(6))
def test_plain_values_of_every_protocol(tmp_path, protocol):
    value = {
        "list": [1, 2.5, None, True, 2**70, "ü", b"bytes", bytearray(b"more"), (1, (2,)), {3}, frozenset({4})],
        "ordered": collections.OrderedDict(a=1),
        "array": np.arange(6).reshape(2, 3),
        "columns": np.asfortranarray(np.ones((3, 4), np.float16)),
        "number": np.float32(3),
        "objects": np.array(["a", {"x": 1}], object),
        "words": np.array(["ab", "c"]),
    }
    path = tmp_path / "plain.pkl"
    path.write_bytes(pickle.dumps(value, protocol))
    found = read_pickle(path)
    assert repr(found) == repr(value)
    assert found["columns"].flags.f_contiguous


@pytest.mark.parametrize("protocol", range(2, 6))
def test_large_arrays(tmp_path, protocol):
    array = np.random.default_rng(0).normal(size=(700, 300))
    path = tmp_path / "large.pkl"
    path.write_bytes(pickle.dumps({"array": array, "again": array, "tail": 7}, protocol))
    found = read_pickle(path)
    np.testing.assert_array_equal(found["array"], array)
    np.testing.assert_array_equal(found["again"], array)
    assert found["tail"] == 7


def test_a_large_tensor_stays_in_the_file(tmp_path, dump_tensor):
    array = np.random.default_rng(0).normal(size=(2, 1000, 300)).astype(np.float32)
    dump_tensor(tmp_path / "nn.pkl", array)
    found = read_pickle(tmp_path / "nn.pkl")
    np.testing.assert_array_equal(found, array)
    assert not found.flags.owndata
    assert not found.flags.writeable


class Attack:
    def __reduce__(self):
        return os.system, ("touch hacked",)


@pytest.mark.parametrize(
    ("value", "name"),
    [
        (Attack(), "posix.system"),
        (functools.partial(print, "x"), "functools.partial"),
        (collections.ChainMap({}), "collections.ChainMap"),
        (eval, "builtins.eval"),
        (np.load, "numpy.load"),
    ],
)
def test_anything_else_is_refused_by_name(tmp_path, monkeypatch, value, name):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "foreign.pkl"
    path.write_bytes(pickle.dumps({"gnd": [value]}))
    with pytest.raises(UserError, match=f"foreign.pkl: refused: it asks for {name}") as caught:
        read_pickle(path)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "hacked").exists()


def test_attributes_cannot_be_set(tmp_path):
    path = tmp_path / "build.pkl"
    # BUILD on a class that is allowed: {"x": 1} as attributes of numpy.ndarray
    path.write_bytes(b"cnumpy\nndarray\n(dX\x01\x00\x00\x00xK\x01sb.")
    with pytest.raises(UserError, match="refused: it sets attributes of a type"):
        read_pickle(path)


def test_references_out_of_the_file_are_refused(tmp_path):
    path = tmp_path / "persistent.pkl"
    path.write_bytes(b"Psomewhere\n.")
    with pytest.raises(UserError, match="refers to something outside of the file"):
        read_pickle(path)


def test_a_tensor_cannot_reach_outside_its_memory(tmp_path):
    whole = (GOLDEN / "torch_tensors.pkl").read_bytes()
    # The strides (4, 1) of the first whole tensor [5, 4] become (9, 1).
    position = whole.index(b"K\x05K\x04\x86")
    stride = whole.index(b"K\x04K\x01\x86", position)
    (tmp_path / "reach.pkl").write_bytes(whole[:stride] + b"K\x09K\x01\x86" + whole[stride + 5 :])
    with pytest.raises(UserError, match="a tensor reaches to value 39 of a storage of 20"):
        read_pickle(tmp_path / "reach.pkl")


def test_damaged_files_are_named(tmp_path):
    path = tmp_path / "short.pkl"
    for name in ("torch_tensors.pkl", "torch_tensors_zip.pt", "torch_tensors_old.pt"):
        path.write_bytes((GOLDEN / name).read_bytes()[:-300])
        with pytest.raises(UserError, match=r"short.pkl: cannot be read as a pickle"):
            read_pickle(path)
    path.write_bytes(b"")
    with pytest.raises(UserError, match="is empty"):
        read_pickle(path)
    with pytest.raises(UserError, match=r"absent.pkl is missing"):
        read_pickle(tmp_path / "absent.pkl")


def test_a_flipped_bit_of_a_tensor_is_named(tmp_path):
    content = bytearray((GOLDEN / "torch_tensors_zip.pt").read_bytes())
    with zipfile.ZipFile(GOLDEN / "torch_tensors_zip.pt") as archive:
        name = next(name for name in archive.namelist() if "/data/" in name)
        content[content.index(archive.read(name))] ^= 1
    (tmp_path / "flipped.pt").write_bytes(content)
    with pytest.raises(UserError, match=r"flipped.pt: data/\d+ in it is damaged: its checksum is wrong"):
        read_pickle(tmp_path / "flipped.pt")


def test_counts_and_defaults_come_as_plain_dicts(tmp_path):
    """Schedulers keep such things in a checkpoint."""
    defaults = collections.defaultdict(list)
    defaults["x"].append(1)
    (tmp_path / "a.pkl").write_bytes(pickle.dumps({"milestones": collections.Counter([3, 3]), "groups": defaults}))
    assert read_pickle(tmp_path / "a.pkl") == {"milestones": {3: 2}, "groups": {"x": [1]}}


def test_pickles_of_python_2_and_numpy_1(tmp_path):
    """Protocol 2, where arrays hold their bytes in a text of Latin-1 and names are texts of bytes."""
    array = (
        b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(K\x00tU\x01btR(K\x01(K\x02tcnumpy\ndtype\n(U\x02f8K\x00K\x01tR"
        b"(K\x03U\x01<NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89U\x10" + np.array([1.5, -2.0]).tobytes() + b"tb."
    )
    (tmp_path / "old.pkl").write_bytes(array)
    assert read_pickle(tmp_path / "old.pkl").tolist() == [1.5, -2.0]


DTYPE = b"cnumpy\ndtype\n(X\x02\x00\x00\x00f8K\x00K\x01tR"
EMPTY = b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\n"


@pytest.mark.parametrize(
    "content",
    [
        DTYPE + b"(K\x03X\x01\x00\x00\x00<NNN(X\x01\x00\x00\x00ad)J\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb.",  # fields
        DTYPE + b"(K\x03X\x01\x00\x00\x00<(" + DTYPE + b"(I1000000000\nttNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb.",
        b"cnumpy\ndtype\n(X\x05\x00\x00\x00f8,O8K\x00K\x01tR.",
        b"cnumpy\ndtype\n(](X\x01\x00\x00\x00aX\x01\x00\x00\x00OtatR.",
        b"cnumpy\nndarray\n(I1000000000000\ntR.",
        b"cnumpy\nndarray\n(I1000000000000\nt\x81.",
        EMPTY + b"(I1000000000000\ntX\x01\x00\x00\x00b\x87R.",
        EMPTY + b"(K\x00tX\x01\x00\x00\x00b\x87R(K\x01(K\x09tcnumpy\ndtype\n(X\x01\x00\x00\x00OK\x00K\x01tR\x89]tb.",
        b"cnumpy.core.multiarray\nscalar\n(cnumpy\ndtype\n(X\x01\x00\x00\x00OK\x00K\x01tRC\x08AAAAAAAAtR.",
        b"cbuiltins\nbytearray\n(I1000000000000\ntR.",
        b"(" * 2_000_000 + b"." ,
        b"N" + b"\x85" * 2_000_000 + b"K\x01d.",
        b"]" + b"N" + b"\x85" * 900 + b"cbuiltins\ntuple\n.",
    ],
)  # fmt: skip
def test_what_could_crash_hang_or_fill_the_memory_is_refused(tmp_path, content):
    (tmp_path / "hostile.pkl").write_bytes(content)
    with pytest.raises(UserError, match=r"hostile.pkl: (refused|cannot be read as a pickle)") as caught:
        read_pickle(tmp_path / "hostile.pkl")
    assert "\n" not in str(caught.value)


def test_a_tensor_of_one_repeated_value_is_refused(tmp_path):
    whole = (GOLDEN / "torch_tensors.pkl").read_bytes()
    position = whole.index(b"K\x05K\x04\x86")
    stride = whole.index(b"K\x04K\x01\x86", position)
    large = (
        whole[:position] + b"K\xffK\xff\x86" + whole[position + 5 : stride] + b"K\x00K\x00\x86" + whole[stride + 5 :]
    )
    (tmp_path / "bomb.pkl").write_bytes(large)
    with pytest.raises(UserError, match="a tensor of 65025 values in a storage of 20"):
        read_pickle(tmp_path / "bomb.pkl")
