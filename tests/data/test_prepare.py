"""The command line from the release's files to a data set, and what a kill leaves behind."""

import dataclasses
import json
import sys

import numpy as np
import pytest
from flax import nnx

from ames_jax.data import neighbours
from ames_jax.data.neighbour_search import BlockSearch, nearest
from ames_jax.data.neighbours import open_neighbours, search_to_folder
from ames_jax.data.release_hdf5 import ReleaseSource
from ames_jax.data.release_pickles import import_neighbours
from ames_jax.data.shards import open_split, read_about, write_about
from ames_jax.data.store import open_store
from ames_jax.model.ames import AMES, AMESConfig
from ames_jax.model.weights import save_model
from ames_jax.prepare import main
from ames_jax.runtime.errors import UserError, run_main


def run(*arguments):
    return main([str(argument) for argument in arguments])


def shards(release, *more):
    return run(
        "shards", "--root", release.folder / "set", "--name", "gldv2", "--split", "train",
        "--features", release.folder / "dinov2_local.hdf5", "--list", release.folder / "train.txt", *more,
    )  # fmt: skip


def test_shards_from_the_release(release, capsys):
    features, images = release.hdf5(), release.list()
    np.save(release.folder / "dinov2_cls.npy", release.globals)
    more = ("--backbone", "dinov2", "--global-descriptors", release.folder / "dinov2_cls.npy", "--shards", 2)
    assert shards(release, *more) == 0
    assert "split train of 60 images" in capsys.readouterr().out
    written, source = open_split(release.folder / "set", "train"), ReleaseSource(features, images)
    for row in range(60):
        expected, found = source[row].descriptors, written[row].descriptors
        np.testing.assert_array_equal(found.valid, expected.valid)
        np.testing.assert_array_equal(found.features[found.valid], expected.features[found.valid])
        np.testing.assert_array_equal(found.weight[found.valid], expected.weight[found.valid])
    assert written.ids() == source.ids()
    np.testing.assert_array_equal(written.labels(), release.labels)
    np.testing.assert_array_equal(np.load(release.folder / "set" / "global" / "train.npy"), release.globals)
    about = read_about(release.folder / "set")
    assert about == {"name": "gldv2", "width": 8, "backbone": "dinov2", "global": "dinov2_cls"}


def test_shards_of_bits_and_of_another_data_set(release):
    bits = np.random.default_rng(0).integers(0, 256, (60, 6, 16), dtype=np.uint8)
    release.structured(bits)
    release.list()
    assert shards(release) == 0
    first = open_split(release.folder / "set", "train")
    assert (first.format.dtype, first.format.width) == ("bits", 128)
    again = release.folder / "again"
    assert run(
        "shards", "--root", again, "--name", "short", "--split", "train", "--features", release.folder / "set",
        "--descriptors", 3,
    ) == 0  # fmt: skip
    second = open_split(again, "train")
    np.testing.assert_array_equal(second[9].descriptors.features, first[9].descriptors.features[:3])
    np.testing.assert_array_equal(second.labels(), release.labels)


def test_int8_shards(release):
    release.hdf5()
    release.list()
    assert shards(release, "--dtype", "int8", "--descriptors", 4) == 0
    found = open_split(release.folder / "set", "train")[5].descriptors
    expected = release.features[5, :4].astype(np.float32)
    step = np.abs(expected).max(axis=1, keepdims=True) / 127
    assert (np.abs(found.features - expected) <= step * (0.5 + 127 * 2**-11)).all()


def test_reading_in_place(release):
    source = ReleaseSource(release.hdf5(), release.list())
    assert shards(release, "--in-place") == 0
    linked = open_split(release.folder / "set", "train")
    np.testing.assert_array_equal(linked[7].descriptors.features, source[7].descriptors.features)
    assert linked.format == source.format
    with pytest.raises(
        UserError, match=r"split 'train' is read in place; take another name, or delete train.source.json"
    ):
        shards(release)
    assert not list((release.folder / "set").glob("*.array_record*"))
    (release.folder / "set" / "images").mkdir()
    (release.folder / "set" / "images" / "train.ids.txt").touch()
    with pytest.raises(UserError, match="has shards already"):
        shards(release, "--in-place")


