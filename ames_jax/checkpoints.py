"""Checkpoints of a run (orbax), and finished models: a directory with one file, `model.safetensors`."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from pathlib import Path
from typing import Any

import jax
import numpy as np
from etils import epath
from flax import nnx
from safetensors import SafetensorError
from safetensors.numpy import load, save

from ames_jax.errors import UserError
from ames_jax.paths import is_remote, path_of, write_whole
from ames_jax.similarity import AMES, AMESConfig
from ames_jax.training import TrainState

MODEL_FILE = "model.safetensors"


class RunCheckpoints:
    """The last checkpoints of a training run: parameters, optimizer, step, data position and RNG.

    Saving runs in the background and a checkpoint appears whole or not at all, so a killed process leaves the one before.

    Args:
      keep: newest checkpoints that stay.
      writes: False for reading while another process may be writing.
    """

    def __init__(self, directory: Path, keep: int = 2, writes: bool = True):
        import orbax.checkpoint as ocp

        self._ocp = ocp
        options = ocp.CheckpointManagerOptions(max_to_keep=keep, create=writes, cleanup_tmp_directories=writes)
        self.directory = directory if is_remote(directory) else epath.Path(directory).resolve()
        try:
            self._manager = ocp.CheckpointManager(self.directory, options=options)
        except OSError as error:
            raise UserError(f"{directory}: cannot hold checkpoints: {error}") from error

    def latest(self) -> int | None:
        """The step of the newest whole checkpoint, or None."""
        return self._manager.latest_step()

    def save(self, step: int, state: TrainState, position: dict[str, Any], wait: bool = False) -> None:
        """Saves in the background (`wait`: until it is on disk). `position` is plain JSON: data position, seed.

        Raises:
          UserError: the disk is full or not writable (perhaps from the save before); older checkpoints stay good.
        """
        args = self._ocp.args.Composite(
            state=self._ocp.args.StandardSave(_plain(state)), position=self._ocp.args.JsonSave(position)
        )
        try:
            self._manager.save(step, args=args)
            if wait:
                self._manager.wait_until_finished()
        except Exception as error:
            raise self._failure(step, error) from error

    def restore(self, like: TrainState) -> tuple[TrainState, dict[str, Any]]:
        """The newest checkpoint, with the shapes and shardings of `like`, and its position.

        Raises:
          UserError: the checkpoint is of another model.
        """
        step, wanted = self.latest(), jax.tree.map(_abstract, _plain(like))
        self._refuse_another_model(step, wanted)
        args = self._ocp.args.Composite(
            state=self._ocp.args.StandardRestore(wanted), position=self._ocp.args.JsonRestore()
        )
        found = self._manager.restore(step, args=args)
        return _refill(like, found["state"]), found["position"]

    def _refuse_another_model(self, step: int, wanted: dict[str, jax.ShapeDtypeStruct]) -> None:
        # Orbax would find out as well, but after it has started to read, and in words of its own.
        stored = {key: tuple(value.shape) for key, value in self._stored(step).items()}
        differs = [
            f"{stored.get(key)} instead of {tuple(array.shape)}"
            for key, array in wanted.items()
            if stored.get(key) != tuple(array.shape)
        ]
        if differs or len(stored) != len(wanted):
            raise UserError(
                f"{self.directory / str(step)}: the checkpoint is of another model ({len(stored)} arrays, expected "
                f"{len(wanted)}; {len(differs)} of another shape, e.g. {differs[0] if differs else '-'}); "
                "use another --workdir, or delete the checkpoint to start again"
            )

    def _stored(self, step: int) -> dict[str, Any]:
        """Shapes and dtypes of the arrays of a checkpoint."""
        handlers = {"state": self._ocp.StandardCheckpointHandler(), "position": self._ocp.JsonCheckpointHandler()}
        with self._ocp.CheckpointManager(self.directory, item_handlers=handlers) as manager:
            return manager.item_metadata(step)["state"]

    def model(self, step: int | None = None) -> tuple[AMES, int]:
        """The parameters alone of a checkpoint (default: the newest), on one device whatever it was saved on; its step.

        Raises:
          UserError: there is no such checkpoint.
        """
        steps = self._manager.all_steps()
        if not steps or step not in (None, *steps):
            raise UserError(f"{self.directory}: no checkpoint{'' if step is None else f' of step {step}'}; has {steps}")
        step = max(steps) if step is None else step
        device = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
        like = {k: jax.ShapeDtypeStruct(v.shape, v.dtype, sharding=device) for k, v in self._stored(step).items()}
        args = self._ocp.args.Composite(
            state=self._ocp.args.StandardRestore(like), position=self._ocp.args.JsonRestore()
        )
        found = self._manager.restore(step, args=args)
        config = AMESConfig.from_dict(found["position"]["model"])
        graph, params = nnx.split(nnx.eval_shape(lambda: AMES(config, nnx.Rngs(0))))
        # Parameters are the first field of a training state, so its first arrays.
        leaves = [found["state"][key] for key in sorted(found["state"])][: len(jax.tree.leaves(params))]
        return nnx.merge(graph, jax.tree.unflatten(jax.tree.structure(params), leaves)), step

    def close(self) -> None:
        """Waits for a save in progress; raises as `save` does."""
        try:
            self._manager.wait_until_finished()
        except Exception as error:
            raise self._failure(self.latest(), error) from error
        finally:
            self._manager.close()

    def _failure(self, step: int | None, error: Exception) -> UserError:
        kept = self._manager.latest_step()
        good = f"the checkpoint of step {kept} is good" if kept is not None else "there is no earlier checkpoint"
        reason = " ".join(str(error).split())[:200]
        return UserError(
            f"{self.directory}: could not write the checkpoint of step {step}: {reason}; {good}. "
            "Free some space and run the same command again"
        )


def _abstract(array: jax.Array) -> jax.ShapeDtypeStruct:
    """Shape, dtype and sharding of an array, for orbax to restore into."""
    return jax.ShapeDtypeStruct(array.shape, array.dtype, sharding=array.sharding)


def _plain(state: TrainState) -> dict[str, Any]:
    """A training state as a list of arrays in tree order: independent of the classes that hold them."""
    return {f"{i:04d}": leaf for i, leaf in enumerate(jax.tree.leaves(state))}


def _refill(like: TrainState, plain: dict[str, Any]) -> TrainState:
    return jax.tree.unflatten(jax.tree.structure(like), [plain[key] for key in sorted(plain)])


def save_model(model: AMES, directory: Path, facts: dict[str, Any] | None = None) -> Path:
    """Writes a model directory and returns it; an older model there is replaced in one step.

    Args:
      facts: plain JSON that is kept beside the configuration (data set, step, validation mAP, …).

    Raises:
      UserError: it cannot be written.
    """
    directory = path_of(directory)
    metadata = {"config": json.dumps(dataclasses.asdict(model.config)), "facts": json.dumps(facts or {})}
    try:
        directory.mkdir(parents=True, exist_ok=True)
        write_whole(directory / MODEL_FILE, save(weights_of(model), metadata))
    except (OSError, SafetensorError) as error:
        raise UserError(f"{directory}: cannot write the model: {error}") from error
    return directory


def weights_of(model: AMES) -> dict[str, np.ndarray]:
    """Our names ("layers/0/expand/kernel", …) → float32 arrays."""
    flat = nnx.to_flat_state(nnx.state(model, nnx.Param))
    return {"/".join(map(str, path)): np.asarray(variable[...]) for path, variable in flat}


def model_fingerprint(model: AMES) -> str:
    """A hash of the model's shape and weights (32 hexadecimal digits)."""
    digest = hashlib.sha256(repr(model.config).encode())
    for name, weight in sorted(weights_of(model).items()):
        digest.update(name.encode())
        digest.update(np.ascontiguousarray(weight).tobytes())
    return digest.hexdigest()[:32]


