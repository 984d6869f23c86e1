"""The whole of `python -m ames_jax.evaluate`: the release's figures, own data, resumption, and bad input."""

from __future__ import annotations

import dataclasses
import json
import pickle
import shutil
from pathlib import Path

import h5py
import jax
import numpy as np
import pytest
import synthetic
from flax import nnx

from ames_jax.data.neighbours import save_neighbours
from ames_jax.data.shards import write_about
from ames_jax.data.store import build_store
from ames_jax.evaluate import main
from ames_jax.model.ames import AMES, AMESConfig
from ames_jax.model.packing import BitPacker
from ames_jax.model.released import load_model
from ames_jax.model.torch_weights import from_torch, infer_config
from ames_jax.model.weights import save_model
from ames_jax.report.retrieval_evaluation import evaluate
from ames_jax.report.tables import descriptor_notes, fit_notes
from ames_jax.retrieval.metrics import gldv2_protocols, mean_average_precision
from ames_jax.retrieval.opening import open_set
from ames_jax.retrieval.sets import RetrievalSet
from ames_jax.runtime.command_line import load_config
from ames_jax.runtime.errors import UserError, run_main
from ames_jax.runtime.files import write_array

REPO = Path(__file__).resolve().parents[2]
REFERENCE = REPO.parent / "shared" / "reference" / "evaluation"
WIDTH, QUERIES, IMAGES, STORED = 16, 5, 30, 6


def config(**fields):
    found = load_config(REPO / "configs" / "evaluate.py")
    found.update(fields)
    return found


@pytest.fixture(autouse=True)
def one_device(monkeypatch, request):
    """The small shortlists here, spread over 8 fake devices, would compile a program for nearly every length."""
    if "many_devices" not in request.fixturenames:
        first = jax.local_devices()[:1]
        monkeypatch.setattr(jax, "local_devices", lambda: first)


@pytest.fixture
def many_devices() -> None:
    """Asked for by a test that shall run on all devices."""


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> dict[str, str]:
    """A full-precision and a binary model of random weights, saved."""
    folder = tmp_path_factory.mktemp("models")
    for name, bits in (("floats", None), ("bits", 32)):
        shape = AMESConfig(descriptor_width=WIDTH, bits=bits, model_width=16, heads=2, layers=1, feed_forward=16)
        save_model(AMES(shape, nnx.Rngs(0)), folder / name)
    return {name: str(folder / name) for name in ("floats", "bits")}


@pytest.fixture
def own_data(tmp_path) -> Path:
    """A folder with a manifest: HDF5 descriptors of the release's flat layout, lists with labels, neighbours."""
    rng = np.random.default_rng(0)
    labels = {"query": np.arange(QUERIES), "gallery": rng.integers(0, QUERIES, IMAGES)}
    for side, count in (("query", QUERIES), ("gallery", IMAGES)):
        rows = np.zeros((count, STORED, 5 + WIDTH), np.float16)
        rows[..., 5:] = rng.normal(size=(count, STORED, WIDTH))
        rows[..., :2] = rng.random((count, STORED, 2))
        rows[..., 3] = np.arange(STORED) >= rng.integers(2, STORED + 1, count)[:, None]
        with h5py.File(tmp_path / f"{side}.hdf5", "w") as file:
            file["features"] = rows
        lines = [f"{side}{row},{label}\n" for row, label in enumerate(labels[side])]
        (tmp_path / f"{side}.txt").write_text("".join(lines))
    ranks = np.stack([rng.permutation(IMAGES) for _ in range(QUERIES)])
    save_neighbours(tmp_path / "neighbours", -np.sort(-rng.random(ranks.shape), axis=1), ranks)
    manifest = {
        "name": "own photos", "metric": "map@100", "first_stage": "random", "neighbours": "neighbours",
        "query": {"descriptors": "query.hdf5", "list": "query.txt"},
        "gallery": {"descriptors": "gallery.hdf5", "list": "gallery.txt"},
    }  # fmt: skip
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    return tmp_path


def run(data: Path, workdir: Path, model: str, **fields):
    settings = {
        "data_dir": str(data),
        "dataset": "custom",
        "model": model,
        "rerank": "10",
        "lam": "0.4",
        "gamma": "0.5",
    }
    return evaluate(config(**(settings | fields)), workdir)


