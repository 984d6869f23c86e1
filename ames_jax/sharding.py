"""Pure data parallelism: parameters on every device, batches split over one `data` axis."""

from __future__ import annotations

from collections.abc import Sequence

import jax
from jax.sharding import AxisType, Mesh


def data_mesh(devices: Sequence[jax.Device] | None = None) -> Mesh:
    """One `data` axis over `devices` (default: all devices of all processes).

    The axis type is Auto: Explicit, JAX's default, rejects joining a replicated token to sharded descriptors.
    """
    devices = list(devices) if devices is not None else jax.devices()
    return jax.make_mesh((len(devices),), ("data",), axis_types=(AxisType.Auto,), devices=devices)
