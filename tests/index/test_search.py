"""Index, query, add, re-rank: the same list from every way in, and nothing lost when a process dies."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import photo_folder
import pytest

from ames_jax import search
from ames_jax.descriptors import DescriptorSet
from ames_jax.errors import UserError
from ames_jax.extraction.backbones import STATISTICS_FILE, Extracted
from ames_jax.extraction.images import load_image
from ames_jax.index import building
from ames_jax.index.building import Descriptors, add_images, build_index
from ames_jax.index.collection import SearchIndex
from ames_jax.index.global_index import GlobalIndex, factory_string, make_empty, write_empty, write_part
from ames_jax.index.labels import Labels
from ames_jax.index.model_choice import ChosenModel
from ames_jax.index.reranking import rerank
from ames_jax.index.searcher import STAGES, Searcher
from ames_jax.ranking import ensemble
from ames_jax.scoring import score_shortlist

faiss = pytest.importorskip("faiss")
ROOT = Path(__file__).parents[2]
QUERY_DESCRIPTORS, BUDGET = 30, 80  # 20 descriptors of 4 bytes


@pytest.fixture(scope="module", autouse=True)
def one_device():
    """Eight fake devices only make the small programs slower to compile."""
    first = jax.local_devices()[:1]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jax, "local_devices", lambda: first)
        patch.setattr(search.runtime, "start", lambda: None)
        yield


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Pictures, descriptors, model, and an index of views 0 to 2 of every scene."""
    root = tmp_path_factory.mktemp("search")
    statistics = photo_folder.write_statistics(root / "statistics.npz")
    pictures = photo_folder.write_pictures(root / "pictures", range(3))
    photo_folder.extract(pictures, root / "set", statistics)
    photo_folder.write_model(root / "model", statistics)
    photo_folder.write_pictures(root / "asked", range(5, 6))
    assert search.main(index_command(root)) == 0
    return root


def index_command(root, *more, out="index"):
    return [
        "index", f"--descriptors={root / 'set'}", f"--model={root / 'model'}", f"--out={root / out}",
        f"--budget={BUDGET}B", *more,
    ]  # fmt: skip


@pytest.fixture(scope="module")
def searcher(made):
    return Searcher(made / "index", shortlist=8, query_descriptors=QUERY_DESCRIPTORS)


def chosen(made):
    return ChosenModel.load(made / "model", "sift")


def test_the_index_costs_its_budget(made, capsys):
    index = SearchIndex.open(made / "index")
    assert (len(index), index.facts["descriptors"]) == (12, 20)
    assert index.ids[4] == "scene1/1.jpg"
    header_of_npy = 128
    assert (made / "index" / "part-00000" / "bits.npy").stat().st_size == 12 * BUDGET + header_of_npy
    index.verify()


def test_a_query_is_what_its_parts_say(made, searcher):
    """Global similarities, logits and order, computed here by hand."""
    path = made / "asked" / "scene2" / "5.jpg"
    result = searcher.search(path, k=12)
    asked = searcher.backbone.extract([load_image(path)])[0]
    similarities = np.load(made / "set" / "global" / "images.npy") @ asked.global_descriptor
    order = np.argsort(-similarities, kind="stable")
    assert [hit.row for hit in result.first_stage] == order.tolist()
    index = searcher.index
    query = DescriptorSet(asked.local.truncate(QUERY_DESCRIPTORS).features)
    logits = score_shortlist(index.model, query, index.read(order[:8]))
    scores = ensemble(similarities[order[:8]], logits, 0.6, 0.3)
    expected = order[:8][np.argsort(-scores, kind="stable")]
    assert [hit.row for hit in result.hits] == [*expected, *order[8:]]
    np.testing.assert_allclose([hit.score for hit in result.hits[:8]], -np.sort(-scores), atol=1e-5)
    assert [hit.score for hit in result.hits[8:]] == [None] * 4
    assert sorted(hit.old_place for hit in result.hits) == list(range(1, 13))
    assert result.hits[0].id == index.ids[result.hits[0].row]
    assert result.seconds.keys() == set(STAGES)


def test_every_kind_of_query_finds_the_same(made, searcher):
    path = made / "asked" / "scene1" / "5.jpg"
    picture = load_image(path)
    extracted = searcher.backbone.extract([picture])[0]
    queries = [path, str(path), picture, extracted, extracted.local]
    many = searcher.search_many([made / "asked" / "scene0" / "5.jpg", *queries], k=5)[1:]
    alone = searcher.search(path, k=5)
    for result in many:
        assert [hit.id for hit in result.hits] == [hit.id for hit in alone.hits]
        np.testing.assert_allclose([h.score for h in result.hits], [h.score for h in alone.hits], atol=1e-5)


