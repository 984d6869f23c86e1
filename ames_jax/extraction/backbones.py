"""The table of backbones, and how one is opened: for a collection and for its queries alike."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from etils import epy

from ames_jax.data.shards import read_about
from ames_jax.extraction.backbone import STATISTICS_FILE, Backbone, ExtractedImage
from ames_jax.runtime.errors import UserError, did_you_mean
from ames_jax.runtime.imports import named_class

with epy.lazy_imports():  # sift needs no network, and processes that only load images need neither
    from ames_jax.extraction import cvnet, dinov2, network, sift, xfeat

# Options beyond which a picture no longer fits into a record, or into memory.
MOST = {"descriptors": 65_535, "max_side": 16_384, "batch": 4_096}
# Name → class. The keywords of its `open` are the options that it has.
BACKBONES: dict[str, Callable[[], type[Backbone]]] = {
    "sift": lambda: sift.SiftBackbone,
    "dinov2": lambda: dinov2.Dinov2Backbone,
    "cvnet": lambda: cvnet.CvnetBackbone,
    "xfeat": lambda: xfeat.XFeatBackbone,
    **{
        name: functools.partial(lambda name: dinov2.variant(name), name)
        for size in ("small", "base", "large")
        for name in (f"dinov2_{size}{registers}{pooled}" for registers in ("", "_reg") for pooled in ("", "_pooled"))
    },
}
# The global descriptor of a local backbone that has none, where no other is asked for.
DEFAULT_GLOBAL = "dinov2_small_pooled"


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
    block: int | None = None,
    global_backbone: Mapping[str, Any] | None = None,
) -> Backbone:
    """Opens a backbone.

    Args:
      name: one of `BACKBONES`, or `package.module:Class` for a class of one's own with this name (docs/extending.md).
      weights: file of the network's authors (by default downloaded once; cvnet: needed).
      detector: `*_detector.pt` of the release or of `python -m ames_jax.train --config=detector` (by
        default the release's, downloaded once).
      statistics: of sift, `sift_statistics.npz` of a data set (default: those shipped with the package).
      descriptors: the strongest kept of each image (default: sift 600, xfeat 500, others 700).
      max_side: longer side in pixels (default: sift at most 640, cvnet at most 1024, xfeat exactly 640, dinov2 exactly 770,
        its variants 364).
      dtype: compute type of a network, "float32" (default) or "bfloat16".
      batch: images per device at a time of a network (default: 1 on CPU, 8 elsewhere).
      block: of a DINOv2 network, tokens are taken after so many blocks (default: all).
      global_backbone: keywords of this function for the backbone whose global descriptor is taken instead (default: its
        own; of xfeat, which has none, that of dinov2_small_pooled).

    Raises:
      UserError: an unknown name, an option that the backbone does not have, or a file that is missing or not right.
    """
    given = {"weights": weights, "detector": detector, "statistics": statistics, "block": block}
    given |= {"descriptors": descriptors, "max_side": max_side, "dtype": dtype, "batch": batch}
    options = {key: value for key, value in given.items() if value is not None}
    backbone = class_of(name, "--backbone")
    for key, most in MOST.items():
        if not 1 <= options.get(key, 1) <= most:
            raise UserError(f"--{key.replace('_', '-')}={options[key]}: expected 1 to {most:,}")
    if options.get("dtype", "float32") not in ("float32", "bfloat16"):
        raise UserError(f"--dtype={dtype}: expected float32 or bfloat16")
    known = _options_of(backbone)
    for key in options.keys() - set(known):
        raise UserError(f"--{key.replace('_', '-')}: the backbone {name} has no such option; it has {', '.join(known)}")
    local = backbone.open(**options)
    if ":" in name and (local.name, local.settings.get("name")) != (name, name):
        raise UserError(
            f"--backbone={name}: its name is {local.name!r}, in its settings {local.settings.get('name')!r}; both must be "
            f"{name!r}, by which its queries are extracted later"
        )
    if global_backbone is None and local.global_width:
        return local
    other = dict(global_backbone or {"name": DEFAULT_GLOBAL})
    if getattr(class_of(other["name"], "--global"), "global_width", None) == 0:
        raise UserError(f"--global={other['name']}: it has no global descriptor; take another")
    return JointBackbone(local, open_backbone(**other))


class JointBackbone:
    """Local descriptors of one backbone with the global one of another; see `Backbone`. Each runs once per image."""

    def __init__(self, local: Backbone, other: Backbone) -> None:
        self._local, self._global = local, other
        self.name, self.width, self.descriptors = local.name, local.width, local.descriptors
        self.global_width, self.global_name = other.global_width, other.global_name
        self.together = min(local.together, other.together)

    @property
    def settings(self) -> dict[str, Any]:
        """Those of the local backbone, with the other's as `global_backbone`."""
        return {**self._local.settings, "global_backbone": self._global.settings}

    @property
    def seen(self) -> dict[str, Any]:
        """That of the local backbone, with the other's as `global`."""
        return {**getattr(self._local, "seen", {}), "global": getattr(self._global, "seen", {})}

    def fit(self, image: np.ndarray) -> np.ndarray:
        """As it is: the two read it in sizes of their own."""
        return image

    def extract(self, images: Sequence[np.ndarray]) -> list[ExtractedImage]:
        """See `Backbone.extract`."""
        pairs = zip(self._local.extract(images), self._global.extract(images), strict=True)
        return [ExtractedImage(local.local, other.global_descriptor) for local, other in pairs]


def _options_of(backbone: type[Backbone]) -> list[str]:
    """Keywords of the class's `open`, and those that it passes on to its parents'."""
    names: list[str] = []
    for parent in backbone.__mro__:
        if "open" in vars(parent):
            parameters = inspect.signature(parent.open).parameters.values()
            names += [p.name for p in parameters if p.kind is p.KEYWORD_ONLY]
            if not any(p.kind is p.VAR_KEYWORD for p in parameters):
                break
    return names


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
    _check_settings(Path(root) / "about.json", settings)
    return open_backbone(**_with_files(settings, Path(root)))


def _check_settings(file: Path, settings: Any) -> None:
    """Raises UserError, naming the file, unless these are keywords of `open_backbone`."""
    if not isinstance(settings, Mapping) or not isinstance(settings.get("name"), str):
        raise UserError(f"{file}: 'extraction' names no backbone; extract the images again")
    known = inspect.signature(open_backbone).parameters
    for key, value in settings.items():
        whole = key in ("descriptors", "max_side", "batch", "block")
        if key == "global_backbone" and value is not None:
            _check_settings(file, value)
        elif key not in known or not (value is None or type(value) is (int if whole else str)):
            raise UserError(f"{file}: 'extraction' has {key} = {str(value)[:60]!r}; extract the images again")


def _with_files(settings: Mapping[str, Any], root: Path) -> dict[str, Any]:
    """Settings whose files are paths again."""
    found = {**settings, **{key: Path(settings[key]) for key in ("weights", "detector") if settings.get(key)}}
    if settings["name"] == "sift":
        found["statistics"] = root / STATISTICS_FILE
    if settings.get("global_backbone"):
        found["global_backbone"] = _with_files(settings["global_backbone"], root)
    return found


def open_network(name: str, weights: str, dtype: str, side: int) -> network.FeatureMap:
    """The network of a backbone for square images, on which a detector is trained; raises UserError as `open_backbone`."""
    backbone = class_of(name, "--config.backbone")
    if not issubclass(backbone, network.NetworkBackbone):
        networks = [other for other, read in BACKBONES.items() if issubclass(read(), network.NetworkBackbone)]
        raise UserError(f"--config.backbone={name}: a detector is trained for {' or '.join(networks)}")
    return backbone.feature_map(backbone.read_network(Path(weights) if weights else None, dtype), side)


def class_of(name: str, flag: str) -> type[Backbone]:
    """The class of a backbone, or `package.module:Class`; raises UserError, naming the flag, for an unknown one."""
    if ":" in name:
        return _class_elsewhere(name, flag)
    if name not in BACKBONES:
        raise UserError(f"{flag}={name}: expected one of {', '.join(BACKBONES)}{did_you_mean(name, BACKBONES)}")
    return BACKBONES[name]()


def _class_elsewhere(name: str, flag: str) -> type[Backbone]:
    """The class `package.module:Class`."""
    found = named_class(name, flag)
    missing = [key for key in ("open", "fit", "extract") if not callable(getattr(found, key, None))]
    if missing:
        raise UserError(f"{flag}={name}: a backbone needs {', '.join(missing)}; see ames_jax/extraction/backbone.py")
    return found