def test_values_that_are_not_numbers_stop_the_shards(release):
    release.features[33, 1, 2] = np.nan
    release.hdf5()
    release.list()
    with pytest.raises(UserError, match=r"image train/33, a.jpg: descriptor 1 holds NaN"):
        shards(release)


def test_import(release, capsys):
    similarities, indices = release.lists()
    truth = [{"ok": [i, 1]} for i in range(60)]
    path = release.pickle("gnd_toy.pkl", {"gnd": truth})
    root = release.folder / "set"
    assert run(
        "import", "--root", root, "--query", "test_query", "--database", "test_gallery", "--neighbours",
        release.neighbours(), "--columns", 5, "--dtype", "float16", "--ground-truth", path, "--global-name", "toy CLS",
    ) == 0  # fmt: skip
    assert "5 neighbours of 60 images" in capsys.readouterr().out
    lists = open_neighbours(root / "neighbours" / "test_query.test_gallery")
    np.testing.assert_array_equal(lists.indices, indices[:, :5])
    np.testing.assert_array_equal(lists.similarities, similarities[:, :5].astype(np.float16))
    assert lists.indices.dtype == np.int32
    assert lists.first_stage("VLAD of the set") == "toy CLS"
    assert dataclasses.replace(lists, about={}).first_stage(None) == "the given lists"
    found = json.loads((root / "ground_truth" / "toy.json").read_text())
    assert found == {"query": "test_query", "database": "test_gallery", "queries": truth}


def test_import_in_blocks_gives_the_same(release, monkeypatch):
    import_neighbours(release.neighbours(), release.folder / "whole")
    monkeypatch.setattr("ames_jax.data.release_pickles.BLOCK_BYTES", 7 * 20 * 4)
    import_neighbours(release.neighbours(), release.folder / "blocks")
    for name in ("indices.npy", "similarities.npy"):
        assert (release.folder / "whole" / name).read_bytes() == (release.folder / "blocks" / name).read_bytes()


def test_import_refuses_what_cannot_be_right(release):
    similarities, indices = release.lists()
    indices = indices.astype(np.float32)
    indices[3, 2] = 0.5
    with pytest.raises(UserError, match="not whole numbers"):
        import_neighbours(release.neighbours(np.stack([similarities, indices])), release.folder / "x")
    indices[3, 2] = 2**24
    with pytest.raises(UserError, match="holds row 16777216 as float32"):
        import_neighbours(release.neighbours(np.stack([similarities, indices])), release.folder / "x")
    with pytest.raises(UserError, match="--global-name"):
        run("import", "--root", release.folder, "--query", "q", "--ground-truth", "gnd.pkl", "--global-name", "toy")
    with pytest.raises(UserError, match="nothing to import"):
        run("import", "--root", release.folder, "--query", "train")


def test_neighbours(release):
    path = release.hdf5("dinov2_cls.hdf5", release.globals)
    out = release.folder / "set" / "neighbours" / "train.train"
    assert run("neighbours", "--queries", path, "--k", 9, "--out", out, "--block", 16) == 0
    lists = open_neighbours(out)
    np.testing.assert_array_equal(lists.indices, release.lists(9)[1])
    assert lists.about["exclude_self"] is True
    gallery = release.hdf5("gallery.hdf5", release.globals[:40])
    assert run("neighbours", "--queries", path, "--database", gallery, "--k", 9, "--out", release.folder / "q.g") == 0
    np.testing.assert_array_equal(
        open_neighbours(release.folder / "q.g").indices, nearest(release.globals, release.globals[:40], 9)[1]
    )