def facts_of(directory: Path) -> dict[str, Any]:
    """The facts that were saved with a model; raises UserError where there is none."""
    return json.loads(_metadata(path_of(directory) / MODEL_FILE)["facts"])


def read_model(directory: Path) -> AMES:
    """The model in a model directory; raises UserError naming the file and every weight that is missing or does not fit."""
    path = path_of(directory) / MODEL_FILE
    config = AMESConfig.from_dict(json.loads(_metadata(path)["config"]))
    return model_of(config, load(path.read_bytes()), str(path))


def _metadata(path: Path) -> dict[str, str]:
    """What stands in the header of a safetensors file: its length in 8 bytes, then JSON."""
    try:
        with path.open("rb") as file:
            header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
        metadata = header.get("__metadata__", {})
    except (OSError, ValueError, OverflowError, MemoryError) as error:
        raise UserError(f"{path}: cannot be read as a model: {error}") from error
    if "config" not in metadata:
        raise UserError(f"{path}: holds weights without a configuration; it was not written by ames_jax")
    return metadata


def model_of(config: AMESConfig, weights: dict[str, np.ndarray], name: str) -> AMES:
    """A model from weights under our names; raises UserError listing all that does not fit."""
    graph, state = nnx.split(nnx.eval_shape(lambda: AMES(config, nnx.Rngs(0))))
    slots = {"/".join(map(str, path)): (path, variable) for path, variable in nnx.to_flat_state(state)}
    faults = [f"missing {key}" for key in slots.keys() - weights.keys()]
    faults += [f"unknown {key}" for key in weights.keys() - slots.keys()]
    for key in slots.keys() & weights.keys():
        if slots[key][1].shape != weights[key].shape:
            faults.append(f"{key} has shape {weights[key].shape}, expected {slots[key][1].shape}")
    if faults:
        raise UserError(f"{name}: the weights do not fit the model: " + "; ".join(sorted(faults)))
    filled = [(path, variable.replace(jax.numpy.asarray(weights[key]))) for key, (path, variable) in slots.items()]
    return nnx.merge(graph, nnx.from_flat_state(filled))


def find_model(directory: Path) -> Path:
    """The model directory in a run directory (or the directory itself)."""
    places = [directory, directory / "best", *(directory / role / "best" for role in ("student", "teacher"))]
    for place in places:
        if (place / MODEL_FILE).is_file():
            return place
    raise UserError(f"{directory}: holds no model (expected {MODEL_FILE}, or the workdir of a finished training run)")
