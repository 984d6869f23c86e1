"""Many processes as one program: their start, what they must agree on, and what one of them does for all.

`jax.distributed` connects them; everything here also holds for one process, where it costs nothing.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import platform
import socket
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from ml_collections import ConfigDict

import ames_jax
from ames_jax.runtime.cache import home
from ames_jax.runtime.command_line import flatten, is_among
from ames_jax.runtime.errors import UserError
from ames_jax.runtime.files import lock

# Settings in which processes may differ, by their exact names.
OWN = ("process", "distributed", "data_dir", "data.workers")
# A process that ends by an error lets the others go after this many seconds.
SHUTDOWN_SECONDS = 30


def start(config: ConfigDict) -> None:
    """Connects the processes, prints who this one is, and refuses hosts that run something else.

    Reads `distributed` ("auto": what Cloud TPU, GKE, SLURM or MPI tell, else one process; "off"; or HOST:PORT of process 0
    with `process` and `processes`) and `start_timeout` (seconds).

    Raises:
      UserError: settings that do not fit, or a process that runs another version or configuration than process 0.
    """
    _connect(config)
    local, everywhere = jax.local_device_count(), jax.device_count()
    index, count = jax.process_index(), jax.process_count()
    print(
        f"process {index} of {count} on {socket.gethostname()}: {local} {jax.devices()[0].device_kind} device(s) here, "
        f"{everywhere} in all (mesh data={everywhere}); jax {jax.__version__}",
        flush=True,
    )
    if count > 1:
        check_agreement(facts_of(config))


@contextlib.contextmanager
def alone(folder: Path) -> Iterator[None]:
    """In this block a folder is this run's alone; the processes of one run share it, and each does its own part.

    Raises UserError, naming the holder, where another run is at it.
    """
    with lock(folder, home()) if jax.process_count() == 1 else contextlib.nullcontext():
        yield


def _connect(config: ConfigDict) -> None:
    where, index, count = config.distributed, config.process, config.processes
    by_hand = where not in ("auto", "off")
    if where == "off":
        return
    if by_hand and (":" not in where or not 0 <= index < count):
        raise UserError(
            f"--config.distributed={where}: expected auto, off, or HOST:PORT of process 0 together with "
            f"--config.processes=N and --config.process=0 … N-1 (found processes {count}, process {index})"
        )
    options: dict[str, Any] = {"coordinator_address": where, "num_processes": count, "process_id": index}
    if not by_hand:
        options = {}
    with _deadline(config.start_timeout, f"process {index} of {count} at {where}" if by_hand else "this process"):
        try:
            jax.distributed.initialize(
                **options,
                cluster_detection_method="deactivate" if by_hand else None,
                initialization_timeout=int(2 * config.start_timeout + 60),
                shutdown_timeout_seconds=SHUTDOWN_SECONDS,
            )
        except ValueError as error:
            # No cluster that JAX knows: a laptop, or one machine with its GPUs.
            if by_hand or "should be defined" not in str(error):
                raise UserError(f"--config.distributed={where}: {error}") from error


@contextlib.contextmanager
def _deadline(seconds: float, who: str) -> Iterator[None]:
    """Ends the process with an error after `seconds`: JAX's own timeout aborts it with a stack of C++ frames."""

    def give_up() -> None:
        print(
            f"error: {who} waited {seconds:g} s for the other processes. Is the program running on every host? "
            "(gcloud … ssh needs --worker=all, srun one task per process.) Else: a firewall between the hosts, or another "
            "address, port or number of processes on one of them; --config.start_timeout waits longer",
            file=sys.stderr,
            flush=True,
        )
        os._exit(2)

    timer = threading.Timer(seconds, give_up)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def facts_of(config: ConfigDict) -> dict[str, str]:
    """Versions, a hash of our sources and the configuration: these must be equal in all processes."""
    package = Path(ames_jax.__file__).parent
    sources = hashlib.sha256()
    for path in sorted(package.rglob("*.py")):
        sources.update(path.relative_to(package).as_posix().encode() + path.read_bytes())
    facts = {f"--config.{key}": repr(value) for key, value in flatten(config).items() if not is_among(key, OWN)}
    versions = {"jax": jax.__version__, "python": ".".join(platform.python_version_tuple()[:2])}
    return {**versions, "ames_jax sources": sources.hexdigest()[:12], **facts}


