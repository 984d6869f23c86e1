"""`python -m ames_jax.benchmark serve` on a small index: every answer is right, nothing is lost."""

from __future__ import annotations

import json

import processes
import pytest

from ames_jax import benchmark
from ames_jax.benchmarks import serving_speed

pytest.importorskip("fastapi")


def test_a_small_load(tmp_path, monkeypatch, capsys):
    for name, value in processes.environment().items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("AMES_JAX_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(benchmark.cache, "start", lambda: None)
    monkeypatch.setattr(serving_speed, "PICTURES", 4)
    sizes = ["--images=200", "--seconds=0.5", "--clients=2", "--budget=160B", "--shortlist=5", "--query-descriptors=10"]
    file = tmp_path / "figures.json"
    assert benchmark.main(["serve", *sizes, f"--json={file}"]) == 0
    assert "After SIGTERM 4 requests under way were answered, exit code 0" in " ".join(capsys.readouterr().out.split())
    facts = json.loads(file.read_text())
    assert [row["clients"] for row in facts["rows"]] == ["2", "4, changes"]
    assert facts["added"] >= 1
    for row in facts["rows"]:
        assert (row["errors"], row["wrong"], row["busy"]) == (0, 0, 0)
        assert row["answered"] > 0
