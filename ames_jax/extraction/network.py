"""A frozen network as a backbone: batches on all devices, several scales, the strongest features of all.

A detector says which features are strong; without one, those are whose cosine with the image's global descriptor is large.
"""

from __future__ import annotations

import dataclasses
import functools
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import NamedSharding, PartitionSpec

from ames_jax.descriptors import DescriptorSet
from ames_jax.extraction.backbone import ExtractedImage, facts_seen
from ames_jax.extraction.detector import Detector, detector_of, strongest, unit_length
from ames_jax.extraction.network_weights import read_weights
from ames_jax.extraction.vlad import normalised
from ames_jax.runtime.cache import ADDRESSES, fetch_file
from ames_jax.runtime.cores import refuse_fork
from ames_jax.runtime.devices import data_mesh

# ImageNet's, RGB.
MEAN, DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
# Images per device at a time: more gain nothing on CPU.
PER_DEVICE = {"cpu": 1}
PER_ACCELERATOR = 8

Arrays = dict[str, Any]


class NetworkBackbone:
    """See `Backbone`; `scale` of a descriptor is the number of its scale, as in the release.

    A subclass has, beside `name`, `global_name`, `default_side` and `fit`:
      weights_file(path or None): the given file of its authors, or the downloaded one; raises UserError.
      read_network(path or None, dtype): the network in it; raises UserError.
      widths(network): values of a local and of the global descriptor.
      inputs(image, scale): arrays of a fitted image at a scale, padded to one of few shapes. Among them, for the P
        positions of the feature map, `valid` bool [P], and `xy` float32 [P, 2], centres as a share of the image's size.
      features(network, batch): of stacked inputs, the map float32 [B, P, C] and global descriptors [B, G]; static, pure.
      squares(network, side): a pure function from images uint8 [B, side, side, 3] to a batch for `features`; static.
    """

    name: str
    global_name: str
    default_side: int
    channels = "RGB"  # their order, as the network reads them
    scales: tuple[float, ...] = (1.0,)
    released_detector = True  # whether the release has a detector for it, the default

    @classmethod
    def open(
        cls,
        *,
        weights: Path | None = None,
        detector: Path | None = None,
        descriptors: int = 700,
        max_side: int | None = None,
        dtype: str = "float32",
        batch: int | None = None,
    ) -> NetworkBackbone:
        """Reads both networks; raises UserError where a file cannot be had or does not fit."""
        own = cls.weights_file(weights)
        network = cls.read_network(own, dtype)
        weigher = cls.read_detector(detector)
        side = max_side or cls.default_side
        backbone = cls(network, weigher, descriptors=descriptors, max_side=side, batch=batch)
        files = {"weights": weights and str(weights), "detector": detector and str(detector)}
        backbone.settings |= {**files, "dtype": dtype}
        backbone.files = {"weights": own, "detector": weigher and cls.detector_file(detector)}
        return backbone

    @property
    def seen(self) -> dict[str, Any]:
        """See `Backbone`."""
        return facts_seen(self.max_side, self.channels, self.files)

    @classmethod
    def read_detector(cls, path: Path | None) -> Detector | None:
        """The given file, or the release's, downloaded once; None where the release has none for this network."""
        if path is None and not cls.released_detector:
            return None
        file = cls.detector_file(path)
        return detector_of(read_weights(file), str(file))

    @classmethod
    def detector_file(cls, path: Path | None) -> Path:
        """The given file, or the release's, downloaded once."""
        return path or fetch_file(f"{cls.name}_detector.pt", ADDRESSES, read_weights)

    def __init__(
        self,
        network: nnx.Module,
        detector: Detector | None,
        *,
        descriptors: int,
        max_side: int,
        batch: int | None = None,
    ) -> None:
        """batch: images (of one scale) per device at a time; by default 1 on CPU, 8 elsewhere."""
        self.width, self.global_width = self.widths(network)
        self.descriptors, self.max_side = descriptors, max_side
        self.files: dict[str, Path | None] = {}
        self.settings: dict[str, Any] = {"name": self.name, "descriptors": descriptors, "max_side": max_side}
        graph, parameters = nnx.split((network, detector))
        mesh = data_mesh(jax.local_devices())
        self._process, self._devices = os.getpid(), mesh.size
        self._most = mesh.size * (batch or PER_DEVICE.get(jax.default_backend(), PER_ACCELERATOR))
        self.together = max(16, 4 * self._most)
        self._split = NamedSharding(mesh, PartitionSpec("data"))
        self._parameters = jax.device_put(parameters, NamedSharding(mesh, PartitionSpec()))
        self._function = jax.jit(functools.partial(self._forward, graph))

    @classmethod
    def feature_map(cls, network: nnx.Module, side: int) -> FeatureMap:
        """The network for square images of one size; raises UserError where it does not take that size."""
        graph, parameters = nnx.split(network)
        batch_of = cls.squares(network, side)

        def features(parameters: Any, images: jax.Array) -> jax.Array:
            return cls.features(nnx.merge(graph, parameters), batch_of(images))[0]

        return FeatureMap(features, parameters, cls.widths(network)[0])

    def extract(self, images: Sequence[np.ndarray]) -> list[ExtractedImage]:
        """See `Backbone.extract`."""
        refuse_fork(self._process, f"the backbone {self.name}")
        fitted = [self.fit(image) for image in images]
        results = self._run([self.inputs(image, scale) for image in fitted for scale in self.scales])
        count = len(self.scales)
        return [self._joined(results[i : i + count]) for i in range(0, len(results), count)]

    def _forward(self, graph: nnx.GraphDef, parameters: Any, batch: Arrays) -> Arrays:
        network, detector = nnx.merge(graph, parameters)
        features, global_descriptor = self.features(network, batch)
        # A pooled global descriptor begins with the class token, of a local one's width.
        weighed = detector(features) if detector else by_global(features, global_descriptor[:, : self.width])
        features, weights, rows = strongest(*weighed, batch["valid"], self.descriptors)
        xy = jnp.take_along_axis(batch["xy"], rows[..., None], 1)
        arrays = {"features": features, "weights": weights, "xy": xy}
        return {**arrays, "global_descriptor": unit_length(global_descriptor)}

    def _run(self, items: Sequence[Arrays]) -> list[Any]:
        """The result of every item, in NumPy and in their order; items of one shape are batched, on all devices."""
        groups: dict[tuple, list[int]] = {}
        for row, item in enumerate(items):
            groups.setdefault(tuple((name, array.shape) for name, array in item.items()), []).append(row)
        batches = [rows[i : i + self._most] for rows in groups.values() for i in range(0, len(rows), self._most)]
        results: list[Any] = [None] * len(items)
        running: tuple[list[int], Any] | None = None
        # The results of a batch are fetched while the device works on the next.
        for rows in [*batches, None]:
            started = None if rows is None else (rows, self._start([items[row] for row in rows]))
            if running is not None:
                found = jax.device_get(running[1])
                for place, row in enumerate(running[0]):
                    results[row] = jax.tree.map(lambda array, place=place: array[place], found)
            running = started
        return results

    def _start(self, items: Sequence[Arrays]) -> Any:
        size = self._devices
        while size < len(items):  # few sizes, so few programs: a group's rest is filled up with copies
            size = min(2 * size, self._most)
        full = [*items, *[items[-1]] * (size - len(items))]
        batch = {name: np.stack([item[name] for item in full]) for name in items[0]}
        return self._function(self._parameters, jax.device_put(batch, self._split))

    def _joined(self, scales: Sequence[Arrays]) -> ExtractedImage:
        """One image from its results at all scales: the strongest of all, and the mean of the global descriptors."""
        weights = np.concatenate([found["weights"] for found in scales])
        order = np.argsort(-weights, kind="stable")[: self.descriptors]
        order = order[weights[order] >= 0]
        features, xy = (np.concatenate([found[name] for found in scales])[order] for name in ("features", "xy"))
        scale = np.repeat(np.arange(len(scales), dtype=np.float32), [len(found["weights"]) for found in scales])[order]
        mean = np.mean([found["global_descriptor"] for found in scales], 0)
        local = DescriptorSet(features, None, xy, scale, weights[order])
        return ExtractedImage(local, mean if len(scales) == 1 else normalised(mean))


def by_global(features: jax.Array, global_descriptor: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Features [B, P, C] of length 1, and as weights [B, P] in 0..1 their cosine c with [B, C] as (1 + c) / 2."""
    features = unit_length(features)
    cosines = jnp.einsum("bpc,bc->bp", features, unit_length(global_descriptor), precision=jax.lax.Precision.HIGHEST)
    return features, (1 + cosines) / 2


@dataclasses.dataclass(frozen=True)
class FeatureMap:
    """A frozen network for square images: `features(parameters, images)`, uint8 [B, S, S, 3] → float32 [B, P, width]."""

    features: Callable[[Any, jax.Array], jax.Array]
    parameters: Any
    width: int


def standardised(pixels: jax.Array, bgr: bool = False) -> jax.Array:
    """RGB uint8 [..., 3] → float32, less ImageNet's mean and divided by its deviation; `bgr` reverses the channels."""
    axes = (None,) * (pixels.ndim - 1)
    mean, deviation = (jnp.array(values, jnp.float32)[axes] for values in (MEAN, DEVIATION))
    found = (pixels.astype(jnp.float32) / 255 - mean) / deviation
    return found[..., ::-1] if bgr else found