def change_manifest(data: Path, **changes) -> None:
    manifest = json.loads((data / "manifest.json").read_text()) | changes
    kept = {key: value for key, value in manifest.items() if value is not None}
    (data / "manifest.json").write_text(json.dumps(kept))


@pytest.mark.skipif(not REFERENCE.is_dir(), reason="the golden files of the release are not beside the repository")
@pytest.mark.parametrize(("dataset", "count"), [("roxford5k", 12), ("rparis6k", 6), ("gldv2-val", 12)])
def test_figures_equal_the_release(dataset, count, tmp_path):
    """The settings in results.json of the golden files, from the release's own HDF5 and pickles."""
    weights = dict(np.load(REFERENCE / "matcher_fp.npz"))
    save_model(from_torch(weights, infer_config(weights, heads=2)), tmp_path / "matcher")
    names = {"M_map": "medium", "H_map": "hard", "pub_map": "public", "priv_map": "private", "map": "combined"}
    if dataset == "gldv2-val":
        names["map"] = "public"
    golden = json.loads((REFERENCE / "results.json").read_text())[dataset]["rerank"]
    golden = [row for row in golden if row["db_desc_num"] == count]
    lists = {
        ours: ",".join(str(value) for value in sorted({row[theirs] for row in golden}))
        for ours, theirs in (("rerank", "rerank"), ("lam", "lamb"), ("gamma", "temp"))
    }
    fields = {"data_dir": str(REFERENCE), "dataset": dataset, "model": str(tmp_path / "matcher")}
    fields |= {"query_descriptors": 12, "database_descriptors": count}
    found = evaluate(config(**fields, **lists), tmp_path / "run")["rows"]
    by_setting = {(row["rerank"], row["lam"], row["gamma"]): row for row in found}
    for row in golden:
        for theirs, value in row["metrics"].items():
            ours = by_setting[row["rerank"], row["lamb"], row["temp"]][names[theirs]]
            assert round(ours, 3) == value, (row, names[theirs])


def test_all_devices_give_the_scores_of_one(own_data, models, tmp_path, many_devices, monkeypatch):
    def logits(name: str) -> np.ndarray:
        run(own_data, tmp_path / name, models["floats"])
        return np.load(tmp_path / name / "logits.npz")["logits"]

    many = logits("many")
    first = jax.local_devices()[:1]
    monkeypatch.setattr(jax, "local_devices", lambda: first)
    np.testing.assert_allclose(many, logits("one"), atol=1e-6)


def test_what_a_run_writes(own_data, models, tmp_path):
    results = run(
        own_data, tmp_path / "run", models["floats"], rerank="5,10", lam="0,1", gamma="0.5", database_descriptors=4
    )
    assert results == json.loads((tmp_path / "run" / "results.json").read_text())
    assert results["dataset"] == "own photos"
    assert results["first_stage"]["name"] == "random"
    assert len(results["rows"]) == 4
    for row in results["rows"]:
        assert row["bytes_per_image"] == 4 * 2 * 16
        if row["lam"] == 1:
            assert row["mAP@100"] == pytest.approx(results["first_stage"]["mAP@100"])
    assert "after random" in (tmp_path / "run" / "results.md").read_text()


def test_saved_logits_sweep_without_a_model(own_data, models, tmp_path):
    straight = run(own_data, tmp_path / "a", models["floats"], rerank="10", lam="0.3", gamma="2")
    run(own_data, tmp_path / "b", models["floats"], rerank="10")
    swept = run(own_data, tmp_path / "c", "", logits=str(tmp_path / "b" / "logits.npz"), lam="0.3", gamma="2")
    assert swept["rows"] == straight["rows"]
    assert swept["model"] == straight["model"]


def test_fewer_descriptors_change_the_scores(own_data, models, tmp_path):
    def logits(**fields) -> np.ndarray:
        run(own_data, tmp_path / "run", models["floats"], **fields)
        return np.load(tmp_path / "run" / "logits.npz")["logits"]

    full = logits()
    for fields in ({"query_descriptors": 2}, {"database_descriptors": 2}):
        assert np.abs(logits(**fields) - full).max() > 1e-4