def test_a_picture_without_descriptors_is_a_query(searcher):
    assert len(searcher.search(np.zeros((50, 50, 3), np.uint8), k=3).hits) == 3


def test_another_global_descriptor_is_refused(searcher):
    local = DescriptorSet(np.ones((3, 128), np.float32))
    with pytest.raises(UserError, match="has 7 values"):
        searcher.search(Extracted(local, np.ones(7, np.float32)))


def test_reranking_for_another_first_stage(made, searcher):
    """From a packed store or an index, by id, whatever found the list."""
    path = made / "asked" / "scene3" / "5.jpg"
    result = searcher.search(path, k=8)
    first = result.first_stage
    query = searcher.backbone.extract([load_image(path)])[0].local.truncate(QUERY_DESCRIPTORS)
    index, similarities = searcher.index, [hit.global_similarity for hit in first]
    for store in (index, index.stores[0]):
        hits = rerank(index.model, query, store, [hit.id for hit in first], similarities, lam=0.6, gamma=0.3)
        assert [(hit.id, hit.old_place) for hit in hits] == [(hit.id, hit.old_place) for hit in result.hits]
    assert rerank(index.model, query, index, [], [], lam=0.6, gamma=0.3) == []
    with pytest.raises(UserError, match=r"holds no image 'x.jpg' \(1 of 2"):
        rerank(index.model, query, index, [first[0].id, "x.jpg"], [1, 1], lam=0.6, gamma=0.3)
    with pytest.raises(UserError, match="2 ids with 1 global"):
        rerank(index.model, query, index, ["a", "b"], [1], lam=0.6, gamma=0.3)
    other = photo_folder.write_model(made / "other", made / "statistics.npz", seed=1)
    with pytest.raises(UserError, match="made by another model"):
        rerank(ChosenModel.load(other, "sift").model, query, index, ["a"], [1], lam=0.6, gamma=0.3)


@pytest.fixture
def grown(made, tmp_path):
    """A copy of the index, and descriptors of the same folder with two more views of each scene."""
    shutil.copytree(made / "index", tmp_path / "index")
    photo_folder.write_pictures(made / "pictures", range(3, 5))
    photo_folder.extract(made / "pictures", tmp_path / "set", made / "statistics.npz")
    return tmp_path


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
from ames_jax.index import building
name, index, descriptors = sys.argv[1:]
original = getattr(building, name)
def die(*arguments, **options):
    original(*arguments, **options)
    os.kill(os.getpid(), signal.SIGKILL)
