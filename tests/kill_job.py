"""Kills a training run again and again, and lets another live: kill_job.py DATA DIRECTORY STEPS KILLS

Everything is imported once; each life is a fork from here, taken before JAX starts a backend or a thread.
"""

import os
import random
import signal
import sys
import time
from pathlib import Path

import orbax.checkpoint  # noqa: F401 (imported before the forks, not in each of them)
import small_run
import tensorboardX  # noqa: F401


def life(data, directory, steps, checkpoint_every):
    """Forks a process that trains; returns its id."""
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        small_run.train(data, directory, steps, validate_every=1000, checkpoint_every=checkpoint_every)
        code = 0
    finally:
        os._exit(code)


def logged(directory):
    path = directory / "metrics.jsonl"
    return path.stat().st_size if path.exists() else 0


def kill(child, directory, early, rng):
    """Waits for a random moment, while the run starts (`early`) or trains and saves, and kills it if it still lives."""
    before = logged(directory)
    while not early and logged(directory) < before + 300:
        if os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT):
            return
        time.sleep(0.01)
    time.sleep(rng.uniform(0, 0.5 if early else 0.12))
    os.kill(child, signal.SIGKILL)


def main():
    data, directory, steps, kills = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
    rng = random.Random(0)
    for killed in range(kills):
        child = life(data, directory / "killed", steps, 2)
        kill(child, directory / "killed", killed % 5 == 4, rng)
        if os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) != -signal.SIGKILL:
            return f"life {killed} ended by itself"
    children = [life(data, directory / name, steps, 1000) for name in ("killed", "unbroken")]
    return max(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children)


if __name__ == "__main__":
    sys.exit(main())
