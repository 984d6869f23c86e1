"""The commands of `python -m ames_jax.search` that change or check an index: parameters are the flags."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter
from etils import epy

from ames_jax.runtime.command_line import check_paths
from ames_jax.runtime.errors import UserError
from ames_jax.runtime.files import write_json
from ames_jax.runtime.flag_values import Fraction
from ames_jax.runtime.progress import Progress

with epy.lazy_imports():  # help needs none of them
    from ames_jax.data import lists
    from ames_jax.extraction import listing
    from ames_jax.index import changes, collection, comparing, database_index, photos
    from ames_jax.report import search_results


def sync(*, index: Path, images: Path, skip_broken: bool = False, database: str | None = None) -> None:
    """Bring an index up to date with a folder: new, changed, moved and vanished pictures.

    Args:
      index: What `search index` wrote.
      images: The folder, or a list with one line per picture; the index then holds these pictures and no others.
      skip_broken: Leave out pictures that cannot be read, instead of stopping.
      database: Bring this database up to date, too, as `search index` takes it.
    """
    check_paths(index=index, images=images)
    report = photos.sync_photos(index, listing.list_images(images), skip_broken=skip_broken)
    print(f"{index}: {report}")
    if database:
        _write_database(collection.SearchIndex.open(index), database)


def remove(
    *,
    index: Path,
    ids: Annotated[list[str] | None, Parameter(consume_multiple=True)] = None,
    list_file: Annotated[Path | None, Parameter(name="--list")] = None,
    database: str | None = None,
) -> None:
    """Remove images from an index.

    Args:
      index: What `search index` wrote.
      ids: Ids of images, as `search query` lists them; several with commas between, or the flag several times.
      list_file: A file with one id per line.
      database: Remove them from this database, too, as `search index` takes it.
    """
    if not ids and not list_file:
        raise UserError("nothing to remove: give --ids=ID, or --list=FILE with one id per line")
    check_paths(index=index, list=list_file)
    known = collection.SearchIndex.open(index)
    named = [part for name in ids or [] for part in ([name] if known.find(name) is not None else name.split(","))]
    named += [name for name in (lists.read_lines(list_file) if list_file else []) if name.strip()]
    count = changes.remove_images(index, named)
    left = collection.SearchIndex.open(index)
    print(f"{index}: {count:,} {'image' if count == 1 else 'images'} removed, {len(left):,} left")
    if database:
        _write_database(left, database)


def _write_database(index: collection.SearchIndex, address: str) -> None:
    print(search_results.database_text(address, len(index), *database_index.write_index(index, address)))


def compact(*, index: Path) -> None:
    """Give back the space of removed images; this happens by itself when they are a quarter of all.

    Args:
      index: What `search index` wrote.
    """
    check_paths(index=index)
    before, after = changes.compact(index)
    print(f"{index}: {before:,} B before, {after:,} B now")


def verify(*, index: Path) -> None:
    """Read every file of an index and compare it with its checksum.

    Args:
      index: What `search index` wrote.
    """
    check_paths(index=index)
    with Progress(f"reading {index}"):
        count, size = collection.SearchIndex.open(index).verify()
    print(f"{index}: all {count} files are whole ({size:,} B)")


def duplicates(
    *,
    index: Path,
    similarity: Fraction = 0.5,
    share: Fraction = 0.5,
    json_file: Annotated[Path | None, Parameter(name="--json")] = None,
) -> None:
    """List groups of images that are nearly the same picture: copies, other sizes, small cuts.

    Args:
      index: What `search index` wrote.
      similarity: Least similarity of the global descriptors of two pictures that are compared.
      share: Least share of the local descriptors of the picture with fewer of them that the other one has, too.
      json_file: Write the groups to this file too.
    """
    check_paths(index=index)
    groups = comparing.find_duplicates(collection.SearchIndex.open(index), similarity, share)
    if json_file:
        write_json(json_file, {"groups": groups})
    print("\n\n".join("\n".join(group) for group in groups) or "no near-duplicates")