setattr(building, name, die)
building.add_images(index, building.Descriptors.open(descriptors))
"""


@pytest.mark.parametrize("after", ["build_store", "write_part"])
def test_a_killed_addition_leaves_the_old_index(made, grown, after):
    """Killed with the local descriptors written, and with everything written but index.json."""
    command = [sys.executable, "-c", KILLED, after, str(grown / "index"), str(grown / "set")]
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
        patch.setattr(building, "write_part", fail)
        with pytest.raises(OSError, match="disk full"):
            build_index(tmp_path / "index", Descriptors.open(made / "set"), chosen(made))
    assert not (tmp_path / "index").exists()
    build_index(tmp_path / "index", Descriptors.open(made / "set"), chosen(made))
    assert [path.name for path in tmp_path.iterdir()] == ["index"]


def test_two_additions_at_a_time_are_refused(grown):
    with (grown / "index" / building.LOCK).open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(UserError, match="another process is adding"):
            add_images(grown / "index", Descriptors.open(grown / "set"))


def test_what_does_not_belong_together_is_refused(made, grown, tmp_path):
    descriptors = Descriptors.open(made / "set")
    with pytest.raises(UserError, match="exists already; add images to it with --add"):
        build_index(made / "index", descriptors, chosen(made))
    with pytest.raises(UserError, match="--budget=3 B: one descriptor alone takes 4 B"):
        build_index(tmp_path / "new", descriptors, chosen(made), budget=3)
    strange = photo_folder.write_model(tmp_path / "strange", made / "statistics.npz", statistics="0123456789ab")
    with pytest.raises(UserError, match=r"other SIFT statistics \(01234567\)"):
        build_index(tmp_path / "new", descriptors, ChosenModel.load(strange, "sift"))
    strange = photo_folder.write_model(tmp_path / "strange", made / "statistics.npz", backbone="dinov2")
    with pytest.raises(UserError, match="trained on dinov2 descriptors, these are sift"):
        build_index(tmp_path / "new", descriptors, ChosenModel.load(strange, "sift"))
    strange = photo_folder.write_model(tmp_path / "strange", made / "statistics.npz", lam=None)
    with pytest.raises(UserError, match="give --lam and --gamma"):
        build_index(tmp_path / "new", descriptors, ChosenModel.load(strange, "sift"))
    about = json.loads((grown / "set" / "about.json").read_text())
    about["images"] = str(tmp_path)
    (grown / "set" / "about.json").write_text(json.dumps(about))
    with pytest.raises(UserError, match="is in the index already, as another picture"):
        add_images(grown / "index", Descriptors.open(grown / "set"))
    about["extraction"]["max_side"] = 100
    (grown / "set" / "about.json").write_text(json.dumps(about))
    with pytest.raises(UserError, match="extracted with max_side = 100"):
        add_images(grown / "index", Descriptors.open(grown / "set"))
    statistics = dict(np.load(made / "statistics.npz"))
    np.savez(grown / "set" / STATISTICS_FILE, mean=statistics["mean"] + 1, centres=statistics["centres"])
    with pytest.raises(UserError, match="other SIFT statistics than the images of"):
        add_images(grown / "index", Descriptors.open(grown / "set"))
    with pytest.raises(UserError, match="no model is shipped for dinov2"):
        ChosenModel.load(None, "dinov2")


def test_what_is_not_a_whole_index_is_refused(made, grown):
    with pytest.raises(UserError, match="is not a search index"):
        SearchIndex.open(made / "set")
    file = grown / "index" / "part-00000" / "global.faiss"
    file.write_bytes(file.read_bytes()[:-5])
    with pytest.raises(UserError, match=r"global.faiss has \d+ bytes, expected \d+: it is truncated"):
        SearchIndex.open(grown / "index")
    (grown / "set" / "global" / "images.npy").unlink()
    with pytest.raises(UserError, match="global descriptor of every image"):
        Descriptors.open(grown / "set")


@pytest.mark.parametrize(
    ("kind", "parameters"), [("flat", None), ("ivf", "nprobe=99"), ("hnsw", None), ("SQfp16", None)]
)
def test_global_indexes_of_every_kind(tmp_path, kind, parameters):
    """In two parts; exact or nearly so on 400 images."""
    vectors = np.random.default_rng(0).standard_normal((400, 16)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    write_empty(make_empty(kind, vectors), tmp_path / "empty")
    for part, rows in (("a", slice(0, 300)), ("b", slice(300, 400))):
        write_part(tmp_path / "empty", vectors[rows], tmp_path / part)
    index = GlobalIndex([tmp_path / "a", tmp_path / "b"], parameters)
    similarities, rows = index.search(vectors[::40], 5)
    expected = np.argsort(-(vectors[::40] @ vectors.T), axis=1)[:, :5]
    assert (rows == expected).mean() > 0.95
    np.testing.assert_allclose(similarities[:, 0], 1, atol=1e-2)


def test_global_indexes_that_cannot_be(tmp_path):
    vectors = np.eye(8, dtype=np.float32)
    assert factory_string("ivf", 10**6) == "IVF4000,Flat"
    assert factory_string("ivf", 8) == "IVF1,Flat"
    with pytest.raises(UserError, match="--global-index=Nonsense: FAISS cannot make"):
        make_empty("Nonsense", vectors)
    write_empty(make_empty("flat", vectors), tmp_path / "empty")
    with pytest.raises(UserError, match="--faiss=nprobe=3: this index has no such"):
        GlobalIndex([tmp_path / "empty"], "nprobe=3")
    with pytest.raises(UserError, match="have 5 values, those of the index 8"):
        write_part(tmp_path / "empty", np.ones((2, 5)), tmp_path / "part")


def test_labels(tmp_path):
    folders = Labels.read("folder")
    assert folders.right("photos/castle/1.jpg", "castle/2.jpg") is True
    assert folders.right("photos/castle/1.jpg", "church/2.jpg") is False
    assert folders.right("1.jpg", "church/2.jpg") is None
    (tmp_path / "list").write_text("a/1.jpg,castle\n\n2.jpg\tchurch\n")
    listed = Labels.read(str(tmp_path / "list"))
    assert [listed.of(name) for name in ("a/1.jpg", "b/2.jpg", "3.jpg")] == ["castle", "church", None]
    (tmp_path / "list").write_text("a/1.jpg\n")
    with pytest.raises(UserError, match="list line 1: expected `picture,label`"):
        Labels.read(str(tmp_path / "list"))
    with pytest.raises(UserError, match="no such file"):
        Labels.read("nowhere")
