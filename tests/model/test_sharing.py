"""Models to share: the card and what lies beside the weights, and a stand-in of the hub."""

from __future__ import annotations

import json
import shutil
import sys
import types

import numpy as np
import pytest
from flax import nnx

from ames_jax.convert import main
from ames_jax.index.model_choice import ChosenModel
from ames_jax.model.ames import AMES, AMESConfig
from ames_jax.model.released import load_model
from ames_jax.model.weights import facts_of, save_model, weights_of
from ames_jax.runtime.errors import UserError

FACTS = {"data_set": "my pictures", "backbone": "sift", "validation_map": 61.23456, "lam": 0.5, "gamma": 0.2, "step": 7}


@pytest.fixture
def run(tmp_path):
    """A finished run: a model in best/, settings, a table, statistics."""
    shape = {"descriptor_width": 12, "model_width": 16, "heads": 1, "layers": 1, "feed_forward": 8, "bits": 16}
    save_model(AMES(AMESConfig(**shape), nnx.Rngs(3)), tmp_path / "run" / "best", FACTS)
    (tmp_path / "run" / "config.json").write_text('{"data.batch": 4}')
    (tmp_path / "run" / "results.md").write_text("### my pictures: mAP (%)\n")
    (tmp_path / "run" / "sift_statistics.npz").write_bytes(b"statistics")
    return tmp_path / "run"


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """`huggingface_hub` whose repositories are folders of `hub`."""
    root = tmp_path / "hub"

    class HfApi:
        def create_repo(self, repository, *, exist_ok):
            assert exist_ok
            (root / repository).mkdir(parents=True, exist_ok=True)

        def upload_folder(self, *, repo_id, folder_path, commit_message):
            shutil.copytree(folder_path, root / repo_id, dirs_exist_ok=True)

    def snapshot_download(repository, *, allow_patterns):
        if not (root / repository).is_dir():
            raise OSError("401 Client Error: no such repository\nmore lines")
        assert {path.name for path in (root / repository).iterdir()} <= set(allow_patterns)
        return str(root / repository)

    stand_in = types.SimpleNamespace(HfApi=HfApi, snapshot_download=snapshot_download)
    monkeypatch.setitem(sys.modules, "huggingface_hub", stand_in)
    return root


def same(one, other) -> None:
    ours, theirs = weights_of(one), weights_of(other)
    assert one.config == other.config
    assert all(np.array_equal(ours[name], theirs[name]) for name in ours | theirs)


def test_a_directory_explains_itself(run, tmp_path):
    out = tmp_path / "out"
    main([f"--from={run}", f"--to={out}", "--license=apache-2.0"])
    same(load_model(out), load_model(run))
    assert facts_of(out) == {**FACTS, "converted_from": str(run)}
    card = (out / "README.md").read_text()
    for text in ("license: apache-2.0\n", "my pictures", "61.23 |", "| λ | 0.5 |", "16 bits", "### my pictures: mAP"):
        assert text in card
    assert json.loads((out / "config.json").read_text())["bits"] == 16
    assert json.loads((out / "recipe.json").read_text()) == {"data.batch": 4}
    assert (out / "sift_statistics.npz").read_bytes() == b"statistics"
    main([f"--from={out}", f"--to={tmp_path / 'again'}"])  # a shared folder gives on what it holds
    assert (tmp_path / "again" / "recipe.json").read_bytes() == (out / "recipe.json").read_bytes()
    assert "licence | none was given" in (tmp_path / "again" / "README.md").read_text()


def test_what_is_not_known_is_not_in_the_card(tmp_path, run):
    main([f"--from={run}", f"--to={tmp_path / 'dinov2_ames_dist.pt'}"])
    main([f"--from={tmp_path / 'dinov2_ames_dist.pt'}", f"--to={tmp_path / 'out'}"])
    card = (tmp_path / "out" / "README.md").read_text()
    assert "| λ | 0.35 |" in card
    assert "that of its authors" in card
    assert "validation" not in card


def test_a_model_goes_to_the_hub_and_comes_back(run, hub):
    main([f"--from={run}", "--to=hf://somebody/ames-sift", "--license=mit"])
    same(load_model("hf://somebody/ames-sift"), load_model(run))
    assert facts_of(hub / "somebody" / "ames-sift")["converted_from"] == "run"
    assert 'load_model("hf://somebody/ames-sift")' in (hub / "somebody" / "ames-sift" / "README.md").read_text()
    chosen = ChosenModel.load("hf://somebody/ames-sift", "sift")
    assert (chosen.name, chosen.lam, chosen.gamma) == ("hf://somebody/ames-sift", 0.5, 0.2)
    main(["--from=hf://somebody/ames-sift", f"--to={run.parent / 'back'}"])
    same(load_model(run.parent / "back"), load_model(run))


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("hf://somebody", "expected hf://OWNER/NAME"),
        ("hf://somebody/a/b", "expected hf://OWNER/NAME"),
        ("hf://somebody/else", "cannot be downloaded: 401 Client Error: no such repository$"),
        ("hf://somebody/empty", "holds no model.safetensors"),
    ],
)
def test_what_is_not_on_the_hub_is_one_line(hub, name, told):
    (hub / "somebody" / "empty").mkdir(parents=True)
    with pytest.raises(UserError, match=f"{name}: {told}"):
        load_model(name)


def test_a_missing_package_is_named(run, monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(UserError, match="pip install huggingface_hub"):
        load_model("hf://somebody/ames-sift")
    with pytest.raises(UserError, match="pip install huggingface_hub"):
        main([f"--from={run}", "--to=hf://somebody/ames-sift"])
