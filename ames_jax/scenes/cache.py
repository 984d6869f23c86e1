"""Where built sets live, how one appears there all at once, and how a damaged one is found."""

from __future__ import annotations

import json
import shutil
import tempfile
import time
import zlib
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from ames_jax.runtime.errors import UserError

MANIFEST = "manifest.json"
REBUILD_HINT = "rebuild it with --config.data.rebuild=true or `python -m ames_jax.scenes.landmarks --rebuild`"
ABANDONED_SECONDS = 24 * 3600


def publish(folder: Path, fill: Callable[[Path], None], *, replace: bool) -> None:
    """Makes `folder` from what `fill(temporary sibling)` writes, in one rename: it is there in whole or not at all.

    Two processes may do this at once: each fills its own temporary folder, the later one finds `folder` there and,
    unless `replace`, leaves it.
    """
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        remove_abandoned(folder)
        unfinished = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    except OSError as error:
        raise UserError(
            f"{folder.parent}: cannot write there ({error}); set AMES_JAX_HOME to a writable folder"
        ) from error
    try:
        unfinished.chmod(0o755)
        fill(unfinished)
        write_manifest(unfinished)
        _move_into_place(unfinished, folder, replace)
    except OSError as error:
        raise UserError(f"{folder}: cannot be written ({error}); set AMES_JAX_HOME to a folder with space") from error
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def _move_into_place(unfinished: Path, folder: Path, replace: bool) -> None:
    if replace:
        aside = unfinished.with_name(unfinished.name + "-old")
        with suppress(FileNotFoundError):  # nothing there, or another rebuild has just moved it
            folder.rename(aside)
        shutil.rmtree(aside, ignore_errors=True)
    try:
        unfinished.rename(folder)
    except OSError:
        if not folder.exists():
            raise


def remove_abandoned(folder: Path) -> None:
    """Deletes temporary folders of builds of `folder` that were killed: untouched for a day."""
    for path in folder.parent.glob(f".{folder.name}-*"):
        with suppress(FileNotFoundError):  # its own process may remove it at this moment
            if time.time() - path.stat().st_mtime > ABANDONED_SECONDS:
                shutil.rmtree(path, ignore_errors=True)


def write_manifest(folder: Path) -> None:
    """Size and CRC-32 of every file but the photos, which nothing is computed from once the descriptors are there."""
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.suffix != ".jpg")
    entries = {path.relative_to(folder).as_posix(): [path.stat().st_size, _crc(path)] for path in files}
    (folder / MANIFEST).write_text(json.dumps(entries, indent=1), encoding="utf-8")


def check(folder: Path) -> None:
    """Reads every file once (a fraction of a second for 200 MB).

    Raises:
      UserError: naming the first file that is missing or damaged, and how to rebuild the set.
    """
    manifest = folder / MANIFEST
    try:
        entries = json.loads(manifest.read_text(encoding="utf-8"))
        expected = {folder / name: (int(size), int(crc)) for name, (size, crc) in entries.items()}
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise UserError(f"{manifest}: cannot be read; {REBUILD_HINT}") from error
    for path, (size, crc) in expected.items():
        if not path.is_file():
            raise UserError(f"{path}: missing; {REBUILD_HINT}")
        if path.stat().st_size != size or _crc(path) != crc:
            raise UserError(f"{path}: damaged (its content differs from what was written); {REBUILD_HINT}")


def _crc(path: Path) -> int:
    crc = 0
    with path.open("rb") as file:
        while block := file.read(1 << 22):
            crc = zlib.crc32(block, crc)
    return crc
