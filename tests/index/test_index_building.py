"""Building and adding: what an index costs, and nothing lost when a process dies."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import photo_folder
import pytest
import synthetic
from flax import nnx

from ames_jax import evaluate, search
from ames_jax.data.shards import open_split, write_about
from ames_jax.extraction.backbone import STATISTICS_FILE, ExtractedImage
from ames_jax.extraction.backbones import open_backbone
from ames_jax.extraction.listing import list_images
from ames_jax.index import parts, photos
from ames_jax.index.building import Descriptors, build_index, pack_descriptors, refuse_taken
from ames_jax.index.changes import add_images
from ames_jax.index.collection import SearchIndex
from ames_jax.index.model_choice import ChosenModel
from ames_jax.index.searcher import Searcher
from ames_jax.model.ames import AMES, AMESConfig
from ames_jax.model.weights import save_model
from ames_jax.runtime.cache import home
from ames_jax.runtime.errors import UserError
from ames_jax.runtime.files import lock

ROOT = Path(__file__).parents[2]
QUERY_DESCRIPTORS, BUDGET = 30, 80  # 20 descriptors of 4 bytes
pytestmark = pytest.mark.usefixtures("one_device")


def chosen(made):
    return ChosenModel.load(made / "model", "sift")


def test_the_index_costs_its_budget(made, capsys):
    index = SearchIndex.open(made / "index")
    assert (len(index), index.facts["descriptors"]) == (12, 20)
    assert index.ids[4] == "scene1/1.jpg"
    header_of_npy = 128
    assert (made / "index" / "part-00000" / "bits.npy").stat().st_size == 12 * BUDGET + header_of_npy
    index.verify()


def test_added_images_are_found_as_if_indexed_at_once(made, grown, capsys):
    add = ["index", f"--descriptors={grown / 'set'}", f"--out={grown / 'index'}", "--add"]
    assert search.main(add) == 0
    assert "20 images (8 new)" in capsys.readouterr().out
    assert search.main(add) == 0
    assert "20 images (0 new)" in capsys.readouterr().out
    whole = build_index(grown / "whole", Descriptors.open(grown / "set"), chosen(made), budget=BUDGET)
    path = made / "asked" / "scene0" / "5.jpg"
    settings = {"shortlist": 20, "query_descriptors": QUERY_DESCRIPTORS}
    added, at_once = (Searcher(index, **settings).search(path) for index in (grown / "index", whole))
    assert [hit.id for hit in added.hits] == [hit.id for hit in at_once.hits]
    assert len(added.hits) == 20
    index = SearchIndex.open(grown / "index")
    rows = np.array([15, 0, 11, 12])
    read, expected = index.read(rows, 7), whole.read(whole.rows([index.ids[row] for row in rows]), 7)
    np.testing.assert_array_equal(read.features, expected.features)
    np.testing.assert_array_equal(read.valid, expected.valid)
    assert index.picture(15) == made / "pictures" / index.ids[15]


KILLED = """
import os, signal, sys
from ames_jax.index import building, changes, parts
name, index, descriptors = sys.argv[1:]
original = getattr(parts, name)
def die(*arguments, **options):
    original(*arguments, **options)
    os.kill(os.getpid(), signal.SIGKILL)
