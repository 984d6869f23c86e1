"""`search index --images` without further flags: XFeat beside DINOv2, matched by hand; what does not fit is one line."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from flax import nnx
from small_networks import write_networks

from ames_jax import search
from ames_jax.data.readers import MemoryReader
from ames_jax.descriptors import DescriptorSet
from ames_jax.index.collection import SearchIndex
from ames_jax.index.model_choice import ChosenModel
from ames_jax.index.searcher import Searcher
from ames_jax.model.ames import AMES, AMESConfig
from ames_jax.model.matches import Matching
from ames_jax.model.weights import facts_of, save_model
from ames_jax.runtime.errors import UserError

pytestmark = pytest.mark.usefixtures("one_device")
pytest.importorskip("faiss")
SIZES = ["--max-side=96", "--extracted-descriptors=40", "--budget=80B"]


@pytest.fixture
def networks(tmp_path, monkeypatch) -> dict[str, Path]:
    """Files of an XFeat and of a tiny "dinov2_small"."""
    xfeat, vit = write_networks(tmp_path, monkeypatch)
    return {"xfeat": xfeat, "vit": vit}


def index_of(pictures: Path, networks: dict[str, Path], *flags: str) -> int:
    """`search index` with these files of networks; a later flag of the same name is the one that counts."""
    given = {"--weights": str(networks["xfeat"]), "--global-weights": str(networks["vit"])}
    given |= dict(flag.split("=", 1) for flag in flags)
    return search.main(["index", f"--images={pictures}", *SIZES, *(f"{key}={value}" for key, value in given.items())])


def test_pictures_are_searched_without_a_model(made, networks, tmp_path, capsys):
    assert index_of(made / "asked", networks, f"--out={tmp_path / 'index'}") == 0
    index = SearchIndex.open(tmp_path / "index")
    about = json.loads((tmp_path / "index" / "about.json").read_text())
    assert (about["backbone"], about["global"]) == ("xfeat", "DINOv2 small, class token and mean patch")
    assert isinstance(index.model, Matching)
    assert (index.facts["model"], index.facts["bits"], index.facts["descriptors"]) == ("mutual", 32, 20)
    assert (index.facts["query_descriptors"], index.facts["shortlist"], index.facts["sure_logit"]) == (300, 200, 2.0)
    assert facts_of(tmp_path / "index" / "model")["backbone"] == "xfeat"
    picture = made / "asked" / "scene1" / "5.jpg"
    query = [f"--index={tmp_path / 'index'}", f"--image={picture}"]
    assert search.main(["query", *query, "--keep-query", f"--json={tmp_path / 'found.json'}"]) == 0
    hits = json.loads((tmp_path / "found.json").read_text())["queries"][0]["hits"]
    assert hits[0]["id"] == "scene1/5.jpg"
    assert hits[0]["logit"] > max(hit["logit"] for hit in hits[1:]) >= 0
    out = tmp_path / "why.png"
    assert search.main(["explain", *query, "--id=scene1/5.jpg", f"--out={out}"]) == 0
    assert out.is_file()
    shutil.copytree(made / "pictures" / "scene0", tmp_path / "more")
    assert search.main(["index", f"--images={tmp_path / 'more'}", f"--out={tmp_path / 'index'}", "--add"]) == 0
    grown = SearchIndex.open(tmp_path / "index")
    assert len(grown) > len(index)
    assert grown.binarizer == index.binarizer


def test_a_student_is_calibrated_for_its_descriptors(made, networks, tmp_path):
    student = save(tmp_path / "student", 64, backbone="xfeat")
    given = [
        f"--weights={networks['xfeat']}",
        f"--global-weights={networks['vit']}",
        *SIZES[:2],
        "--query-descriptors=30",
    ]
    photos = [f"--photos={made / 'pictures'}", f"--distractors={made / 'asked' / 'scene3'}", "--shortlist=3"]
    assert search.main(["calibrate", f"--run={student}", f"--out={tmp_path / 'model'}", *given, *photos]) == 0
    facts = facts_of(tmp_path / "model")
    assert (facts["backbone"], facts["global"]) == ("xfeat", "DINOv2 small, class token and mean patch")
    assert index_of(made / "asked", networks, f"--out={tmp_path / 'index'}", f"--model={tmp_path / 'model'}") == 0
    index = SearchIndex.open(tmp_path / "index")
    assert (index.facts["lam"], index.facts["gamma"]) == (facts["lam"], facts["gamma"])
    assert Searcher(index).query_descriptors == 30


def test_one_picture_is_a_collection(made, networks, tmp_path):
    (tmp_path / "one").mkdir()
    shutil.copy(made / "asked" / "scene1" / "5.jpg", tmp_path / "one")
    assert index_of(tmp_path / "one", networks, f"--out={tmp_path / 'index'}") == 0
    assert len(SearchIndex.open(tmp_path / "index")) == 1


def test_the_model_says_which_descriptors_are_meant(made, tmp_path):
    flags = [f"--images={made / 'asked'}", f"--statistics={made / 'statistics.npz'}", f"--model={made / 'model'}"]
    assert search.main(["index", *flags, f"--out={tmp_path / 'index'}"]) == 0
    assert SearchIndex.open(tmp_path / "index").facts["query_descriptors"] == 100
    with pytest.raises(UserError, match=r"trained with other SIFT statistics"):  # sift, by the model alone
        search.main(["index", flags[0], flags[2], f"--out={tmp_path / 'other'}"])


def test_without_weights_what_else_there_is_is_said(made, tmp_path, monkeypatch):
    def fail(name, *_, **__):
        raise UserError(f"{name} could not be downloaded")

    monkeypatch.setattr("ames_jax.extraction.xfeat.fetch_file", fail)
    with pytest.raises(
        UserError, match=r"xfeat.pt could not be downloaded\. .*--weights .*--backbone=sift, which needs none"
    ):
        search.main(["index", f"--images={made / 'asked'}", f"--out={tmp_path / 'index'}"])
    assert not (tmp_path / "index").exists()


def save(folder: Path, width: int, **facts: object) -> Path:
    config = AMESConfig(descriptor_width=width, bits=32, model_width=16, layers=1, feed_forward=16)
    return save_model(AMES(config, nnx.Rngs(0)), folder, {"lam": 0.6, "gamma": 0.3, **facts})


def test_what_does_not_fit_is_one_line_before_anything_is_extracted(made, networks, tmp_path, monkeypatch):
    def refuse(*_, **__):
        raise AssertionError("extracted")

    monkeypatch.setattr("ames_jax.index.photos._extracted", refuse)
    other_global = save(tmp_path / "other_global", 64, backbone="xfeat", **{"global": "DINOv2 base, class token"})
    for flags, message in [
        ([f"--weights={networks['vit']}"], r"vit.pt: the weights do not fit the network"),
        ([f"--global-weights={networks['xfeat']}"], r"xfeat.pt: "),
        ([f"--model={made / 'model'}", "--backbone=xfeat"], r"was trained on sift descriptors, these are xfeat"),
        ([f"--model={save(tmp_path / 'wide', 128)}"], r"takes descriptors of 128 values, those of xfeat have 64"),
        ([f"--model={other_global}"], r"with the global descriptor DINOv2 base, class token, these are DINOv2 small"),
    ]:
        with pytest.raises(UserError, match=message):
            index_of(made / "asked", networks, f"--out={tmp_path / 'index'}", *flags)
    flags = [f"--model={other_global}", "--lam=0.5", "--gamma=1"]  # which go with any global descriptor
    with pytest.raises(AssertionError, match="extracted"):
        index_of(made / "asked", networks, f"--out={tmp_path / 'index'}", *flags)


def test_descriptors_too_narrow_for_bits_are_refused():
    chosen = ChosenModel.for_collection("mutual", "cubes")
    with pytest.raises(UserError, match="descriptors of 8 values and more: found 6 descriptors of 4"):
        chosen.fitted(MemoryReader(DescriptorSet(np.ones((2, 3, 4), np.float32))), {})
