"""Finished models: a directory with one file, `model.safetensors`, that holds weights, configuration and facts; and their
scores as a program that needs none of this package."""

from __future__ import annotations

import hashlib
import json
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
from flax import nnx
from safetensors import SafetensorError
from safetensors.numpy import load, save

from ames_jax.descriptors import DescriptorSet
from ames_jax.model.kinds import Config, Model, config_of, fields_of, new_model
from ames_jax.runtime.checksums import check, note_unchecked
from ames_jax.runtime.errors import UserError
from ames_jax.runtime.files import read_whole, write_file
from ames_jax.runtime.paths import path_of

MODEL_FILE = "model.safetensors"
LONGEST_HEADER = 100 << 20  # of a safetensors file, by its definition
PLATFORMS = ("cpu", "cuda", "tpu")  # of an exported scorer
METADATA = frozenset({"config", "facts", "crc32", "weights_crc32"})


def save_model(model: Model, directory: Path, facts: dict[str, Any] | None = None) -> Path:
    """Writes a model directory and returns it; an older model there is replaced in one step.

    Args:
      facts: plain JSON that is kept beside the configuration (data set, step, validation mAP, …).

    Raises:
      UserError: it cannot be written.
    """
    directory = path_of(directory)
    metadata = {"config": json.dumps(fields_of(model.config)), "facts": json.dumps(facts or {})}
    weights = weights_of(model)
    metadata["crc32"] = _crc32(metadata)
    metadata["weights_crc32"] = _weights_crc32(weights)
    try:
        directory.mkdir(parents=True, exist_ok=True)
        write_file(directory / MODEL_FILE, _ordered(save(weights, metadata)))
    except (OSError, SafetensorError) as error:
        raise UserError(f"{directory}: cannot write the model: {error}") from error
    return directory


def weights_of(model: Model) -> dict[str, np.ndarray]:
    """Our names ("layers/0/expand/kernel", …) → float32 arrays."""
    flat = nnx.to_flat_state(nnx.state(model, nnx.Param))
    return {"/".join(map(str, path)): np.asarray(variable[...]) for path, variable in flat}


def model_fingerprint(model: Model) -> str:
    """A hash of the model's shape and weights (32 hexadecimal digits)."""
    digest = hashlib.sha256(repr(model.config).encode())
    for name, weight in sorted(weights_of(model).items()):
        digest.update(name.encode())
        digest.update(np.ascontiguousarray(weight).tobytes())
    return digest.hexdigest()[:32]


def facts_of(directory: Path) -> dict[str, Any]:
    """The facts that were saved with a model; raises UserError where there is none."""
    return json.loads(_metadata(path_of(directory) / MODEL_FILE)["facts"])


def refuse_other_descriptors(
    name: str, facts: Mapping[str, Any], about: Mapping[str, Any], statistics: str | None
) -> None:
    """Raises UserError where a model with these facts was trained on descriptors that mean something else.

    about: about.json of the descriptors; statistics: fingerprint of their SIFT statistics, if any.
    """
    trained, found = facts.get("backbone"), about.get("backbone")
    if trained and found and trained != found:
        raise UserError(f"{name} was trained on {trained} descriptors, these are {found}; give another model")
    wanted = facts.get("statistics")
    if wanted and statistics and wanted != statistics:
        raise UserError(
            f"{name} was trained with other SIFT statistics ({wanted[:8]}) than these descriptors were extracted "
            f"with ({statistics[:8]}): their bits would mean something else. Extract them with "
            "--statistics=RUN/sift_statistics.npz of the model's run directory, or give another model"
        )


def read_model(directory: Path) -> Model:
    """The model in a model directory; raises UserError naming the file and every weight that is missing or does not fit."""
    path = path_of(directory) / MODEL_FILE
    metadata = _metadata(path)
    try:
        config = config_of(json.loads(metadata["config"]))
        weights = load(read_whole(path))
        if "weights_crc32" not in metadata:
            note_unchecked(path)
        if metadata.get("weights_crc32", _weights_crc32(weights)) != _weights_crc32(weights):
            raise UserError("the checksum of the weights is wrong: the file is damaged; copy it again")
        return model_of(config, weights)
    except (UserError, SafetensorError, ValueError, TypeError, KeyError) as error:
        raise UserError(f"{path}: {error}") from error


