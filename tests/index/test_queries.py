"""Queries of every kind from Python: they work, or one line says why not."""

from __future__ import annotations

import dataclasses

import jax.numpy as jnp
import numpy as np
import photo_folder
import pytest
from flax import nnx
from PIL import Image

from ames_jax import search
from ames_jax.data.shards import open_split
from ames_jax.data.store import open_store
from ames_jax.descriptors import DescriptorSet
from ames_jax.extraction.backbone import ExtractedImage
from ames_jax.extraction.images import load_image
from ames_jax.index.model_choice import ChosenModel
from ames_jax.index.queries import as_picture
from ames_jax.index.reranking import rerank
from ames_jax.index.searcher import Searcher
from ames_jax.model.ames import AMES, AMESConfig
from ames_jax.report import search_results
from ames_jax.retrieval.scorer import Scorer
from ames_jax.runtime.errors import UserError

pytestmark = pytest.mark.usefixtures("one_device")


@pytest.fixture
def searcher(made, one_device) -> Searcher:
    return Searcher(made / "index", shortlist=8, query_descriptors=30)


def test_pictures_of_every_kind_are_the_same(rng):
    rgb = rng.integers(0, 256, (20, 30, 3), dtype=np.uint8)
    kinds = {
        "float of 0..1": rgb / np.float32(255),
        "float of 0..255": rgb.astype(np.float64),
        "channels first": rgb.transpose(2, 0, 1),
        "uint16": rgb.astype(np.uint16) * 257,
        "int64": rgb.astype(np.int64),
        "Pillow": Image.fromarray(rgb),
        "JAX": jnp.asarray(rgb),
        "RGBA": np.concatenate([rgb, np.full((20, 30, 1), 255, np.uint8)], axis=2),
        "lists": rgb.tolist(),
        "Fortran order": np.asfortranarray(rgb),
    }
    for name, picture in kinds.items():
        np.testing.assert_array_equal(as_picture(picture), rgb, err_msg=name)
    grey = np.repeat(rgb[..., :1], 3, axis=2)
    for picture in (rgb[..., 0], rgb[..., :1], Image.fromarray(rgb[..., 0]), rgb[None, ..., 0]):
        np.testing.assert_array_equal(as_picture(picture), grey)
    assert as_picture(rgb[..., 0] > 3).max() == 255
    torch = pytest.importorskip("torch")
    np.testing.assert_array_equal(as_picture(torch.from_numpy(rgb).permute(2, 0, 1)), rgb)


@pytest.mark.parametrize(
    "picture",
    [
        np.zeros((0, 5, 3), np.uint8), np.zeros((5, 5, 2), np.uint8), np.zeros(7), np.full((5, 5, 3), np.nan),
        np.full((5, 5), -1), np.full((5, 5), 300), np.array(["a"]), object(), None, np.zeros((2, 5, 5, 3), np.uint8), "",
    ],
)  # fmt: skip
def test_what_is_no_picture_is_one_error(searcher, picture):
    with pytest.raises(UserError) as error:
        searcher.search(picture)
    assert "\n" not in str(error.value)


def test_small_and_blank_pictures_are_queries(searcher):
    for picture in (np.zeros((1, 1, 3), np.uint8), np.zeros((1, 40)), np.full((50, 50), 255, np.uint8)):
        assert len(searcher.search(picture, 3).hits) == 3