def test_relevance_by_id_equals_labels(own_data, models, tmp_path):
    by_label = run(own_data, tmp_path / "a", models["floats"])
    lines = [line.split(",") for line in (own_data / "gallery.txt").read_text().split()]
    truth = [{"ok": [name for name, label in lines if int(label) == query]} for query in range(QUERIES)]
    (own_data / "truth.json").write_text(json.dumps(truth))
    change_manifest(own_data, ground_truth="truth.json")
    assert run(own_data, tmp_path / "b", models["floats"])["rows"] == by_label["rows"]


def test_a_packed_store_gives_exactly_the_figures_of_its_floats(own_data, models, tmp_path):
    floats = run(own_data, tmp_path / "a", models["bits"], database_descriptors=5)
    assert floats["rows"][0]["bytes_per_image"] == 5 * 4
    task = open_set(own_data, "custom", "", "", tmp_path / "lists")
    packer = BitPacker(load_model(models["bits"]))
    ids = [str(row) for row in range(IMAGES)]
    build_store(tmp_path / "g.store", task.database, ids, packer, STORED, model="bits", source="own photos")
    stored = run(own_data, tmp_path / "b", models["bits"], database_descriptors=5, store=str(tmp_path / "g.store"))
    assert stored["rows"] == floats["rows"]
    logits = [np.load(tmp_path / name / "logits.npz")["logits"] for name in "ab"]
    np.testing.assert_array_equal(*logits)


def test_a_prepared_data_set_is_tuned_on_validation_and_measured_on_test(tmp_path):
    root = synthetic.write(tmp_path / "set")
    shape = AMESConfig(descriptor_width=synthetic.WIDTH, model_width=16, heads=2, layers=1, feed_forward=16)
    save_model(AMES(shape, nnx.Rngs(0)), tmp_path / "model")
    fields = {"dataset": "test", "tune_on": "validation", "lam": "0,1", "gamma": "1"}
    results = run(root, tmp_path / "run", str(tmp_path / "model"), **fields)
    truth = (root / "ground_truth" / "test.json").read_text()
    (root / "ground_truth" / "gldv2-test.json").write_text(truth)  # a benchmark's shards are judged as the benchmark is
    for name, protocols in (("gldv2-test", gldv2_protocols()), ("gldv2-val", gldv2_protocols()[:1])):
        assert open_set(root, name, "", "", tmp_path).protocols == protocols
    assert results["tuned_on"]["dataset"] == "synthetic, validation"
    assert results["dataset"] == "synthetic, test"
    assert results["first_stage"]["name"] == "mean"
    test = RetrievalSet.load(root, "test")
    assert results["first_stage"]["mAP"] == pytest.approx(test.figures()["mAP"])


def test_tuning_chooses_the_best_mean(own_data, models, tmp_path):
    results = run(own_data, tmp_path / "run", models["floats"], tune_on="custom", lam="0,0.5,1", gamma="0.1,1")
    assert len(results["tuned_on"]["rows"]) == 6
    chosen = results["tuned_on"]["chosen"]
    (row,) = results["rows"]
    assert (row["lam"], row["gamma"]) == (chosen["lam"], chosen["gamma"])
    names = ("mAP@100", "R@1", "R@10", "R@100")
    best = max(np.mean([row[name] for name in names]) for row in results["tuned_on"]["rows"])
    assert np.mean([row[name] for name in names]) == pytest.approx(best)


def test_the_memory_sweep_draws_and_tabulates(own_data, models, tmp_path):
    results = run(own_data, tmp_path / "run", models["bits"], tune_on="custom", sweep_memory=True)
    rows = results["memory"]["mAP@100"]
    assert [row["kind"] for row in rows] == ["global", "student", "kernel on bits"]
    assert (tmp_path / "run" / "tradeoff-mAP@100.png").stat().st_size > 10_000
    assert "own photos" in (tmp_path / "run" / "memory.md").read_text()


