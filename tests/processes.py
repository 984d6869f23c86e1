"""Processes that tests start."""

import os
import subprocess
import sys
from pathlib import Path

TESTS = Path(__file__).parent


def environment(devices=1):
    """Of a process with so many fake devices; like every process of a test it shares the compiled programs."""
    flags = f"--xla_force_host_platform_device_count={devices} {os.environ['ONE_DEVICE_XLA_FLAGS']}"
    paths = f"{TESTS.parent}:{TESTS}"
    return {**os.environ, "XLA_FLAGS": flags, "PYTHONPATH": paths, "PYTHONWARNINGS": "default"}


def begin(script, *arguments, devices=1):
    """Starts a script of this folder; what it prints can be read."""
    command = [sys.executable, str(TESTS / script), *map(str, arguments)]
    return subprocess.Popen(
        command, env=environment(devices), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