def test_numbers_and_vectors_that_cannot_be(made, searcher):
    path = made / "asked" / "scene0" / "5.jpg"
    for k in (0, -1, 2.5, float("nan"), float("inf"), None, "3"):
        with pytest.raises(UserError, match=f"k={k!r}: expected a whole number of at least 1"):
            searcher.search(path, k)
    with pytest.raises(
        UserError, match="query_descriptors=100000: expected a whole number of at least 1, at most 4096"
    ):
        Searcher(made / "index", query_descriptors=100_000)
    for count in (0, 2.5, "3", float("inf")):
        with pytest.raises(UserError, match=r"shortlist=.*: expected a whole number of at least 1"):
            Searcher(made / "index", shortlist=count)
    for lam, gamma in ((2, None), ("a", None), (float("nan"), None), (None, -1), (None, float("inf"))):
        with pytest.raises(UserError, match=r"(λ|γ) \((lam|gamma)\) is"):
            Searcher(made / "index", lam=lam, gamma=gamma)
        with pytest.raises(UserError, match=r"(λ|γ) \((lam|gamma)\) is"):
            ChosenModel.load(made / "model", "sift", lam, gamma).check({}, None)
    extracted = searcher.backbone.extract([load_image(path)])[0]
    for wrong in (np.nan, 2.0):
        with pytest.raises(UserError, match="the query's global descriptor has length"):
            searcher.search(ExtractedImage(extracted.local, extracted.global_descriptor * np.float32(wrong)))
    with pytest.raises(UserError, match=r"local descriptors: expected descriptors \[N, D\] of one image"):
        searcher.search(ExtractedImage(extracted.local[None], extracted.global_descriptor))
    narrow = DescriptorSet(extracted.local.features[:, :64])
    with pytest.raises(UserError, match="local descriptors: the model takes descriptors of width 128, found 64"):
        searcher.search_many([extracted, ExtractedImage(narrow, extracted.global_descriptor)])
    with pytest.raises(UserError, match="takes descriptors of width 128, found 64"):
        searcher.search(narrow)
    with pytest.raises(UserError, match="global descriptor: expected numbers"):
        searcher.search(ExtractedImage(extracted.local, ["a"]))
    packed = searcher.packer.pack(extracted.local[None])[0]
    with pytest.raises(UserError, match="a DescriptorSet of floats alone is a query of SIFT indexes"):
        searcher.search(packed)
    both = [extracted, ExtractedImage(packed, extracted.global_descriptor.tolist())]
    first, second = searcher.search_many(both, 4)
    assert [hit.id for hit in first.hits] == [hit.id for hit in second.hits]


def test_an_open_index_does_not_depend_on_the_folder(made, tmp_path, monkeypatch):
    monkeypatch.chdir(made)
    searcher = Searcher("index", shortlist=8, query_descriptors=30)
    monkeypatch.chdir(tmp_path)
    assert searcher.search(made / "asked" / "scene0" / "5.jpg").hits


def test_an_open_store_does_not_depend_on_the_folder(made, tmp_path, monkeypatch):
    monkeypatch.chdir(made / "index")
    store, source = open_store("part-00000"), open_split("../set", "images")
    monkeypatch.chdir(tmp_path)
    assert store.rows(source.ids()[:2]).tolist() == [0, 1]


def test_reranking_checks_the_scorer_and_the_similarities(made, searcher):
    index = searcher.index
    query = searcher.backbone.extract([load_image(made / "asked" / "scene3" / "5.jpg")])[0].local
    other = photo_folder.write_model(made / "other", made / "statistics.npz", seed=1)
    with pytest.raises(UserError, match="made by another model"):
        rerank(Scorer(ChosenModel.load(other, "sift").model), query, index, ["scene0/0.jpg"], [1.0])
    with pytest.raises(UserError, match=r"similarity of 'scene0/1.jpg' is nan"):
        rerank(index.model, query, index, ["scene0/0.jpg", "scene0/1.jpg"], [1.0, np.nan])
    teacher = AMES(AMESConfig(descriptor_width=128, model_width=16, layers=1, feed_forward=16), nnx.Rngs(0))
    for full_precision in (teacher, Scorer(teacher)):
        with pytest.raises(UserError, match="which a full-precision model cannot read"):
            rerank(full_precision, query, index, ["scene0/0.jpg"], [1.0])
    for descriptors in (0, -1):
        with pytest.raises(UserError, match=f"descriptors={descriptors}: expected a whole number of at least 1"):
            rerank(index.model, query, index, ["scene0/0.jpg"], [1.0], descriptors=descriptors)
    assert rerank(Scorer(index.model), query, index, ["scene0/0.jpg"], [1.0])