def test_neighbours_of_a_gallery_with_distractors(release):
    """Two files are searched as one; a k beyond the block gives whole rankings."""
    path = release.hdf5("query.hdf5", release.globals[:7])
    gallery = release.hdf5("gallery.hdf5", release.globals[:40])
    np.save(release.folder / "distractors.npy", release.globals[40:])
    both = ("--database", gallery, release.folder / "distractors.npy")
    for k, block in ((9, 16), (60, 16)):
        out = release.folder / f"q.{k}"
        assert run("neighbours", "--queries", path, *both, "--k", k, "--out", out, "--block", block) == 0
        found, rows = nearest(release.globals[:7], release.globals, k)
        np.testing.assert_array_equal(open_neighbours(out).indices, rows)
        np.testing.assert_allclose(open_neighbours(out).similarities, found, atol=1e-6)


def test_neighbours_name_what_cannot_be(release):
    path = release.hdf5("dinov2_cls.hdf5", release.globals)
    out = release.folder / "lists"
    search = ("neighbours", "--queries", path, "--out", out, "--block", 16)
    assert run(*search, "--k", 9) == 0
    assert run(*search, "--k", 9) == 0
    with pytest.raises(UserError, match=r"lists: was begun with other settings: k was 9, is 8. Name another folder"):
        run(*search, "--k", 8)
    with pytest.raises(UserError, match="process 2 of 2: count hosts from 0 to 1"):
        run(*search, "--k", 9, "--process", 2, "--processes", 2)
    with pytest.raises(UserError, match="--out is missing"):
        run("neighbours", "--queries", path)
    with pytest.raises(UserError, match=r"--k.*expected a number in 1\.\."):
        run(*search, "--k", 0)
    release.globals[21, 3] = np.nan
    nan = release.hdf5("nan.hdf5", release.globals)
    with pytest.raises(UserError, match=r"rows from 16 hold NaN or infinity: .* validate"):
        run("neighbours", "--queries", nan, "--k", 9, "--block", 16, "--out", release.folder / "x")


def test_the_race_with_faiss_prints_a_ratio(release, capsys):
    pytest.importorskip("faiss", reason="faiss is optional")
    np.save(release.folder / "g.npy", release.globals)
    assert run("neighbours", "--queries", release.folder / "g.npy", "--k", 5, "--compare-faiss") == 0
    assert "ratio" in capsys.readouterr().out


