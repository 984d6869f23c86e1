"""The one folder for what is made or fetched once: compiled programs, released weights, rendered data sets."""

from __future__ import annotations

import hashlib
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import platformdirs
from etils import epy

from ames_jax.runtime.errors import UserError
from ames_jax.runtime.files import read_json, write_json

with epy.lazy_imports():  # processes that only render need neither
    import jax
    import pooch

# The server of the authors of AMES. They publish no checksums, so a file is pinned by what it was on first use.
ADDRESSES = ("https://ptak.felk.cvut.cz/personal/sumapave/public/ames/networks",)
# Set to 1 where HTTPS cannot be had: anybody on the way could then change what is fetched.
ALLOW_HTTP = "AMES_JAX_ALLOW_HTTP"
TIMEOUT_SECONDS = 30


def home() -> Path:
    """AMES_JAX_HOME (`~` stands for the user's folder), else the platform's cache directory for ames_jax.

    Raises UserError where AMES_JAX_HOME is a file.
    """
    if folder := os.environ.get("AMES_JAX_HOME"):
        path = Path(folder).expanduser()
        if path.exists() and not path.is_dir():
            raise UserError(f"AMES_JAX_HOME={folder} is a file; expected a folder")
        return path
    return Path(platformdirs.user_cache_dir("ames_jax", appauthor=False))


def start() -> None:
    """Turns JAX's persistent compilation cache on, so that a second run of a program does not compile again.

    A folder that JAX has been given before (JAX_COMPILATION_CACHE_DIR, or its configuration) stays.
    """
    if jax.config.jax_compilation_cache_dir if "jax" in sys.modules else os.environ.get("JAX_COMPILATION_CACHE_DIR"):
        return
    settings = {
        "jax_compilation_cache_dir": str(home() / "compiled"),
        "jax_persistent_cache_min_compile_time_secs": 0.5,
    }
    for name, value in settings.items():
        if "jax" in sys.modules:
            jax.config.update(name, value)
        else:  # JAX reads the variable when it is imported, which `--help` does without
            os.environ[name.upper()] = str(value)


def fetch_file(name: str, addresses: Sequence[str], check: Callable[[Path], object]) -> Path:
    """The file `name` in the cache; where it is not there, it is downloaded from the first server that answers.

    Args:
      name: of the file in the cache and, as ADDRESS/NAME, on the servers.
      check: reads the file before it is pinned, and raises UserError for a login page or an empty file, which is removed.

    Raises:
      UserError: no server answers (says where to put the file by hand), or the file differs from that of its first use.
    """
    path = home() / "weights" / name
    new = not path.is_file()
    if new:
        _download(path, addresses)
    if not pin_of(path).is_file():
        try:
            check(path)
        except UserError:
            if new:
                path.unlink()
            raise
    _check(path)
    return path


def _download(path: Path, addresses: Sequence[str]) -> None:
    pooch.get_logger().setLevel("WARNING")
    failures = []
    addresses = list(addresses)
    if os.environ.get(ALLOW_HTTP) == "1":
        addresses += [address.replace("https://", "http://") for address in addresses if address.startswith("https://")]
    for address in addresses:
        downloader = pooch.HTTPDownloader(progressbar=True, timeout=TIMEOUT_SECONDS)
        try:
            # Written under a name of its own and renamed at the end: processes that do so at once do not disturb each other.
            pooch.retrieve(f"{address}/{path.name}", None, path.name, path.parent, downloader=downloader)
            return
        except (OSError, ValueError) as error:  # requests' errors are OSErrors
            failures.append(f"{address.partition('://')[0]}: {' '.join(str(error).split())[:160]}")
    raise UserError(
        f"{path.name} could not be downloaded ({'; '.join(failures)}); get it elsewhere and put it at {path}, or set "
        f"{ALLOW_HTTP}=1 to fetch it without encryption"
    )


def _check(path: Path) -> None:
    """Pins a file on its first use; afterwards raises UserError where its content is another."""
    with path.open("rb") as file:
        actual = {"bytes": path.stat().st_size, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}
    pin = pin_of(path)
    if not pin.is_file():
        write_json(pin, actual)
        return
    expected = read_json(pin)
    if actual != expected:
        raise UserError(
            f"{path} has changed since its first use ({actual['bytes']} bytes, was {expected.get('bytes')}; sha256 "
            f"{actual['sha256'][:12]}…, was {str(expected.get('sha256'))[:12]}…): delete it to download it again, "
            f"or delete {pin} to accept it"
        )


def pin_of(path: Path) -> Path:
    """The file that keeps the size and checksum of a fetched file."""
    return path.with_suffix(".json")