def _metadata(path: Path) -> dict[str, str]:
    """The metadata in the header of a safetensors file: its length in 8 bytes, then JSON."""
    check(path)
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(min(length, LONGEST_HEADER)))
        metadata = header.get("__metadata__", {})
        if "config" not in metadata:
            raise UserError(f"{path}: holds weights without a configuration; it was not written by ames_jax")
        if unknown := sorted(set(metadata) - METADATA):
            raise UserError(f"{path}: damaged, or of a later version: its metadata hold {unknown[0]!r}; copy it again")
        if metadata.get("crc32", _crc32(metadata)) != _crc32(metadata):
            raise UserError(f"{path}: the checksum of the configuration is wrong: the file is damaged; copy it again")
        if not isinstance(json.loads(metadata["config"]), dict) or not isinstance(json.loads(metadata["facts"]), dict):
            raise ValueError("config and facts must be JSON objects")
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(f"{path}: cannot be read as a model: {error}: copy it again") from error
    return metadata


def _ordered(content: bytes) -> bytes:
    """The same safetensors file with the keys of its header in order: equal models are equal files."""
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    text = json.dumps(header, sort_keys=True, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # the weights stay aligned
    return len(text).to_bytes(8, "little") + text + content[8 + length :]


def _crc32(metadata: Mapping[str, str]) -> str:
    return str(zlib.crc32(f"{metadata['config']}\n{metadata['facts']}".encode()))


def _weights_crc32(weights: Mapping[str, np.ndarray]) -> str:
    value = 0
    for name in sorted(weights):
        value = zlib.crc32(np.ascontiguousarray(weights[name]), zlib.crc32(name.encode(), value))
    return str(value)


def model_of(config: Config, weights: Mapping[str, np.ndarray], names: Mapping[str, str] | None = None) -> Model:
    """A model from weights under our names, or under the names of a layout in which kernels are transposed.

    Args:
      names: of that layout, by our names.

    Raises:
      UserError: one error that lists every missing, left-over and mis-shaped weight, and those with NaN or infinity.
    """
    graph, state = nnx.split(nnx.eval_shape(lambda: new_model(config, nnx.Rngs(0))))
    slots = {"/".join(map(str, path)): (path, variable) for path, variable in nnx.to_flat_state(state)}
    names = names or {name: name for name in slots}
    faults = [f"missing {name}" for name in names.values() if name not in weights]
    faults += [f"unknown {name}" for name in sorted(set(weights) - set(names.values()))]
    filled = []
    for ours, (path, variable) in slots.items():
        if names[ours] not in weights:
            continue
        turned = names[ours] != ours and ours.endswith("/kernel")
        array = np.asarray(weights[names[ours]], np.float32)
        shape = variable.shape[::-1] if turned else variable.shape
        if array.shape != shape:
            faults.append(f"{names[ours]} has shape {array.shape}, expected {shape}")
        elif not np.isfinite(array).all():
            faults.append(f"{names[ours]} holds NaN or infinity")
        filled.append((path, variable.replace(jax.numpy.asarray(array.T if turned else array))))
    if faults:
        raise UserError(f"the weights do not fit the model ({len(faults)} faults): " + "; ".join(faults))
    return nnx.merge(graph, nnx.from_flat_state(filled))


def find_model(directory: Path) -> Path:
    """The model directory in a run directory (or the directory itself)."""
    places = [directory, directory / "best", *(directory / role / "best" for role in ("student", "teacher"))]
    for place in places:
        if (place / MODEL_FILE).is_file():
            return place
    raise UserError(f"{directory}: holds no model (expected {MODEL_FILE}, or the workdir of a finished training run)")


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