def files(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def test_a_killed_search_continues_and_ends_with_the_same_bytes(release, monkeypatch):
    values, folder = release.globals, release.folder
    search_to_folder(folder / "unbroken", values, values, 9, exclude_self=True, block=16)
    searched = []
    plain = BlockSearch.run

    def killed(self, queries, starts):
        for found in plain(self, queries, starts):
            if len(searched) == 2:
                raise KeyboardInterrupt
            searched.append(found[0])
            yield found

    monkeypatch.setattr(BlockSearch, "run", killed)
    with pytest.raises(KeyboardInterrupt):
        search_to_folder(folder / "killed", values, values, 9, exclude_self=True, block=16)
    with pytest.raises(UserError, match="is missing"):
        open_neighbours(folder / "killed")
    with pytest.raises(UserError, match="k was 9, is 8"):
        search_to_folder(folder / "killed", values, values, 8, exclude_self=True, block=16)

    block = folder / "killed" / ".unfinished" / "0.indices.npy"
    block.write_bytes(block.read_bytes()[:-1] + b"x")  # is made again

    def watched(self, queries, starts):
        searched.extend(starts)
        return plain(self, queries, starts)

    monkeypatch.setattr(BlockSearch, "run", watched)
    search_to_folder(folder / "killed", values, values, 9, exclude_self=True, block=16)
    assert searched == [0, 16, 0, 32, 48]
    assert files(folder / "killed") == files(folder / "unbroken")
    assert not (folder / "killed" / ".unfinished").exists()


def test_hosts_share_a_search(release):
    values, folder = release.globals, release.folder
    search_to_folder(folder / "one", values, values, 9, block=16)
    assert not search_to_folder(folder / "two", values, values, 9, block=16, process=1, processes=2)
    assert search_to_folder(folder / "two", values, values, 9, block=16, process=0, processes=2)
    assert files(folder / "two") == files(folder / "one")


def killed_at(name, plain):
    def write(path, value):
        if path.name == name:
            raise KeyboardInterrupt
        plain(path, value)

    return write


def test_two_hosts_that_end_together_give_the_same_lists(release, monkeypatch):
    """The other host finishes, and removes the blocks, while this one joins them."""
    values, folder = release.globals, release.folder
    search_to_folder(folder / "whole", values, values, 9, block=16)
    plain = neighbours._join

    def join_twice(*arguments):
        monkeypatch.setattr(neighbours, "_join", plain)
        blocks = neighbours.write_blocks

        def overtaken(path, *rest):
            monkeypatch.setattr(neighbours, "write_blocks", blocks)
            plain(*arguments)
            blocks(path, *rest)

        monkeypatch.setattr(neighbours, "write_blocks", overtaken)
        plain(*arguments)

    monkeypatch.setattr(neighbours, "_join", join_twice)
    assert search_to_folder(folder / "both", values, values, 9, block=16)
    assert files(folder / "both") == files(folder / "whole")
    assert not (folder / "both" / ".unfinished").exists()


def test_a_search_killed_while_it_finishes_is_finished(release, monkeypatch):
    values, folder = release.globals, release.folder
    search_to_folder(folder / "whole", values, values, 9, block=16)
    with monkeypatch.context() as patch:
        patch.setattr(neighbours, "write_json", killed_at("about.json", neighbours.write_json))
        with pytest.raises(KeyboardInterrupt):
            search_to_folder(folder / "killed", values, values, 9, block=16)
    assert search_to_folder(folder / "killed", values, values, 9, block=16)
    assert files(folder / "killed") == files(folder / "whole")


def test_a_store_of_the_release_and_of_shards(release, tmp_path, capsys):
    shape = AMESConfig(descriptor_width=8, bits=16, model_width=16, layers=1, feed_forward=16, heads=2)
    save_model(AMES(shape, nnx.Rngs(0)), tmp_path / "model")
    features = release.hdf5()
    release.list()
    more = ("--model", tmp_path / "model", "--descriptors", 4)
    lines = (release.folder / "train.txt").read_text(encoding="utf-8").splitlines()
    (tmp_path / "others.txt").write_text("".join(f"others/{line}\n" for line in lines), encoding="utf-8")
    listed = ("--list", tmp_path / "others.txt", release.folder / "train.txt")
    assert run("store", "--features", features, features, *listed, *more, "--out", tmp_path / "a.store") == 0
    assert "120 images, 8 B of descriptors each" in capsys.readouterr().out
    assert shards(release) == 0
    dataset = ("--features", release.folder / "set", "--split", "train")
    assert run("store", *dataset, *more, "--out", tmp_path / "b.store") == 0
    first, second = open_store(tmp_path / "a.store"), open_store(tmp_path / "b.store")
    assert first.setting is None
    for facts, setting in (({"lam": 0.4, "gamma": 2.0}, (0.4, 2.0)), ({"released": "dinov2_ames_dist"}, (0.35, 0.1))):
        save_model(AMES(shape, nnx.Rngs(0)), tmp_path / "model", facts)
        assert run("store", *dataset, *more, "--out", tmp_path / f"{setting[0]}.store") == 0
        assert open_store(tmp_path / f"{setting[0]}.store").setting == setting
    save_model(AMES(shape, nnx.Rngs(0)), tmp_path / "model", {"backbone": "sift"})
    write_about(release.folder / "set", read_about(release.folder / "set") | {"backbone": "dinov2"})
    with pytest.raises(UserError, match="was trained on sift descriptors, these are dinov2"):
        run("store", *dataset, *more, "--out", tmp_path / "c.store")
    np.testing.assert_array_equal(first.bits[60:], second.bits)
    np.testing.assert_array_equal(first.counts, np.tile(second.counts, 2))
    assert first.ids()[60:] == second.ids() == open_split(release.folder / "set", "train").ids()
    with pytest.raises(UserError, match="the lists name 60 images, the descriptor files hold 120"):
        run("store", "--features", features, features, *listed[:2], *more, "--out", tmp_path / "c.store")
    with pytest.raises(UserError, match="name one, and --split"):
        run("store", "--features", release.folder / "set", *more, "--out", tmp_path / "c.store")


def test_only_public_queries_count_in_validation(release, capsys):
    truth = [{"ok": [i]} for i in range(760)]
    path = release.pickle("gnd_gldv2-test.pkl", {"gnd": truth})
    splits = ("--query", "test_query", "--database", "test_gallery", "--ground-truth", path, "--name", "validation")
    assert run("import", "--root", release.folder, *splits, "--public") == 0
    found = json.loads((release.folder / "ground_truth" / "validation.json").read_text())["queries"]
    assert found == truth[:10] + [{"ok": []}] * 750
    small = release.pickle("gnd_small.pkl", {"gnd": truth[:9]})
    with pytest.raises(UserError, match="9 queries, of which the last 750 would be private"):
        run("import", "--root", release.folder, "--query", "q", "--ground-truth", small, "--public")


def test_what_the_system_refuses_is_one_line(release, capsys):
    def main():
        return run("import", "--root", release.hdf5(), "--query", "train", "--neighbours", release.neighbours())

    with pytest.raises(SystemExit) as ended:
        run_main(main)
    assert ended.value.code == 2
    *_, line = capsys.readouterr().err.splitlines()
    assert line == f"error: {release.folder}/dinov2_local.hdf5/neighbours/train.train: Not a directory"


def test_beam_writes_the_same_bytes(release):
    pytest.importorskip("apache_beam", reason="Apache Beam is optional")
    from ames_jax.data.shards import write_shards

    splits = {"train": ReleaseSource(release.hdf5(), release.list())}
    settings = {"descriptors": 6, "width": 8, "shards": 4}
    write_shards(release.folder / "plain", "toy", splits, **settings)
    write_shards(release.folder / "beam", "toy", splits, **settings, beam=[])
    assert files(release.folder / "beam") == files(release.folder / "plain")


def test_without_beam_the_error_says_what_to_install(release, monkeypatch):
    monkeypatch.setitem(sys.modules, "apache_beam", None)
    release.hdf5()
    release.list()
    with pytest.raises(UserError, match="pip install apache-beam"):
        shards(release, "--beam=--runner=DirectRunner")


def test_validate_and_exit_codes(release, capsys):
    features = release.hdf5()
    assert run("validate", features, "--full") == 0
    features.write_bytes(features.read_bytes()[:-500])
    assert run("validate", features) == 2
    assert "PROBLEM" in capsys.readouterr().out
    command = ("shards", "--root", release.folder / "x", "--name", "a", "--split", "train", "--features", features)
    with pytest.raises(SystemExit) as ended:
        run_main(lambda: run(*command))
    error = capsys.readouterr().err
    assert ended.value.code == 2
    assert error.count("\n") == 1
    assert "is cut short" in error


def test_another_file_of_the_same_name_is_not_taken_for_the_old_one(release):
    release.hdf5(), release.list()
    assert shards(release) == 0
    assert shards(release) == 0
    changed = release.flat
    changed[30] = changed[29]
    release.hdf5(data=changed)
    with pytest.raises(UserError, match="set train: was begun with other settings: inputs was"):
        shards(release)


def test_an_id_twice_in_a_store_is_refused(release, tmp_path):
    save_model(
        AMES(AMESConfig(descriptor_width=8, bits=16, model_width=16, heads=2, layers=1), nnx.Rngs(0)), tmp_path / "m"
    )
    lines = release.list().read_text().replace("train/7, a", "train/3, a")
    (release.folder / "train.txt").write_text(lines)
    store = ("store", "--features", release.hdf5(), "--list", release.folder / "train.txt", "--model", tmp_path / "m")
    with pytest.raises(UserError, match=r"train.txt: image 8 has the id 'train/3, a.jpg' of image 4"):
        run(*store, "--out", tmp_path / "g.store")
