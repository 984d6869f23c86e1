"""The table of backbones, and how one is opened: for a collection and for its queries alike."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import Path

from etils import epy

from ames_jax.data.shards import read_about
from ames_jax.extraction.backbone import STATISTICS_FILE, Backbone
from ames_jax.runtime.errors import UserError, did_you_mean

with epy.lazy_imports():  # sift needs no network, and processes that only load images need neither
    from ames_jax.extraction import cvnet, dinov2, network, sift

# Name → class. The keywords of its `open` are the options that it has.
BACKBONES: dict[str, Callable[[], type[Backbone]]] = {
    "sift": lambda: sift.SiftBackbone,
    "dinov2": lambda: dinov2.Dinov2Backbone,
    "cvnet": lambda: cvnet.CvnetBackbone,
}


def open_backbone(
    name: str,
    *,
    weights: Path | None = None,
    detector: Path | None = None,
    statistics: Path | None = None,
    descriptors: int | None = None,
    max_side: int | None = None,
    dtype: str | None = None,
    batch: int | None = None,
) -> Backbone:
    """Opens a backbone.

    Args:
      name: "sift", "dinov2" or "cvnet".
      weights: file of the network's authors (dinov2: by default downloaded once; cvnet: needed).
      detector: `*_detector.pt` of the release or of `python -m ames_jax.train --config=configs/detector.py` (by
        default the release's, downloaded once).
      statistics: of sift, `sift_statistics.npz` of a data set (default: those shipped with the package).
      descriptors: the strongest kept of each image (default: sift 600, others 700).
      max_side: longer side in pixels (default: sift at most 640, cvnet at most 1024, dinov2 exactly 770).
      dtype: compute type of a network, "float32" (default) or "bfloat16".
      batch: images per device at a time of a network (default: 1 on CPU, 8 elsewhere).

    Raises:
      UserError: an unknown name, an option that the backbone does not have, or a file that is missing or not right.
    """
    given = {"weights": weights, "detector": detector, "statistics": statistics}
    given |= {"descriptors": descriptors, "max_side": max_side, "dtype": dtype, "batch": batch}
    options = {key: value for key, value in given.items() if value is not None}
    backbone = _class_of(name, "--backbone")
    for key in ("descriptors", "max_side", "batch"):
        if options.get(key, 1) < 1:
            raise UserError(f"--{key.replace('_', '-')}={options[key]}: must be at least 1")
    if options.get("dtype", "float32") not in ("float32", "bfloat16"):
        raise UserError(f"--dtype={dtype}: expected float32 or bfloat16")
    known = list(inspect.signature(backbone.open).parameters)
    for key in options.keys() - set(known):
        raise UserError(f"--{key.replace('_', '-')}: the backbone {name} has no such option; it has {', '.join(known)}")
    return backbone.open(**options)


def reopen_backbone(root: Path) -> Backbone:
    """The backbone that the descriptors of a data set came from, for its queries.

    Args:
      root: folder that `python -m ames_jax.extract` wrote (or the embedded landmarks).

    Raises:
      UserError: the folder does not say (its descriptors were not extracted here), or a file is gone.
    """
    settings = read_about(root).get("extraction")
    if settings is None:
        raise UserError(
            f"{root}: about.json does not say how to extract a query; make it with python -m ames_jax.extract"
        )
    paths = {key: Path(settings[key]) for key in ("weights", "detector") if settings.get(key)}
    if settings["name"] == "sift":
        paths["statistics"] = Path(root) / STATISTICS_FILE
    return open_backbone(**{**settings, **paths})


def open_network(name: str, weights: str, dtype: str, side: int) -> network.FeatureMap:
    """The network of a backbone for square images, on which a detector is trained; raises UserError as `open_backbone`."""
    backbone = _class_of(name, "--config.backbone")
    if not issubclass(backbone, network.NetworkBackbone):
        networks = [other for other, class_of in BACKBONES.items() if issubclass(class_of(), network.NetworkBackbone)]
        raise UserError(f"--config.backbone={name}: a detector is trained for {' or '.join(networks)}")
    return backbone.feature_map(backbone.read_network(Path(weights) if weights else None, dtype), side)


def _class_of(name: str, flag: str) -> type[Backbone]:
    if name not in BACKBONES:
        raise UserError(f"{flag}={name}: expected one of {', '.join(BACKBONES)}{did_you_mean(name, BACKBONES)}")
    return BACKBONES[name]()
