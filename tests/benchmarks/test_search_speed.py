"""`python -m ames_jax.search plan`."""

import json

import pytest

from ames_jax import search
from ames_jax.benchmarks import flops, search_speed
from ames_jax.model.ames import AMESConfig
from ames_jax.runtime.errors import UserError

ASKED = {"images": 10**8, "budget": 1024, "shortlist": 100, "query_descriptors": 600, "dtype": "float32", "rate": 1e11}


def test_one_kilobyte_holds_64_binary_descriptors():
    found = search_speed.make_plan(**ASKED, model="dinov2_ames_dist")
    bits, floats = found.rows
    assert (bits["descriptors"], bits["image_bytes"], bits["descriptor_bytes"]) == (64, 1024, 16)
    assert bits["total_bytes"] == 10**8 * (1024 + 2)
    work = flops.shortlist(AMESConfig.named("dinov2_ames_dist"), 600, 64, 100, packed=True)
    assert bits["gflop"] == work / 1e9
    assert bits["milliseconds"] == pytest.approx(1e3 * work / 1e11 / search_speed.EXPECTED_SHARE)
    assert (floats["descriptors"], floats["descriptor_bytes"]) == (0, 1536)
    assert "gflop" not in floats


def test_full_precision_stores_tokens_which_are_not_projected_again():
    tokens, floats = search_speed.make_plan(**{**ASKED, "budget": 153_600}, model="dinov2_ames").rows
    assert (tokens["descriptors"], floats["descriptors"]) == (600, 100)
    config = AMESConfig.named("dinov2_ames")
    saved = flops.shortlist(config, 600, 600, 100) - 100 * flops.tokenizer(config, 600)
    assert tokens["gflop"] == saved / 1e9


def test_a_budget_below_one_descriptor_is_refused():
    with pytest.raises(UserError, match="--budget=15 B: one descriptor of dinov2_ames_dist alone takes 16 B"):
        search_speed.make_plan(**{**ASKED, "budget": 15}, model="dinov2_ames_dist")


@pytest.fixture
def planned(monkeypatch) -> list[dict]:
    """What the command line asks of `make_plan`, which here does nothing."""
    calls = []

    def make_plan(**asked):
        calls.append(asked)
        raise UserError("planned")

    monkeypatch.setattr(search_speed, "make_plan", make_plan)
    monkeypatch.setattr(search.cache, "start", lambda: None)
    return calls


@pytest.mark.parametrize(
    ("text", "size"), [("1KB", 1024), ("800", 800), ("800B", 800), ("1.5 kb", 1536), ("2MiB", 2**21), ("1e3", 1000)]
)
def test_sizes(planned, text, size):
    with pytest.raises(UserError, match="planned"):
        search.main(["plan", "--images=1e8", f"--budget={text}"])
    assert (planned[0]["images"], planned[0]["budget"]) == (10**8, size)


@pytest.mark.parametrize("text", ["", "KB", "0", "-1KB", "1 mile", "1e400"])
def test_what_is_not_a_size(planned, text):
    with pytest.raises(UserError, match=r"--budget.*expected a size such as 800B" if text else "--budget= is empty"):
        search.main(["plan", "--images=1e8", f"--budget={text}"])


@pytest.mark.parametrize("text", ["0", "1.5", "inf", "nan", "many"])
def test_what_is_not_a_count(planned, text):
    with pytest.raises(UserError, match="--images"):
        search.main(["plan", f"--images={text}", "--budget=1KB"])


def test_command_prints_and_writes(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(search_speed, "matmul_peak", lambda dtype: 1e11)
    monkeypatch.setattr(search.cache, "start", lambda: None)
    written = tmp_path / "plan.json"
    assert search.main(["plan", "--images=1e8", "--budget=1KB", "--json", str(written)]) == 0
    printed = capsys.readouterr().out
    assert "100,000,000 images, 1 KB each" in printed
    assert "bits (packed store)" in printed
    facts = json.loads(written.read_text())
    assert facts["rows"][0]["descriptors"] == 64
    assert facts["matmul_rate"] == 1e11
