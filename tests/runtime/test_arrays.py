"""Arrays on disk: the bytes of numpy.save, whole or not at all, and one line for whatever else lies there."""

import io
import types

import numpy as np
import pytest

from ames_jax.data.lists import read_ids, read_list
from ames_jax.runtime import files
from ames_jax.runtime.errors import UserError
from ames_jax.runtime.files import read_array, read_json, write_array, write_blocks


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.int32, np.int64, np.uint8, np.bool_])
@pytest.mark.parametrize("shape", [(7,), (5, 3), (0, 4), (4, 2, 3)])
def test_the_bytes_are_those_of_numpy(tmp_path, dtype, shape):
    values = (np.arange(np.prod(shape)) % 3).astype(dtype).reshape(shape)
    write_array(tmp_path / "a.npy", values)
    buffer = io.BytesIO()
    np.save(buffer, values)
    assert (tmp_path / "a.npy").read_bytes() == buffer.getvalue()
    for mapped in (False, True):
        read = read_array(tmp_path / "a.npy", mapped=mapped)
        np.testing.assert_array_equal(read, values)
        assert read.dtype == values.dtype
    assert isinstance(read_array(tmp_path / "a.npy", mapped=bool(values.size)), np.memmap) == bool(values.size)


def test_blocks_are_written_whole_or_not_at_all(tmp_path):
    values = np.arange(30).reshape(10, 3)
    path = tmp_path / "folder" / "a.npy"
    write_blocks(path, (values[start : start + 4] for start in (0, 4, 8)), np.float16, (10, 3))
    np.testing.assert_array_equal(read_array(path), values.astype(np.float16))
    before = path.read_bytes()

    def broken():
        yield values[:4]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_blocks(path, broken(), np.float16, (10, 3))
    with pytest.raises(ValueError, match="4 rows written, expected 10"):
        write_blocks(path, [values[:4]], np.float16, (10, 3))
    assert path.read_bytes() == before
    assert [entry.name for entry in path.parent.iterdir()] == ["a.npy"]


def test_other_orders_of_bytes_and_axes_are_read(tmp_path):
    values = np.arange(12, dtype=np.float32).reshape(3, 4)
    np.save(tmp_path / "big.npy", values.astype(">f4"))
    np.save(tmp_path / "fortran.npy", np.asfortranarray(values))
    for name in ("big.npy", "fortran.npy"):
        for mapped in (False, True):
            read = read_array(tmp_path / name, mapped=mapped)
            np.testing.assert_array_equal(read, values)
            assert read.dtype.isnative


def header(text, version=b"\x01\x00"):
    return b"\x93NUMPY" + version + len(text).to_bytes(2, "little") + text


PLAIN = "{'descr': '<f4', 'fortran_order': False, 'shape': (%s), }\n"


@pytest.mark.parametrize("mapped", [False, True])
@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "not a readable .npy file"),
        (b"not an array", "not a readable .npy file"),
        (header(b""), "not a readable .npy file"),
        (header(b"(" * 5000), "not a readable .npy file"),
        (header(b"{'descr': __import__('os').getcwd(), 'fortran_order': False, 'shape': (3,), }\n"), "not a readable"),
        (header((PLAIN % "3, ").encode()) + b"x" * 7, "not a readable .npy file"),
        (header((PLAIN % "-3, ").encode()) + b"x" * 12, "not a readable .npy file"),
        (header((PLAIN % "3, ").encode()) + b"x" * 14, "has 2 bytes more than its header says"),
        (header((PLAIN % "10**9, ").encode()) + b"x" * 12, "not a readable .npy file"),
        (header((PLAIN % "9999999999999999, 9999999999").encode()) + b"x" * 12, "not a readable .npy file"),
        (header((PLAIN % "3, ").encode(), b"\x09\x00") + b"x" * 12, "not a readable .npy file"),
        (header((PLAIN % "3, ").replace("<f4", "|O").encode()) + b"x" * 12, "not a readable .npy file"),
        (header((PLAIN % "3, ").replace("<f4", "<U1").encode()) + b"x" * 12, "expected numbers, found <U1"),
        (header((PLAIN % "3, ").replace("<f4", "<c8").encode()) + b"x" * 24, "expected numbers, found complex64"),
    ],
)
def test_what_is_no_array_of_numbers_is_one_line(tmp_path, content, message, mapped):
    path = tmp_path / "a.npy"
    path.write_bytes(content)
    with pytest.raises(UserError, match=rf"a\.npy.*{message}") as caught:
        read_array(path, mapped=mapped)
    assert "\n" not in str(caught.value)


def test_what_is_no_file_is_one_line(tmp_path):
    np.savez(tmp_path / "a.npz", a=np.zeros(3))
    (tmp_path / "a.npz").rename(tmp_path / "archive.npy")
    with pytest.raises(UserError, match="archive of arrays"):
        read_array(tmp_path / "archive.npy")
    for path in (tmp_path, tmp_path / "absent.npy"):
        with pytest.raises(UserError, match="is missing"):
            read_array(path)


def test_a_disk_that_is_too_small_is_told_before_the_work(tmp_path, monkeypatch):
    monkeypatch.setattr(files.shutil, "disk_usage", lambda _: types.SimpleNamespace(free=5000))
    write_array(tmp_path / "fits.npy", np.zeros(100))
    with pytest.raises(UserError, match=r"new/large.npy needs 8.0 MB, and its disk has 0.0 MB free"):
        write_blocks(tmp_path / "new" / "large.npy", iter([]), np.float64, (10**6,))
    assert [path.name for path in tmp_path.iterdir()] == ["fits.npy"]


def test_a_file_too_large_for_its_kind_is_not_read(tmp_path):
    path = tmp_path / "x"
    with path.open("wb") as file:
        file.truncate(1 << 36)  # takes no room: the file is a hole
    for read in (read_json, read_list, lambda path: read_ids(path, 1), files.read_whole):
        with pytest.raises(UserError, match=r"x has 68.7 GB: it is damaged or something else"):
            read(path)
