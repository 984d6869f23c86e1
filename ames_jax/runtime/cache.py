"""Settings of the process that every entry point shares."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from pathlib import Path

import jax
import platformdirs

from ames_jax.runtime.errors import UserError


def home() -> Path:
    """The folder for what is built or downloaded once: AMES_JAX_HOME, else the platform's cache directory."""
    return Path(os.environ.get("AMES_JAX_HOME") or platformdirs.user_cache_dir("ames_jax"))


def start() -> None:
    """Turns the persistent compilation cache on, so that a second run of a program does not compile again."""
    jax.config.update("jax_compilation_cache_dir", str(home() / "compiled"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)


# The server of the authors of AMES. They publish no checksums, so a file is pinned by what it was on first use.
ADDRESSES = (
    "https://ptak.felk.cvut.cz/personal/sumapave/public/ames/networks",
    "http://ptak.felk.cvut.cz/personal/sumapave/public/ames/networks",
)
TIMEOUT_SECONDS = 30


def fetch_file(name: str, addresses: Sequence[str]) -> Path:
    """The file `name` in the cache, downloaded from ADDRESS/NAME of the first server that answers if it is not there.

    Raises UserError: no server answers (says where to put the file by hand); a file that is not the one of its first use.
    """
    path = home() / "weights" / name
    if not path.is_file():
        _download(path, addresses)
    _check(path)
    return path


def _download(path: Path, addresses: Sequence[str]) -> None:
    import pooch

    pooch.get_logger().setLevel("WARNING")
    failures = []
    for address in addresses:
        downloader = pooch.HTTPDownloader(progressbar=True, timeout=TIMEOUT_SECONDS)
        try:
            pooch.retrieve(f"{address}/{path.name}", None, path.name, path.parent, downloader=downloader)
            return
        except (OSError, ValueError) as error:  # requests' errors are OSErrors
            failures.append(f"{address.partition('://')[0]}: {' '.join(str(error).split())[:160]}")
    raise UserError(
        f"{path.name} could not be downloaded ({'; '.join(failures)}); get it elsewhere and put it at {path}"
    )


def _check(path: Path) -> None:
    """Pins a file on its first use; afterwards raises UserError where it is another."""
    content = path.read_bytes()
    found = {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    pin = pin_of(path)
    if not pin.is_file():
        pin.write_text(json.dumps(found), encoding="utf-8")
        return
    expected = json.loads(pin.read_text(encoding="utf-8"))
    if found != expected:
        raise UserError(
            f"{path} has changed since its first use ({found['bytes']} bytes, was {expected['bytes']}; sha256 "
            f"{found['sha256'][:12]}…, was {expected['sha256'][:12]}…): delete it to download it again, "
            f"or delete {pin} to accept it"
        )


def pin_of(path: Path) -> Path:
    """Where the size and checksum of a fetched file are kept."""
    return path.with_suffix(".json")
