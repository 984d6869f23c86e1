"""What pictures show, from folders and lists."""

from __future__ import annotations

import pytest

from ames_jax.report.search_results import Labels
from ames_jax.runtime.errors import UserError


def test_labels(tmp_path):
    folders = Labels.read("folder")
    assert folders.right("photos/castle/1.jpg", "castle/2.jpg") is True
    assert folders.right("photos/castle/1.jpg", "church/2.jpg") is False
    assert folders.right("1.jpg", "church/2.jpg") is None
    (tmp_path / "list").write_text("a/1.jpg,castle\n\n2.jpg\tchurch\n")
    listed = Labels.read(str(tmp_path / "list"))
    assert [listed.of(name) for name in ("a/1.jpg", "b/2.jpg", "3.jpg")] == ["castle", "church", None]
    (tmp_path / "list").write_text("a/1.jpg\n")
    with pytest.raises(UserError, match="list line 1: expected `picture,label`"):
        Labels.read(str(tmp_path / "list"))
    with pytest.raises(UserError, match="nowhere is missing"):
        Labels.read("nowhere")
