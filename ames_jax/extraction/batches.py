"""Many images of a few shapes through one network: grouped by shape, batched, on all local devices."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from ames_jax.runtime.devices import data_mesh

Item = dict[str, np.ndarray]
# Images a device at a time: more gain nothing on CPU.
PER_DEVICE = {"cpu": 1}
PER_ACCELERATOR = 8


class Batches:
    """Runs `function(parameters, batch)` on items, compiled once for each of their shapes and few batch sizes.

    Args:
      function: pure; takes a pytree and a dict of arrays [B, …], gives a pytree of arrays [B, …].
      parameters: kept on every device.
      per_device: items a device at a time; by default 1 on CPU, 8 elsewhere.

    Attributes:
      most: items of one batch at most.
    """

    def __init__(self, function: Callable[[Any, Any], Any], parameters: Any, per_device: int | None = None) -> None:
        mesh = data_mesh(jax.local_devices())
        self._devices = mesh.size
        self.most = mesh.size * (per_device or PER_DEVICE.get(jax.default_backend(), PER_ACCELERATOR))
        self._split = NamedSharding(mesh, PartitionSpec("data"))
        self._parameters = jax.device_put(parameters, NamedSharding(mesh, PartitionSpec()))
        self._function = jax.jit(function)

    def run(self, items: Sequence[Item]) -> list[Any]:
        """The result of every item, in NumPy and in their order; items of one shape are batched."""
        groups: dict[tuple, list[int]] = {}
        for row, item in enumerate(items):
            groups.setdefault(tuple((name, array.shape) for name, array in item.items()), []).append(row)
        batches = [rows[i : i + self.most] for rows in groups.values() for i in range(0, len(rows), self.most)]
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

    def _start(self, items: Sequence[Item]) -> Any:
        size = self._devices
        while size < len(items):  # few sizes, so few programs: a group's rest is filled up with copies
            size = min(2 * size, self.most)
        full = [*items, *[items[-1]] * (size - len(items))]
        batch = {name: np.stack([item[name] for item in full]) for name in items[0]}
        return self._function(self._parameters, jax.device_put(batch, self._split))