setattr(parts, name, die)
changes.add_images(index, building.Descriptors.open(descriptors))
"""


def test_a_killed_addition_leaves_the_old_index(made, grown):
    """Killed with everything written but index.json."""
    command = [sys.executable, "-c", KILLED, "write_part", str(grown / "index"), str(grown / "set")]
    done = subprocess.run(command, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, check=False)
    assert done.returncode == -9, done.stderr
    assert (grown / "index" / "part-00001").exists()
    index = SearchIndex.open(grown / "index")
    assert len(index) == 12
    index.verify()
    assert Searcher(index, shortlist=8, query_descriptors=QUERY_DESCRIPTORS).search(made / "asked" / "scene0" / "5.jpg")
    assert add_images(grown / "index", Descriptors.open(grown / "set")) == 8
    assert len(SearchIndex.open(grown / "index")) == 20


def test_a_failed_build_leaves_nothing(made, tmp_path, monkeypatch):
    def fail(*_):
        raise OSError("disk full")

    with monkeypatch.context() as patch:
        patch.setattr(parts, "write_part", fail)
        with pytest.raises(OSError, match="disk full"):
            build_index(tmp_path / "index", Descriptors.open(made / "set"), chosen(made))
    assert not (tmp_path / "index").exists()
    build_index(tmp_path / "index", Descriptors.open(made / "set"), chosen(made))
    assert [path.name for path in tmp_path.iterdir()] == ["index"]


def test_two_additions_at_a_time_are_refused(grown):
    descriptors = Descriptors.open(grown / "set")
    with lock(grown / "index", home()), pytest.raises(UserError, match="is being written by process"):
        add_images(grown / "index", descriptors)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"budget": 3}, "--budget=3 B: one descriptor alone takes 4 B"),
        ({"global_index": "PQ7x9"}, "--global-index=PQ7x9: FAISS cannot make 'PQ7x9' of \\d+ vectors of 512 values"),
    ],
)
def test_what_cannot_be_built_is_told_before_extraction(made, tmp_path, monkeypatch, options, reason):
    monkeypatch.setattr(photos, "_extracted", None)
    extractor = open_backbone("sift", statistics=made / "statistics.npz", descriptors=40)
    with pytest.raises(UserError, match=reason):
        photos.index_photos(tmp_path / "new", list_images(made / "pictures"), extractor, chosen(made), **options)


def test_what_does_not_belong_together_is_refused(made, grown, tmp_path):
    descriptors = Descriptors.open(made / "set")
    with pytest.raises(UserError, match="exists already; add images to it with --add"):
        build_index(made / "index", descriptors, chosen(made))
    with pytest.raises(UserError, match="--budget=3 B: one descriptor alone takes 4 B"):
        build_index(tmp_path / "new", descriptors, chosen(made), budget=3)
    strange = photo_folder.write_model(tmp_path / "strange", made / "statistics.npz", statistics="0123456789ab")
    with pytest.raises(UserError, match=r"other SIFT statistics \(01234567\)"):
        build_index(tmp_path / "new", descriptors, ChosenModel.load(strange, "sift"))
    with pytest.raises(UserError, match=r"other SIFT statistics \(01234567\)"):
        pack_descriptors(tmp_path / "new.store", descriptors, ChosenModel.load(strange, "sift"))
    assert pack_descriptors(tmp_path / "new.store", descriptors, chosen(made)).setting == (0.6, 0.3)
    strange = photo_folder.write_model(tmp_path / "strange", made / "statistics.npz", backbone="dinov2")
    with pytest.raises(UserError, match="trained on dinov2 descriptors, these are sift"):
        build_index(tmp_path / "new", descriptors, ChosenModel.load(strange, "sift"))
    strange = photo_folder.write_model(tmp_path / "strange", made / "statistics.npz", lam=None)
    with pytest.raises(UserError, match="give --lam and --gamma"):
        build_index(tmp_path / "new", descriptors, ChosenModel.load(strange, "sift"))
    about = json.loads((grown / "set" / "about.json").read_text())
    about["images"] = {"images": str(tmp_path)}
    write_about(grown / "set", about)
    with pytest.raises(UserError, match="is in the index already, as another picture"):
        add_images(grown / "index", Descriptors.open(grown / "set"))
    about["extraction"]["global_backbone"] = {"name": "dinov2_small", "weights": "moved.pth"}
    write_about(grown / "set", about)
    with pytest.raises(UserError, match=r"extracted with global_name = 'dinov2_small', the images of .* with None"):
        add_images(grown / "index", Descriptors.open(grown / "set"))
    del about["extraction"]["global_backbone"]
    about["extraction"]["max_side"] = 100
    write_about(grown / "set", about)
    with pytest.raises(UserError, match="extracted with max_side = 100"):
        add_images(grown / "index", Descriptors.open(grown / "set"))
    statistics = dict(np.load(made / "statistics.npz"))
    np.savez(grown / "set" / STATISTICS_FILE, mean=statistics["mean"] + 1, centres=statistics["centres"])
    with pytest.raises(UserError, match="other SIFT statistics than the images of"):
        add_images(grown / "index", Descriptors.open(grown / "set"))
    with pytest.raises(UserError, match="no model is shipped for dinov2"):
        ChosenModel.load(None, "dinov2")


def test_descriptors_without_global_ones_are_refused(grown):
    (grown / "set" / "global" / "images.npy").unlink()
    with pytest.raises(UserError, match="global descriptor of every image"):
        Descriptors.open(grown / "set")


def test_descriptors_of_64_values_without_geometry_are_evaluated_and_searched(tmp_path, monkeypatch, capsys):
    """Neither scale, position nor weight; training on such a set is what tests/training does."""
    monkeypatch.setattr(synthetic, "WIDTH", 64)
    root = synthetic.write(tmp_path / "set", labels=4)
    source, model = open_split(root, "test_gallery"), AMESConfig(descriptor_width=64, bits=16, model_width=16, layers=1)
    save_model(AMES(model, nnx.Rngs(0)), tmp_path / "model", {"backbone": "none", "lam": 0.5, "gamma": 0.3})
    vectors = source.read(np.arange(len(source)), 8).features.astype(np.float32).mean(axis=1)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    (root / "global").mkdir()
    np.save(root / "global" / "test_gallery.npy", vectors)
    flags = [f"--config.data_dir={root}", "--config.dataset=test", f"--config.model={tmp_path / 'model'}"]
    flags += [
        "--config.distributed=off",
        "--config.rerank=10",
        "--config.lam=0.5",
        "--config.gamma=0.3",
        f"--workdir={tmp_path / 'run'}",
    ]
    monkeypatch.setattr(evaluate.cache, "start", lambda: None)
    assert evaluate.main([f"--config={ROOT / 'configs' / 'evaluate.py'}", *flags]) == 0
    assert "synthetic, test" in (tmp_path / "run" / "results.md").read_text()
    command = ["index", f"--descriptors={root}", "--split=test_gallery", f"--model={tmp_path / 'model'}"]
    assert search.main([*command, f"--out={tmp_path / 'index'}"]) == 0
    query = ExtractedImage(source[5].descriptors, vectors[5])
    assert Searcher(tmp_path / "index", lam=1).search(query, 3).hits[0].id == source.ids()[5]


@pytest.mark.parametrize("finished", [True, False])
def test_an_extraction_that_a_kill_left_beside_its_index_goes(tmp_path, finished):
    index, left = tmp_path / "x", tmp_path / ".x.extraction" / "0123" / "shard"
    for path in (index / "index.json", left):
        path.parent.mkdir(parents=True)
        path.touch()
    os.utime(left, (0, 0) if finished else (2**32, 2**32))  # of an unfinished sync, if it is later
    with pytest.raises(UserError, match="exists already"):
        refuse_taken(index)
    assert left.parents[1].exists() != finished
