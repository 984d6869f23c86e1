"""Pure data parallelism: parameters on every device, batches split over one `data` axis."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import jax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

T = TypeVar("T")
BATCH_AXIS, EVERYWHERE = PartitionSpec("data"), PartitionSpec()


def data_mesh(devices: Sequence[jax.Device] | None = None) -> Mesh:
    """One `data` axis over `devices` (default: all devices of all processes).

    The axis type is Auto: Explicit, JAX's default, rejects joining a replicated token to sharded descriptors.
    """
    devices = list(devices) if devices is not None else jax.devices()
    return jax.make_mesh((len(devices),), ("data",), axis_types=(AxisType.Auto,), devices=devices)


def split_over(mesh: Mesh) -> NamedSharding:
    """The first axis split over the devices of a mesh."""
    return NamedSharding(mesh, BATCH_AXIS)


def on_all(mesh: Mesh) -> NamedSharding:
    """A copy on every device of a mesh."""
    return NamedSharding(mesh, EVERYWHERE)


def local_copy(tree: T) -> T:
    """Arrays that lie on every device, copied onto one device of this process."""
    return jax.tree.map(lambda a: jax.numpy.copy(a.addressable_data(0)), tree)


def over_shares(function: Callable[..., Any], mesh: Mesh | None, inputs: Any, outputs: Any) -> Callable[..., Any]:
    """`function` run by every device of the mesh on its own share; without a mesh, on everything.

    Left to itself the compiler would add gradients up between devices in the compute type, once per part of a batch. So
    each device differentiates its share, and `summed` says where, and in which type, shares meet.
    """
    if mesh is None:
        return function
    # What is equal on all devices comes from `summed` alone, so there is nothing for the check of that to find.
    return jax.shard_map(function, mesh=mesh, in_specs=inputs, out_specs=outputs, check_vma=False)


def summed(tree: T, mesh: Mesh | None) -> T:
    """Inside `over_shares`: the sum of every array over all devices."""
    return tree if mesh is None else jax.lax.psum(tree, "data")
