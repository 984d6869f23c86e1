"""The released weights: fetched once, checked ever after, converted and kept.

    HOME/weights/NAME.pt      the released file; put there by hand, it is used without a download
    HOME/weights/NAME.json    its size and checksum when it was first used
    HOME/models/NAME/         the converted model

HOME is AMES_JAX_HOME, else the platform's cache directory.
"""

from __future__ import annotations

import difflib
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

from ames_jax.checkpoints import MODEL_FILE, find_model, read_model, save_model
from ames_jax.errors import UserError
from ames_jax.paths import path_of
from ames_jax.runtime import home
from ames_jax.similarity import AMES, NAMED, AMESConfig
from ames_jax.torch_files import read_checkpoint
from ames_jax.torch_weights import from_torch

DETECTORS = ("dinov2_detector", "cvnet_detector")
# The authors' server. They publish no checksums, so a file is pinned by what it was on first use.
ADDRESSES = (
    "https://ptak.felk.cvut.cz/personal/sumapave/public/ames/networks",
    "http://ptak.felk.cvut.cz/personal/sumapave/public/ames/networks",
)
TIMEOUT_SECONDS = 30


def load_model(path_or_name: str | Path) -> AMES:
    """A model from a run directory, a model directory, a release `.pt` file, or a released name (downloaded once).

    A run directory gives its best student, else its best teacher.

    Raises:
      UserError: nothing there, or not a model.
    """
    path = path_of(path_or_name)
    if path.is_dir():
        return read_model(find_model(path))
    if path.is_file():
        return from_torch(read_checkpoint(path))
    return load_released(str(path_or_name))


def load_released(name: str) -> AMES:
    """A released model by name, e.g. "dinov2_ames_dist"; the first time it is fetched and converted.

    Raises UserError for an unknown name, a failed download, a file that changed, or weights that do not fit.
    """
    config = AMESConfig.named(name)
    converted = home() / "models" / name
    if (converted / MODEL_FILE).is_file():
        return read_model(converted)
    path = fetch(name)
    model = from_torch(read_checkpoint(path), config)
    save_model(model, converted, {"released": name, **json.loads(_pin_of(path).read_text())})
    return model


def fetch(name: str, addresses: Sequence[str] | None = None) -> Path:
    """The released file `NAME.pt` in the cache, downloaded if it is not there; HTTPS is tried before HTTP.

    Raises UserError: unknown name; no server answers (says where to put the file by hand); a file that is not the one
    of its first use.
    """
    known = (*NAMED, *DETECTORS)
    if name not in known:
        close = difflib.get_close_matches(name, known, 1)
        hint = f"; did you mean {close[0]}?" if close else ""
        raise UserError(f"no released file {name!r}: expected one of {', '.join(known)}{hint}")
    path = home() / "weights" / f"{name}.pt"
    if not path.is_file():
        _download(path, addresses or ADDRESSES)
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
    pin = _pin_of(path)
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


def _pin_of(path: Path) -> Path:
    return path.with_suffix(".json")