def test_pictures_of_pillow_are_those_of_files(tmp_path, rng):
    grey = rng.integers(0, 2**16, (9, 7), dtype=np.uint16)
    turned = Image.fromarray(rng.integers(0, 256, (9, 7, 3), dtype=np.uint8))
    exif = turned.getexif()
    exif[274] = 6  # turned by a quarter
    Image.fromarray(grey).save(tmp_path / "grey.png")
    turned.save(tmp_path / "turned.png", exif=exif)
    for name in ("grey.png", "turned.png"):
        np.testing.assert_array_equal(as_picture(Image.open(tmp_path / name)), load_image(tmp_path / name))


def test_what_was_opened_before_a_fork_says_so(searcher, monkeypatch):
    scorer = Scorer(searcher.index.model)
    monkeypatch.setattr("os.getpid", lambda: -1)
    with pytest.raises(UserError, match="a Searcher was opened before this process was forked"):
        searcher.search(np.zeros((9, 9), np.uint8))
    with pytest.raises(UserError, match="a Scorer was opened before"):
        scorer.shortlist(DescriptorSet(np.ones((2, 128))), DescriptorSet(np.ones((1, 2, 128))))


def test_a_picture_of_the_index_is_not_its_own_hit(made, searcher, monkeypatch):
    path = made / "pictures" / "scene1" / "0.jpg"
    kept = Searcher(searcher.index, shortlist=8, query_descriptors=30, keep_query=True).search(path, 12)
    assert kept.first_stage[0].id == "scene1/0.jpg"
    monkeypatch.chdir(path.parent)
    for query in (path, str(path), "0.jpg"):
        result = searcher.search_many([query, made / "asked" / "scene1" / "5.jpg"], 12)
        assert [len(found.hits) for found in result] == [11, 12]
        expected = [hit.id for hit in kept.first_stage if hit.id != "scene1/0.jpg"]
        assert [hit.id for hit in result[0].first_stage] == expected
        assert "scene1/0.jpg" not in [hit.id for hit in result[0].hits]
    content = DescriptorSet(searcher.backbone.extract([load_image(path)])[0].local.features)
    assert searcher.search(content, 1).first_stage[0].id == "scene1/0.jpg"  # of descriptors the file is not known


@pytest.mark.parametrize("refine", ["", "expand+superglobal"])
def test_a_copy_of_a_picture_of_the_index_is_known_by_its_content(made, searcher, tmp_path, refine):
    """An index of extracted descriptors knows no hashes, so it looks at the pictures; a changed byte is another picture."""
    content = (made / "pictures" / "scene1" / "0.jpg").read_bytes()
    (tmp_path / "copy.jpg").write_bytes(content)
    (tmp_path / "other.jpg").write_bytes(content + b"\0")
    searcher = Searcher(searcher.index, shortlist=8, query_descriptors=30, backbone=searcher.backbone, refine=refine)
    copy, other = searcher.search_many([tmp_path / "copy.jpg", tmp_path / "other.jpg"], 12)
    assert (copy.query_id, len(copy.hits)) == ("scene1/0.jpg", 11)
    assert (other.query_id, len(other.hits)) == (None, 12)
    assert "itself in the index as scene1/0.jpg" in search_results.result_text(tmp_path / "copy.jpg", copy)
    copy.hits[0] = dataclasses.replace(copy.hits[0], through="scene0/1.jpg")
    assert f"{copy.hits[0].id}  through scene0/1.jpg" in search_results.result_text(tmp_path / "copy.jpg", copy)


def test_labels_give_figures(made, capsys):
    flags = [f"--index={made / 'index'}", "--shortlist=8", "--query-descriptors=30", "--labels=folder"]
    assert search.main(["query", *flags, f"--images={made / 'asked'}"]) == 0
    assert "(4 of 4 queries with an image of their label)" in capsys.readouterr().out
    assert search.main(["query", *flags, f"--image={made / 'pictures' / 'scene1' / '0.jpg'}"]) == 0
    assert "global search: mAP 100.0, P@1 100.0; re-ranked: mAP" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--add", "--lam=0.5"], "--add uses the lam of the index: leave --lam out"),
        (["--add", "--budget=80"], "--add uses the budget of the index"),
        (["--add", "--global-index=ivf"], "--add uses the global-index of the index"),
        (["--lam=2"], "lam"),
        (["--lam=nan"], "lam"),
        (["--gamma=-1"], "gamma"),
        (["--backbone=dinov2"], "belong to --images"),
        (["--images=photos"], "give either --images=DIR"),
    ],
)
def test_flags_that_would_spoil_an_index(made, tmp_path, flags, message):
    out = made / "index" if "--add" in flags else tmp_path / "new"
    flags = [flag.replace("photos", str(made / "pictures")) for flag in flags]
    with pytest.raises(UserError, match=message):
        search.main(["index", f"--descriptors={made / 'set'}", f"--out={out}", *flags])
    assert not (tmp_path / "new").exists()