def check_agreement(facts: dict[str, str]) -> None:
    """Raises UserError in every process, naming host and fact, where the facts of one differ from those of process 0."""
    told = gather_json({"host": socket.gethostname(), "facts": facts})
    first, faults = told[0]["facts"], []
    for index, one in enumerate(told):
        theirs = one["facts"]
        for key in sorted(first.keys() | theirs.keys()):
            if theirs.get(key) != first.get(key):
                faults.append(
                    f"{key} is {theirs.get(key)} in process {index} ({one['host']}), "
                    f"{first.get(key)} in process 0 ({told[0]['host']})"
                )
    if faults:
        more = f"; and {len(faults) - 5} more" if len(faults) > 5 else ""
        raise UserError(
            f"the processes do not run the same: {'; '.join(faults[:5])}{more}. "
            "Install the same versions on all hosts and give all the same command"
        )


def check_equal(digest: str, what: str) -> None:
    """Raises RuntimeError where the processes hold different digests of what must be equal; says so where they agree."""
    if jax.process_count() == 1:
        return
    told = gather_json(digest)
    if len(set(told)) > 1:
        raise RuntimeError(f"{what} differ between processes: {', '.join(told)}")
    say(f"all {len(told)} processes agree on {what} ({digest})")


def gather_json(value: Any) -> list[Any]:
    """The plain JSON of every process, in their order, in all processes."""
    text = np.frombuffer(json.dumps(value).encode(), np.uint8)
    lengths = np.atleast_1d(multihost_utils.process_allgather(np.int32(len(text))))
    padded = np.zeros(lengths.max(), np.uint8)
    padded[: len(text)] = text
    rows = np.atleast_2d(multihost_utils.process_allgather(padded))
    return [json.loads(row[:length].tobytes()) for row, length in zip(rows, lengths)]


def is_lead() -> bool:
    """True in the process that writes and reports for all."""
    # Asking JAX for the index starts its devices, which a program may not need (or not yet).
    return not jax.distributed.is_initialized() or jax.process_index() == 0


def say(text: str) -> None:
    """Prints in the lead process."""
    if is_lead():
        print(text, flush=True)


def wait_for_all(name: str) -> None:
    """Returns when every process is here; `name` tells the places apart."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(name)


@contextlib.contextmanager
def lead_first() -> Iterator[None]:
    """A block that the lead process goes through before the others, which find what it wrote.

    Raises UserError in the others where the lead process fails in it.
    """
    if not is_lead():
        if as_lead(np.int32(0)):
            raise UserError("process 0 stopped with an error; its output says which")
        yield
        return
    failed = 1
    try:
        yield
        failed = 0
    finally:
        as_lead(np.int32(failed))


def as_lead(tree: Any) -> Any:
    """The lead process's values (arrays, numbers) in all processes."""
    return tree if jax.process_count() == 1 else multihost_utils.broadcast_one_to_all(tree)


def own_share(count: int) -> np.ndarray:
    """int: which of `count` items this process works on; equal shares up to one."""
    return np.arange(jax.process_index(), count, jax.process_count())


def join_shares(own: np.ndarray, count: int) -> np.ndarray:
    """[count, …] in every process from the rows [len(own_share(count)), …] of each."""
    processes = jax.process_count()
    if processes == 1:
        return own
    padded = np.zeros((-(-count // processes), *own.shape[1:]), own.dtype)
    padded[: len(own)] = own
    gathered = multihost_utils.process_allgather(padded)
    return np.moveaxis(gathered, 0, 1).reshape(-1, *own.shape[1:])[:count]
