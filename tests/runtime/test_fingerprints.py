"""A changed file has another fingerprint, wherever in it the change is."""

import os
import shutil

import numpy as np
import pytest

from ames_jax.runtime import fingerprints
from ames_jax.runtime.errors import UserError
from ames_jax.runtime.fingerprints import content_of, fingerprint_of


@pytest.mark.parametrize("size", [1, 1000, 100_000])
def test_a_change_in_the_middle_is_seen(tmp_path, monkeypatch, size):
    monkeypatch.setattr(fingerprints, "WHOLE_BYTES", 50_000)
    path = tmp_path / "a"
    path.write_bytes(bytes(size))
    before = fingerprint_of([path]), content_of([path])
    data = np.zeros(size, np.uint8)
    data[size // 2] = 1
    path.write_bytes(data.tobytes())
    assert fingerprint_of([path]) != before[0]
    assert content_of([path]) != before[1]


def test_a_small_file_may_move_and_be_touched(tmp_path):
    (tmp_path / "a").write_bytes(b"content")
    shutil.copy(tmp_path / "a", tmp_path / "b")
    os.utime(tmp_path / "b", (1, 1))
    assert content_of([tmp_path / "a"]) == content_of([tmp_path / "b"])


def test_what_is_no_file_is_told_and_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for name, message in (("pipe", "pipe is no regular file"), ("gone", "gone is missing")):
        with pytest.raises(UserError, match=message):
            content_of([tmp_path / name])
