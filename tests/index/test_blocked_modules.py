"""Indexing and searching without the modules that Windows lacks."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

PROGRAM = """
import sys
import faiss, jax, flax.nnx  # each as on its own system
for name in sys.argv[1].split(","):
    sys.modules[name] = None
from ames_jax import search
for arguments in sys.argv[2:]:
    assert search.main(arguments.split("|")) == 0
"""


@pytest.mark.parametrize("blocked", ["fcntl,resource,pwd,grp,termios", "grain,array_record,tensorflow_datasets"])
def test_an_index_is_made_and_searched_without_them(blocked, made, tmp_path):
    """Only shards need array_record, so without it there is an index already."""
    index, picture = tmp_path / "index", min((made / "asked").rglob("*.*"))
    make = f"index|--descriptors={made / 'set'}|--model={made / 'model'}|--out={index}|--budget=80B"
    query = f"query|--index={index}|--image={picture}|--json={tmp_path / 'result.json'}"
    steps = [make, query] if "fcntl" in blocked else [query.replace(str(index), str(made / "index"))]
    environment = {**os.environ, "AMES_JAX_HOME": str(tmp_path), "XLA_FLAGS": os.environ["ONE_DEVICE_XLA_FLAGS"]}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, blocked, *steps], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "result.json").read_text())["queries"]
