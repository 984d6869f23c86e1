"""The images of a gallery, from the release's files or a prepared data set, as `build_store` takes them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ames_jax.data.lists import RELEASE, read_list
from ames_jax.data.readers import ConcatenatedReader, FileReader, ShardReader
from ames_jax.data.shards import open_split
from ames_jax.data.store import DescriptorReader
from ames_jax.runtime.errors import UserError


def open_gallery(
    features: Sequence[Path], split: str | None = None, lists: Sequence[Path] | None = None
) -> tuple[DescriptorReader, list[str]]:
    """A reader of the descriptors, and the id of every image.

    Args:
      features: HDF5 files of the release's layouts, in their order; or one folder of a data set, with its `split`.
      lists: text lists of the images, an HDF5 file each; without them the ids are row numbers.

    Raises:
      UserError: a file is missing or not readable, or lists and images differ in number.
    """
    if features[0].is_dir():
        if split is None or len(features) > 1:
            raise UserError(f"{features[0]} is a data set: name one, and --split, e.g. --split=test_gallery")
        return ShardReader(features[0], split), open_split(features[0], split).ids()
    reader = ConcatenatedReader(tuple(FileReader(path) for path in features))
    if lists is None:
        return reader, [str(row) for row in range(len(reader))]
    ids = [name for path in lists for name in read_list(path, RELEASE).ids]
    if len(ids) != len(reader):
        raise UserError(
            f"{lists[0]}: the lists name {len(ids)} images, the descriptor files hold {len(reader)}: give the lists "
            "that the descriptors were extracted from"
        )
    return reader, ids