def test_first_stage_is_its_own_map(own_data, models, tmp_path):
    results = run(own_data, tmp_path / "run", models["floats"])
    labels = [int(line.split(",")[1]) for line in (own_data / "gallery.txt").read_text().split()]
    truth = [{"ok": np.flatnonzero(np.array(labels) == query)} for query in range(QUERIES)]
    expected = mean_average_precision(np.load(own_data / "neighbours" / "indices.npy"), truth, depth=100)
    assert results["first_stage"]["mAP@100"] == pytest.approx(expected)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"lam": "1.5"}, "lam=1.5"),
        ({"lam": "a"}, "--config.lam=a: expected numbers"),
        ({"gamma": "-1"}, "gamma=-1"),
        ({"gamma": "inf"}, "gamma=inf: the scale of the scores must be a finite number"),
        ({"query_descriptors": 0}, "--config.query_descriptors=0: expected at least 1"),
        ({"database_descriptors": -1}, "--config.database_descriptors=-1: expected at least 1"),
        ({"memory_gb": 0.0}, "--config.memory_gb=0: expected a number above 0"),
        ({"memory_gb": float("nan")}, "--config.memory_gb=nan: expected a number above 0"),
        ({"rerank": "0"}, "rerank=0"),
        ({"rerank": ""}, "--config.rerank is empty"),
        ({"rerank": "31"}, "rerank=31: the first stage lists 30"),
        ({"lam": ""}, "floats does not say: give a value"),
        ({"model": ""}, "--config.model is empty"),
        ({"data_dir": ""}, "--config.data_dir is empty"),
        ({"data_dir": "/nowhere"}, "/nowhere"),
        ({"dataset": "roxfrd5k"}, "did you mean roxford5k"),
        ({"dataset": "roxford5k"}, "no data of roxford5k"),
        ({"store": "x.store"}, "which a full-precision model cannot read"),
        ({"logits": "x.npz", "model": ""}, "x.npz is not a logits.npz"),
        ({"sweep_memory": True, "lam": "0,1"}, "takes one lam"),
    ],
)
def test_bad_options_are_one_clear_line(own_data, models, tmp_path, fields, message):
    with pytest.raises(UserError, match=message) as caught:
        run(own_data, tmp_path / "run", **({"model": models["floats"]} | fields))
    assert "\n" not in str(caught.value)


def test_a_model_brings_its_lambda_and_gamma(own_data, models, tmp_path):
    save_model(load_model(models["floats"]), tmp_path / "known", {"lam": 0.3, "gamma": 0.7})
    (row,) = run(own_data, tmp_path / "run", str(tmp_path / "known"), lam="", gamma="")["rows"]
    assert (row["lam"], row["gamma"]) == (0.3, 0.7)
    (row,) = run(own_data, tmp_path / "run", str(tmp_path / "known"), lam="0.5", gamma="")["rows"]
    assert (row["lam"], row["gamma"]) == (0.5, 0.7)


@pytest.mark.parametrize("names", ["{}", "{},kernel"])
def test_a_model_of_other_descriptors_is_refused(own_data, models, tmp_path, names):
    save_model(load_model(models["bits"]), tmp_path / "sift", {"backbone": "sift"})
    write_about(own_data, {"backbone": "dinov2"})
    with pytest.raises(UserError, match="sift was trained on sift descriptors, these are dinov2"):
        run(own_data, tmp_path / "run", names.format(tmp_path / "sift"), tune_on="custom")


def test_the_command_ends_with_code_2_and_one_line(capsys):
    with pytest.raises(SystemExit) as ended:
        run_main(lambda: main([f"--config={REPO / 'configs' / 'evaluate.py'}", "--config.modle=x"]))
    error = capsys.readouterr().err
    assert ended.value.code == 2
    assert error.count("\n") == 1
    assert "did you mean --config.model" in error


def foreign_lists(data):
    ranks = np.load(data / "neighbours" / "indices.npy")
    write_array(data / "neighbours" / "indices.npy", ranks + 1)


def short_truth(data):
    (data / "truth.json").write_text(json.dumps([{"ok": [0]}] * 4))
    change_manifest(data, ground_truth="truth.json")


def wide_descriptors(data):
    with h5py.File(data / "gallery.hdf5", "w") as file:
        file["features"] = np.ones((IMAGES, STORED, 5 + 3), np.float32)


