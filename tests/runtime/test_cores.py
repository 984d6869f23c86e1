"""Working processes do not outlive the one that they work for."""

import multiprocessing
import os
import signal
import subprocess
import sys
import time

import pytest
from processes import TESTS

from ames_jax.runtime.cores import end_with_parent

CODE = """
import os, time
from ames_jax.runtime.cores import end_with_parent
if os.fork():
    time.sleep(60)
end_with_parent()
print(os.getpid(), flush=True)
time.sleep(60)
"""


LATE = """
import multiprocessing, time
from test_cores import begin_late
multiprocessing.get_context("spawn").Process(target=begin_late).start()
time.sleep(60)
"""


def begin_late():
    """A worker whose parent is killed while it is still importing."""
    print(os.getpid(), flush=True)
    while multiprocessing.parent_process().is_alive():
        time.sleep(0.05)
    end_with_parent()
    time.sleep(60)


@pytest.mark.parametrize("code", [CODE, LATE])
def test_a_worker_ends_with_its_parent(code):
    environment = {**os.environ, "PYTHONPATH": f"{TESTS.parent}:{TESTS}:{TESTS}/runtime"}
    command = [sys.executable, "-c", code]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as parent:
        worker = int(parent.stdout.readline())
        parent.send_signal(signal.SIGKILL)
        start = time.monotonic()
        assert parent.stdout.read() == ""  # until the worker has closed it, too
        assert time.monotonic() - start < 20
    assert worker != os.getpid()
