"""Models by path or by released name; released weights are fetched once, converted and kept in HOME/models/NAME/."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ames_jax.model.ames import NAMED, RELEASED, AMESConfig
from ames_jax.model.elvis import NAMES as ELVIS
from ames_jax.model.kinds import Config, Model, config_of, title_of
from ames_jax.model.sharing import download, is_on_hub
from ames_jax.model.torch_files import read_checkpoint, read_config
from ames_jax.model.torch_weights import from_torch
from ames_jax.model.weights import MODEL_FILE, facts_of, find_model, read_model, save_model
from ames_jax.runtime.cache import ADDRESSES, fetch_file, home, pin_of
from ames_jax.runtime.errors import UserError, did_you_mean
from ames_jax.runtime.files import read_json
from ames_jax.runtime.paths import path_of

DETECTORS = ("dinov2_detector", "cvnet_detector")
# Models that come with the package, by the backbone that they are for: the folders of `shipped/`.
SHIPPED = {path.parent.name: path.parent for path in sorted(Path(__file__).parent.glob(f"shipped/*/{MODEL_FILE}"))}


def load_model(path_or_name: str | Path) -> Model:
    """A model from a run directory, a model directory, a release `.pt` file, or a name.

    A run directory gives its best student, else its best teacher. Names are "sift" (comes with the package) and the
    released ones, such as "dinov2_ames_dist" (downloaded once); `hf://OWNER/NAME` is a model on the Hugging Face Hub.

    Raises:
      UserError: nothing there, or not a model.
    """
    refuse_unknown(path_or_name)
    path = folder_of(path_or_name)
    if path.is_dir():
        return read_model(find_model(path))
    return _read_torch(path) if path.is_file() else load_released(str(path_or_name))


def refuse_unknown(path_or_name: str | Path) -> None:
    """Raises UserError where `load_model` would find nothing: for before work that takes long."""
    path, name = folder_of(path_or_name), str(path_or_name)
    if path.is_dir():
        find_model(path)
    elif path.is_file():
        return
    elif path.suffix == ".pt" or len(path.parts) > 1:
        raise UserError(
            f"{path}: no such file or directory; a model is a run or model directory, a .pt file or a released name"
        )
    else:
        _refuse_unknown_name(name)


def known_facts(path_or_name: str | Path) -> dict[str, Any]:
    """The facts that were saved with a model that `load_model` finds under this name; none of a `.pt` file."""
    folder = folder_of(path_or_name)
    return facts_of(find_model(folder)) if folder.is_dir() else {}


def known_setting(path_or_name: str | Path, facts: Mapping[str, Any]) -> tuple[float | None, float | None]:
    """λ and γ of a model: those that validation chose in training, or those of a released model's authors, or None."""
    lam, gamma = RELEASED.get(facts.get("released", Path(path_or_name).stem), (None, None))
    return facts.get("lam", lam), facts.get("gamma", gamma)


def folder_of(path_or_name: str | Path) -> Path:
    """The path of a model: the folder of a shipped one for its name, of a download for `hf://…`, else what is given."""
    if is_on_hub(path_or_name):
        return download(str(path_or_name))
    path = path_of(path_or_name)
    return path if path.exists() else SHIPPED.get(str(path_or_name), path)


def _read_torch(path: Path, config: Config | None = None) -> Model:
    weights, beside = read_checkpoint(path), config_beside(path)
    try:
        return from_torch(weights, config or beside)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None


def config_beside(path: Path) -> Config | None:
    """The configuration in a `.pt` file of ours; None in one of the release, where the shapes must tell."""
    config = read_config(path)
    return None if config is None else config_of(config)


def load_released(name: str) -> Model:
    """A released model by name, e.g. "dinov2_ames_dist"; the first time it is fetched and converted.

    Raises UserError for an unknown name, a failed download, a file that changed, or weights that do not fit.
    """
    _refuse_unknown_name(name)
    converted = home() / "models" / name
    if (converted / MODEL_FILE).is_file():
        return read_model(converted)
    path = fetch(name)
    model = _read_torch(path, AMESConfig(**NAMED[name]) if name in NAMED else None)
    expected = "ELViS" if name in ELVIS else "AMES"
    if title_of(model.config) != expected:
        raise UserError(f"{path}: these are weights of {title_of(model.config)}, expected those of {expected}")
    save_model(model, converted, {"released": name, **read_json(pin_of(path))})
    return model


def _refuse_unknown_name(name: str) -> None:
    if name not in (*NAMED, *ELVIS):
        names = (*SHIPPED, *NAMED, *ELVIS)
        raise UserError(f"unknown model {name!r}: expected one of {', '.join(names)}{did_you_mean(name, names)}")


def fetch(name: str, addresses: Sequence[str] | None = None) -> Path:
    """The released file `NAME.pt` in the cache, downloaded if it is not there; over HTTPS, unless AMES_JAX_ALLOW_HTTP is 1.

    Raises UserError: unknown name; no server answers (says where to put the file by hand); a file that is not the one
    of its first use.
    """
    known = (*NAMED, *ELVIS, *DETECTORS)
    if name not in known:
        hint = did_you_mean(name, known)
        raise UserError(f"no released file {name!r}: expected one of {', '.join(known)}{hint}")
    folders = tuple(a.replace("/ames/", "/elvis/") for a in ADDRESSES) if name in ELVIS else ADDRESSES
    return fetch_file(f"{name}.pt", addresses or folders, read_checkpoint)
