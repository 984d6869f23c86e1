"""Working processes do not outlive the one that they work for."""

import os
import signal
import subprocess
import sys
import time

CODE = """
import os, time
from ames_jax.runtime.cores import end_with_parent
if os.fork():
    time.sleep(60)
end_with_parent()
print(os.getpid(), flush=True)
time.sleep(60)
"""


def test_a_worker_ends_with_its_parent():
    with subprocess.Popen([sys.executable, "-c", CODE], stdout=subprocess.PIPE, text=True) as parent:
        worker = int(parent.stdout.readline())
        parent.send_signal(signal.SIGKILL)
        start = time.monotonic()
        assert parent.stdout.read() == ""  # until the worker has closed it, too
        assert time.monotonic() - start < 20
    assert worker != os.getpid()
