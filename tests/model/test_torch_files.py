"""Checkpoints written without PyTorch are read back, here and (where it is installed) by PyTorch."""

from __future__ import annotations

import pickle

import numpy as np
import pytest

from ames_jax.model.torch_files import read_checkpoint, write_checkpoint
from ames_jax.runtime.errors import UserError

WEIGHTS = {
    "a.weight": np.arange(24, dtype=np.float32).reshape(2, 3, 4),
    "b": np.float32(1.5),
    "c.bias": np.array([1e-40, -0.0, 3e38], np.float32),
    "d.weight": np.arange(6, dtype=np.float32).reshape(2, 3).T,
}


def test_round_trip_is_exact(tmp_path):
    write_checkpoint(tmp_path / "m.pt", WEIGHTS)
    found = read_checkpoint(tmp_path / "m.pt")
    assert list(found) == list(WEIGHTS)
    for name, value in WEIGHTS.items():
        assert found[name].shape == np.shape(value)
        assert found[name].tobytes() == np.ascontiguousarray(value).tobytes()


def test_pytorch_reads_it(tmp_path):
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    write_checkpoint(tmp_path / "m.pt", WEIGHTS)
    found = torch.load(tmp_path / "m.pt", weights_only=True)["state"]
    for name, value in WEIGHTS.items():
        np.testing.assert_array_equal(found[name].numpy(), value)


def test_the_release_file_is_read(reference):
    path = reference / "evaluation" / "matcher_fp.pt"
    arrays = np.load(path.with_suffix(".npz"))
    found = read_checkpoint(path)
    assert set(found) == set(arrays)
    for name in arrays:
        np.testing.assert_array_equal(found[name], arrays[name])


class Harmful:
    def __reduce__(self):
        return print, ("this must not run",)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (pickle.dumps({"state": Harmful()}), "refused: it asks for .*print"),
        (pickle.dumps({"weights": {}}), "with the weights under 'state'"),
        (pickle.dumps([1, 2]), "with the weights under 'state'"),
        (b"<html>404</html>", "cannot be read"),
    ],
)
def test_what_is_no_checkpoint_is_refused(tmp_path, content, message, capsys):
    (tmp_path / "m.pt").write_bytes(content)
    with pytest.raises(UserError, match=message):
        read_checkpoint(tmp_path / "m.pt")
    assert "must not run" not in capsys.readouterr().out


def test_a_failed_write_leaves_nothing(tmp_path):
    (tmp_path / "no folder").touch()
    with pytest.raises(UserError, match="cannot be written"):
        write_checkpoint(tmp_path / "no folder" / "m.pt", WEIGHTS)
    assert list(tmp_path.iterdir()) == [tmp_path / "no folder"]