def unknown_id(data):
    (data / "truth.json").write_text(json.dumps([{"ok": ["nobody"]}] * QUERIES))
    change_manifest(data, ground_truth="truth.json")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (foreign_lists, "belongs? to another database"),
        (short_truth, "ground truth has 4 queries"),
        (wide_descriptors, "width"),
        (unknown_id, "names 'nobody'"),
        (lambda data: (data / "gallery.hdf5").unlink(), "'gallery.hdf5' is neither an HDF5 file"),
        (lambda data: (data / "gallery.txt").unlink(), "gallery.txt is missing"),
        (lambda data: change_manifest(data, metric="mAP"), "metric 'mAP' is not known"),
        (lambda data: change_manifest(data, galery={}), "unknown key 'galery'; did you mean gallery"),
        (lambda data: change_manifest(data, neighbours=None), "neighbours is missing"),
        (lambda data: (data / "manifest.json").write_text("{"), "cannot be read as JSON"),
    ],
)
def test_bad_data_is_one_clear_line(own_data, models, tmp_path, damage, message):
    damage(own_data)
    with pytest.raises(UserError, match=message):
        run(own_data, tmp_path / "run", models["floats"])


@pytest.fixture
def other_store(own_data, tmp_path) -> Path:
    """The gallery packed by another binary model."""
    shape = AMESConfig(descriptor_width=WIDTH, bits=32, model_width=16, layers=1, feed_forward=16)
    other = BitPacker(AMES(shape, nnx.Rngs(1)))
    database = open_set(own_data, "custom", "", "", tmp_path / "lists").database
    build_store(own_data / "g.store", database, ["x"] * IMAGES, other, STORED, model="other", source="own photos")
    return own_data / "g.store"


@pytest.mark.parametrize(
    ("model", "message"), [("bits", "made by another model"), ("floats", "which a full-precision model cannot read")]
)
@pytest.mark.parametrize("where", ["config", "manifest"])
def test_a_store_that_the_model_cannot_read_is_refused(own_data, models, other_store, tmp_path, where, model, message):
    if where == "manifest":
        change_manifest(own_data, gallery={"descriptors": "g.store", "list": "gallery.txt"})
    with pytest.raises(UserError, match=message):
        run(own_data, tmp_path / "run", models[model], store=str(other_store) if where == "config" else "")


def test_pickled_lists_are_imported_once(own_data, models, tmp_path):
    lists = own_data / "neighbours"
    values = np.stack([np.load(lists / f"{name}.npy").astype(np.float32) for name in ("similarities", "indices")])
    expected = run(own_data, tmp_path / "a", models["floats"])
    (own_data / "nn_random.pkl").write_bytes(pickle.dumps(values))
    change_manifest(own_data, neighbours="nn_random.pkl")
    assert run(own_data, tmp_path / "b", models["floats"])["rows"] == expected["rows"]
    (copy,) = (tmp_path / "b" / "lists").iterdir()
    before = (copy / "indices.npy").stat().st_mtime_ns
    run(own_data, tmp_path / "b", models["floats"])
    assert (copy / "indices.npy").stat().st_mtime_ns == before
    values[1] = values[1, :, ::-1]
    (own_data / "nn_random.pkl").write_bytes(pickle.dumps(values))
    assert run(own_data, tmp_path / "b", models["floats"])["rows"] != expected["rows"]


def test_the_release_layout_is_found(own_data, tmp_path):
    """A folder a data set, `gldv2-val` in that of `gldv2-test`; names what is missing."""
    folder = own_data / "gldv2-test"
    folder.mkdir()
    (folder / "gnd_gldv2-test.pkl").write_bytes(pickle.dumps({"gnd": [{"ok": [0]}] * QUERIES}))
    with pytest.raises(UserError, match=r"dinov2_gallery_local.hdf5 is missing"):
        open_set(own_data, "gldv2-val", "dinov2", "dinov2", tmp_path)


def test_descriptors_that_are_no_numbers_are_named_by_file_and_image(own_data, models, tmp_path):
    shutil.copytree(own_data, tmp_path / "data")
    row = int(np.load(own_data / "neighbours" / "indices.npy")[1, 0])
    with h5py.File(tmp_path / "data" / "gallery.hdf5", "r+") as file:
        file["features"][row, 0, 9] = np.nan
    with pytest.raises(UserError, match=rf"data.gallery.hdf5: database image {row} holds NaN or infinity"):
        run(tmp_path / "data", tmp_path / "run", models["floats"], dataset="custom")