def test_a_split_belongs_to_descriptors(made, tmp_path):
    with pytest.raises(UserError, match="--split=x belongs to --descriptors"):
        search.main(["index", f"--images={made / 'pictures'}", "--split=x", f"--out={tmp_path / 'new'}"])


def test_folders_of_results_are_made(made, tmp_path):
    query = [f"--index={made / 'index'}", f"--image={made / 'asked' / 'scene1' / '5.jpg'}", "--query-descriptors=30"]
    places = [tmp_path / "a" / "b" / "found.html", tmp_path / "c" / "found.json", tmp_path / "d" / "why.png"]
    assert search.main(["query", *query, f"--gallery={places[0]}", f"--json={places[1]}"]) == 0
    assert search.main(["explain", *query, "--id=scene1/0.jpg", f"--out={places[2]}"]) == 0
    assert all(path.is_file() for path in places)
    with pytest.raises(UserError, match=r"--out=why.svg: expected a name that ends in .png"):
        search.main(["explain", *query, "--id=scene1/0.jpg", "--out=why.svg"])


def test_a_photo_that_is_gone_does_not_end_a_gallery(made, tmp_path, capsys):
    pictures = photo_folder.write_pictures(tmp_path / "pictures", range(3))
    (pictures / "scene1" / "1.jpg").unlink()
    (pictures / "scene0" / "0.jpg").write_text("no picture")
    query = ["query", f"--index={made / 'index'}", f"--image={made / 'asked' / 'scene1' / '5.jpg'}", "--columns=12"]
    query += ["--query-descriptors=30", f"--gallery={tmp_path / 'found.html'}"]
    assert search.main([*query, f"--pictures={pictures}"]) == 0
    printed = capsys.readouterr().err
    assert "1.jpg: the picture is no longer there" in printed
    assert "0.jpg: cannot be read as an image" in printed
    with pytest.raises(UserError, match="no longer there; give the pictures' folder"):
        search.main([*query, f"--pictures={tmp_path}"])


def test_odd_names_go_through(made, tmp_path, capsys):
    """Spaces, a backslash, an umlaut, a comma, a leading ./ of a list."""
    picture = (made / "pictures" / "scene0" / "0.jpg").read_bytes()
    names = [" a  b.jpg", "c\\d.jpg", "ü/ß é.jpg", "e,f.jpg", "./g.jpg"]
    for name in names:
        path = tmp_path / "pictures" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(picture)
    (tmp_path / "list.txt").write_text("./g.jpg\nü/ß é.jpg\n")
    flags = [f"--model={made / 'model'}", f"--statistics={made / 'statistics.npz'}", "--budget=80B"]
    for images, count in ((tmp_path / "pictures", 5), (tmp_path / "list.txt", 2)):
        root = tmp_path / "pictures" if count == 5 else tmp_path
        if count == 2:
            for name in ("g.jpg", "ü/ß é.jpg"):
                (tmp_path / name).parent.mkdir(exist_ok=True)
                (tmp_path / name).write_bytes(picture)
        assert search.main(["index", f"--images={images}", f"--out={tmp_path / f'index{count}'}", *flags]) == 0
        searcher = Searcher(tmp_path / f"index{count}", query_descriptors=30)
        assert len(searcher.index) == count
        for row, name in enumerate(searcher.index.ids):
            assert searcher.index.picture_path(row).is_file()
            assert searcher.search(root / name).query_id == name
    capsys.readouterr()
    assert search.main(["remove", f"--index={tmp_path / 'index5'}", "--ids=e,f.jpg", "--ids=c\\d.jpg"]) == 0
    assert "2 images removed, 3 left" in capsys.readouterr().out
