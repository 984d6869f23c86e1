"""Checkpoints of a training run (orbax): what it goes on from after a kill, on any number of devices and hosts."""

from __future__ import annotations

import contextlib
import json
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
from etils import epath, epy
from flax import nnx

from ames_jax.model.kinds import Model, config_of, new_model
from ames_jax.runtime.errors import UserError
from ames_jax.runtime.paths import is_remote
from ames_jax.runtime.processes import is_lead
from ames_jax.runtime.progress import write
from ames_jax.training.step import TrainState

with epy.lazy_imports():  # takes seconds, and only runs and their conversion need it
    import orbax.checkpoint as ocp

WHOLE = ("state/_METADATA", "position/metadata")  # of the files of a step


class RunCheckpoints:
    """The last checkpoints of a training run: parameters, optimizer, step, data position and RNG.

    Saving runs in the background and a checkpoint appears whole or not at all, so a killed process leaves the one before.

    Args:
      keep: number of newest checkpoints that stay.
      writes: False for reading while another process may be writing.
    """

    def __init__(self, directory: Path, keep: int = 2, writes: bool = True):
        self.directory = directory if is_remote(directory) else epath.Path(directory).resolve()
        self._partial = self._partial_steps(remove=writes and is_lead())
        options = ocp.CheckpointManagerOptions(max_to_keep=keep, create=writes, cleanup_tmp_directories=writes)
        try:
            handlers = {"state": ocp.StandardCheckpointHandler(), "position": ocp.JsonCheckpointHandler()}
            self._manager = ocp.CheckpointManager(self.directory, options=options, item_handlers=handlers)
        except OSError as error:
            raise UserError(f"{directory}: cannot hold checkpoints: {error}") from error
        except Exception as error:  # of damaged metadata, which orbax reads of all steps
            raise UserError(
                f"{directory}: the _CHECKPOINT_METADATA of a step is damaged ({error}): delete that step to go on from the "
                "one before"
            ) from error

    def latest(self) -> int | None:
        """The step of the newest whole checkpoint, or None."""
        return max(self._steps(), default=None)

    def _steps(self) -> list[int]:
        return [step for step in self._manager.all_steps() if step not in self._partial]

    def _partial_steps(self, remove: bool) -> set[int]:
        """Steps whose folder lacks what cannot be done without, as an interrupted copy leaves it: told, and left out."""
        folders = self.directory.iterdir() if self.directory.exists() else ()
        partial = [
            folder
            for folder in folders
            if folder.name.isdigit() and not all((folder / name).exists() for name in WHOLE)
        ]
        for folder in partial:
            write(f"{folder}: no whole checkpoint; it is {'removed' if remove else 'left out'}")
            if remove:
                folder.rmtree()
        return {int(folder.name) for folder in partial}

    def save(self, step: int, state: TrainState, position: dict[str, Any], wait: bool = False) -> None:
        """Saves in the background (`wait`: until it is on disk). `position` is plain JSON: data position, seed.

        Raises:
          UserError: the disk is full or not writable (perhaps from the save before); older checkpoints stay good.
        """
        kept = {"position": position, "crc32": _crc32(_plain(state), position)}
        self._partial.discard(step)
        args = ocp.args.Composite(state=ocp.args.StandardSave(_plain(state)), position=ocp.args.JsonSave(kept))
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
        step = self.latest()
        wanted = {key: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=a.sharding) for key, a in _plain(like).items()}
        self._refuse_another_model(step, wanted)
        found = self._read(step, wanted)
        leaves = [found["state"][key] for key in sorted(found["state"])]
        return jax.tree.unflatten(jax.tree.structure(like), leaves), found["position"]

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

    def model(self, step: int | None = None) -> tuple[Model, int]:
        """The parameters alone of a checkpoint (default: the newest), on one device whatever it was saved on; its step.

        Raises:
          UserError: there is no such checkpoint.
        """
        steps, wanted = self._steps(), "" if step is None else f" of step {step}"
        if not steps or step not in (None, *steps):
            raise UserError(f"{self.directory}: no checkpoint{wanted}; has {steps}")
        step = max(steps) if step is None else step
        device = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
        like = {k: jax.ShapeDtypeStruct(v.shape, v.dtype, sharding=device) for k, v in self._stored(step).items()}
        found = self._read(step, like)
        config = config_of(found["position"]["model"])
        graph, params = nnx.split(nnx.eval_shape(lambda: new_model(config, nnx.Rngs(0))))
        # Parameters are the first field of a training state, so its first arrays.
        leaves = [found["state"][key] for key in sorted(found["state"])][: len(jax.tree.leaves(params))]
        return nnx.merge(graph, jax.tree.unflatten(jax.tree.structure(params), leaves)), step

    def _read(self, step: int, like: dict[str, jax.ShapeDtypeStruct]) -> Any:
        args = ocp.args.Composite(state=ocp.args.StandardRestore(like), position=ocp.args.JsonRestore())
        with self._damage_told(step):
            found = self._manager.restore(step, args=args)
            kept = found["position"]
            # Earlier versions kept the checksum among the rest, or none.
            expected = kept["crc32"] if "position" in kept else kept.pop("crc32", None)
            position = kept.get("position", kept)
            if position["step"] != step:
                raise ValueError(f"the position is of step {position['step']}")
        if expected is not None and _crc32(found["state"], position) not in (None, expected):
            raise UserError(f"{self._damaged(step)} (its checksum is wrong)")
        return {"state": found["state"], "position": position}

    def _stored(self, step: int) -> dict[str, Any]:
        """Shape and dtype of every array of a checkpoint."""
        with self._damage_told(step):
            return dict(self._manager.item_metadata(step)["state"].items())

    @contextlib.contextmanager
    def _damage_told(self, step: int) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # a damaged file can fail in any part of orbax
            raise UserError(f"{self._damaged(step)} ({' '.join(str(error).split())[:200]})") from error

    def _damaged(self, step: int) -> str:
        return f"{self.directory / str(step)}: the checkpoint is damaged: delete it to go on from the one before"

    def close(self) -> None:
        """Waits for a save in progress; raises as `save` does."""
        try:
            self._manager.wait_until_finished()
        except Exception as error:
            raise self._failure(self.latest(), error) from error
        finally:
            self._manager.close()

    def _failure(self, step: int | None, error: Exception) -> UserError:
        kept = self.latest()
        good = f"the checkpoint of step {kept} is good" if kept is not None else "there is no earlier checkpoint"
        reason = " ".join(str(error).split())[:200]
        return UserError(
            f"{self.directory}: could not write the checkpoint of step {step}: {reason}; {good}. "
            "Free some space and run the same command again"
        )


def _plain(state: TrainState) -> dict[str, Any]:
    """A training state as a list of arrays in tree order: independent of the classes that hold them."""
    return {f"{i:04d}": leaf for i, leaf in enumerate(jax.tree.leaves(state))}


def _crc32(plain: dict[str, jax.Array], position: dict[str, Any]) -> int | None:
    """A checksum of all values and of the position; None where no process holds them all."""
    if not all(array.is_fully_replicated for array in plain.values()):
        return None
    value = zlib.crc32(json.dumps(position, sort_keys=True).encode())
    for key in sorted(plain):
        value = zlib.crc32(np.ascontiguousarray(plain[key].addressable_data(0)), value)
    return value