def test_lists_and_masks_that_look_wrong_are_noted(own_data, tmp_path):
    shutil.copytree(own_data, tmp_path / "data")
    before = descriptor_notes(open_set(own_data, "custom", "", "", tmp_path))
    with h5py.File(tmp_path / "data" / "gallery.hdf5", "r+") as file:
        file["features"][:, :, 3] = 1 - file["features"][:, :, 3]
    data = open_set(tmp_path / "data", "custom", "", "", tmp_path)
    ranks = np.array(data.ranks)
    ranks[1, 4] = ranks[1, 0]
    turned = dataclasses.replace(data, similarities=np.asarray(data.similarities)[:, ::-1], ranks=ranks)
    added = "\n".join(note for note in descriptor_notes(turned) if note not in before)
    assert "not sorted by falling similarity: make them again" in added
    assert "name an image twice for one query: make them again" in added
    assert "most images of gallery.hdf5 (database) begin with padding" in added


def test_lists_of_elvis_name_rows_of_the_local_file(own_data, models, tmp_path, capsys):
    """Their gallery may be larger than the file of local descriptors; figures are those of lists of that file."""
    ranks = np.load(own_data / "neighbours" / "indices.npy")
    similarities, right = np.load(own_data / "neighbours" / "similarities.npy"), [[2, 3], [5], [7, 8], [1], [0, 9]]
    rows = {}
    for name, factor in (("plain", 1), ("elvis", 7)):
        folder = tmp_path / name / "instre"
        folder.mkdir(parents=True)
        for side in ("query", "gallery"):
            shutil.copy(own_data / f"{side}.hdf5", folder / f"dinov2_{side}_local.hdf5")
        with h5py.File(folder / "dinov2_query_local.hdf5", "r+") as file:
            file["features"][0, 0, 4] = -0.5
        truth = [{"ok": [factor * row for row in entry]} for entry in right]
        (folder / "gnd_instre.pkl").write_bytes(pickle.dumps({"gnd": truth}))
        lists = [similarities, factor * ranks, *([ranks] if name == "elvis" else [])]
        (folder / "nn_dinov2.pkl").write_bytes(pickle.dumps(np.stack(lists).astype(np.float32)))
        rows[name] = run(tmp_path / name, tmp_path / "run" / name, models["floats"], dataset="instre")["rows"]
    assert rows["elvis"] == rows["plain"]
    printed = capsys.readouterr().out
    assert "note: dinov2_query_local.hdf5 (queries) has weights below 0" in printed
    assert "note: dinov2_query_local.hdf5 (queries) is not sorted by falling weight" in printed
    assert "note: descriptors of dinov2_gallery_local.hdf5 (database) have lengths from" in printed
    with pytest.raises(UserError, match="has no global descriptors"):
        run(tmp_path / "elvis", tmp_path / "run" / "elvis", models["floats"], dataset="instre", refine="expand")


def test_several_methods_in_one_table(own_data, models, tmp_path, capsys):
    names = ["kernel", "maxsim", "mutual", "ransac", "ransac16"]
    results = run(own_data, tmp_path / "run", ",".join([models["bits"], *names, "global"]), tune_on="custom")
    rows = {row["method"]: row for row in results["rows"]}
    assert list(rows) == ["bits", *names, "the first stage alone"]
    bits = rows["bits"]["bytes_per_image"]
    assert [row["bytes_per_image"] / bits for row in rows.values()] == [1, 1, 1, 1, (4 + 2) / 4, (4 + 4) / 4, 0]
    assert rows["mutual"]["threshold"].startswith("mutual, query ")
    assert rows["ransac"]["threshold"].startswith(("similarity", "affine", "homography"))
    assert rows["bits"]["pairs_per_second"] > 0
    assert rows["bits"]["parameters"] > 100
    assert rows["the first stage alone"]["mAP@100"] == results["first_stage"]["mAP@100"]
    assert "| mutual " in capsys.readouterr().out
    alone = run(own_data, tmp_path / "floats", ",".join([models["bits"], "kernel", "floats"]), tune_on="custom")
    assert [row["bytes_per_image"] for row in alone["rows"]] == [bits, bits, 600 * 2 * WIDTH]
    twin = Path(shutil.copytree(models["bits"], tmp_path / "other" / "bits"))
    alike = run(own_data, tmp_path / "alike", f"{models['bits']},{twin}", tune_on="custom")
    assert [row["method"] for row in alike["rows"]] == [models["bits"], str(twin)]
    with pytest.raises(UserError, match="several methods, and those without"):
        run(own_data, tmp_path / "none", "kernel")


