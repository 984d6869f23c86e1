"""A model as one program without Python: StableHLO with the weights inside, for any number of images and descriptors."""

from __future__ import annotations

from pathlib import Path

import jax
import jax.export
import jax.numpy as jnp
from flax import nnx

from ames_jax.descriptors import DescriptorSet
from ames_jax.model.kinds import Model
from ames_jax.runtime.errors import UserError
from ames_jax.runtime.files import write_file, write_json

PLATFORMS = ("cpu", "cuda", "tpu")


def export_scorer(model: Model, platforms: tuple[str, ...] = PLATFORMS) -> jax.export.Exported:
    """The scores of one query against its shortlist, with symbolic sizes b (images), q and t (descriptors).

    `(query float32 [q, D], query_valid bool [q], database, database_valid bool [b, t]) → logits float32 [b]`; database is
    float32 [b, t, D], or of a binary model the stored bits, uint8 [b, t, bits / 8].
    """
    graph, params = nnx.split(model)
    width, bits = model.config.descriptor_width, model.config.bits

    def score(query: jax.Array, query_valid: jax.Array, database: jax.Array, database_valid: jax.Array) -> jax.Array:
        merged = nnx.merge(graph, params)
        shared = merged.share_query(DescriptorSet(query, query_valid))
        return merged.logits(shared, DescriptorSet(database, database_valid))

    b, q, t = jax.export.symbolic_shape("b, q, t")
    images = ((b, t, width), jnp.float32) if bits is None else ((b, t, bits // 8), jnp.uint8)
    inputs = [((q, width), jnp.float32), ((q,), bool), images, ((b, t), bool)]
    return jax.export.export(jax.jit(score), platforms=platforms)(*(jax.ShapeDtypeStruct(*shape) for shape in inputs))


def write_scorer(model: Model, path: Path) -> None:
    """Writes the exported scorer, to be read with `jax.export.deserialize`, and PATH.json, which lists its inputs.

    Raises UserError where they cannot be written.
    """
    exported = export_scorer(model)
    names = ("query", "query_valid", "database", "database_valid")
    facts = {
        "inputs": {name: f"{aval.dtype} {list(map(str, aval.shape))}" for name, aval in zip(names, exported.in_avals)},
        "output": "logits float32 ['b']; the similarity is their sigmoid",
        "platforms": list(exported.platforms),
        "stablehlo": f"portable bytecode, jax.export calling convention {exported.calling_convention_version}",
    }
    try:
        write_file(path, bytes(exported.serialize()))
        write_json(path.with_name(f"{path.name}.json"), facts)
    except OSError as error:
        raise UserError(f"{path} cannot be written: {error}") from error
