"""A command that is killed at any of its writes, and given again, ends with the bytes of an unbroken run and nothing else.

`AMES_JAX_KILLS=all` kills all commands of every_write_job.py.
"""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from every_write_job import COMMANDS
from processes import environment

TESTS = Path(__file__).parent


@pytest.mark.skipif(not shutil.which("cc"), reason="needs a C compiler")
def test_killed_at_every_write_it_ends_the_same(tmp_path):
    library = tmp_path / "stop_at_writes.so"
    subprocess.run(["cc", "-shared", "-fPIC", "-O1", "-o", library, TESTS / "stop_at_writes.c", "-ldl"], check=True)
    commands = list(COMMANDS) if os.environ.get("AMES_JAX_KILLS") == "all" else ["shards"]
    home = {**environment(), "LD_PRELOAD": str(library), "AMES_JAX_HOME": str(tmp_path / "home")}
    (tmp_path / "files").mkdir()
    done = subprocess.run(
        [sys.executable, TESTS / "every_write_job.py", tmp_path / "files", *commands],
        env=home, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-3000:]
    states = json.loads(done.stdout.splitlines()[-1])
    assert min(states.values()) >= 8, states