def test_methods_on_a_refined_first_stage(tmp_path):
    root = synthetic.write(tmp_path / "set")
    fields = {"dataset": "test", "tune_on": "validation"}
    with pytest.raises(UserError, match=r"refine=expand: .* has no global descriptors"):
        run(root, tmp_path / "run", "global@expand", **fields)
    synthetic.write_globals(root)
    names = "global,global@expand,kernel@augment+expand,kernel"
    results = run(root, tmp_path / "run", names, **fields)
    assert [row["first_stage"] for row in results["rows"]] == ["mean", "mean + expand", "mean + augment+expand", "mean"]
    assert len({row["mAP"] for row in results["rows"]}) > 2


@pytest.mark.parametrize(
    ("model", "told"),
    [
        ("ransack", "--config.model=ransack: no method or model of this name; did you mean ransac"),
        ("runs/student_bin,mutuals", "did you mean mutual"),
        ("kernel@supergobal", "did you mean superglobal"),
    ],
)
def test_a_misspelt_method_is_one_line(own_data, tmp_path, model, told):
    with pytest.raises(UserError, match=told) as caught:
        run(own_data, tmp_path / "run", model, tune_on="custom")
    assert "\n" not in str(caught.value)


def test_positions_are_asked_for(own_data, models, tmp_path):
    packer, task = BitPacker(load_model(models["bits"])), open_set(own_data, "custom", "", "", tmp_path / "lists")
    ids = [str(row) for row in range(IMAGES)]
    build_store(tmp_path / "g.store", task.database, ids, packer, STORED, model="bits", source="own photos")
    with pytest.raises(UserError, match="ransac: the database of own photos have no positions"):
        run(own_data, tmp_path / "run", f"{models['bits']},ransac", tune_on="custom", store=str(tmp_path / "g.store"))


def test_a_result_below_the_first_stage_says_so():
    stage = {"name": "CLIP", "Medium": 80.0, "Hard": 60.0}
    rows = [{"Medium": 70.0, "Hard": 61.0}, {"Medium": 75.0, "Hard": 50.0}]
    notes = fit_notes({"first_stage": stage, "rows": rows}, tuned=False)
    assert len(notes) == 2
    assert notes[0].startswith("note: Medium is 75.00 re-ranked and 80.00 by the first stage alone. Likely causes: ")
    assert "chosen after dinov2 or cvnet or superglobal; the first stage here is CLIP" in notes[1]
    assert fit_notes({"first_stage": {**stage, "name": "superglobal", "Medium": 70.0}, "rows": rows}, tuned=False) == []


def test_plans_from_coarse_to_fine(own_data, models, tmp_path):
    fields = {"tune_on": "custom", "query_descriptors": 4, "database_descriptors": 4, "rerank": "10"}
    plans = ["kernel@9,4x4", "2x4@3,4x4", "4x4@3,2x4@6,kernel"]
    results = run(own_data, tmp_path / "run", models["bits"], **fields, plan=" ".join(plans))
    assert [row["plan"] for row in results["plans"]] == ["4x4", *plans]
    assert [row["pairs"] for row in results["plans"]] == [1.0, 0.9, 0.3, 0.3]
    assert all(row["seconds"] > 0 for row in results["plans"])
    [everything, _] = run(own_data, tmp_path / "run", models["bits"], **fields, plan="kernel@1,4x4")["plans"]
    assert everything["mAP@100"] == results["plans"][0]["mAP@100"]


def test_a_plan_that_cannot_be_measured_is_refused_before_anything_is_scored(own_data, models, tmp_path):
    for model, fields, told in (
        (models["bits"], {"lam": "0.5", "gamma": "1", "plan": "kernel@3,4x4"}, "all stages are tuned"),
        (models["bits"], {"tune_on": "custom", "plan": "kernel@3,4x4 kernel@10,4x4"}, "kernel@10,4x4: does not shrink"),
        (f"{models['bits']},kernel", {"tune_on": "custom", "plan": "kernel@3,4x4"}, "is of one model"),
    ):
        with pytest.raises(UserError, match=told):
            run(own_data, tmp_path / "run", model, rerank="10", **fields)
    assert not (tmp_path / "run").exists()
