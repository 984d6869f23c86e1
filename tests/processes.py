"""Processes that tests start."""

import os
import subprocess
import sys
from pathlib import Path

import jax

TESTS = Path(__file__).parent


def environment(devices=1):
    """Of a process with so many fake devices that shares the tests' compiled programs."""
    flags = f"--xla_force_host_platform_device_count={devices} {os.environ['ONE_DEVICE_XLA_FLAGS']}"
    return {
        **os.environ, "XLA_FLAGS": flags, "PYTHONPATH": f"{TESTS.parent}:{TESTS}", "PYTHONWARNINGS": "default",
        "JAX_COMPILATION_CACHE_DIR": jax.config.jax_compilation_cache_dir,
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }  # fmt: skip


def begin(script, *arguments, devices=1):
    """Starts a script of this folder; what it prints can be read."""
    command = [sys.executable, str(TESTS / script), *map(str, arguments)]
    return subprocess.Popen(
        command, env=environment(devices), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
