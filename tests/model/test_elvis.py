"""ELViS beside the authors' code on random weights (golden file), and what must not change a score."""

import dataclasses
from pathlib import Path

import jax
import numpy as np
import optax
import pytest
from flax import nnx

from ames_jax.descriptors import DescriptorSet
from ames_jax.model import released
from ames_jax.model.elvis import ELViS, ELViSConfig
from ames_jax.model.initialisation import initialise
from ames_jax.model.kinds import config_of, fields_of
from ames_jax.model.packing import BitPacker
from ames_jax.model.released import load_model
from ames_jax.model.torch_files import write_checkpoint
from ames_jax.model.torch_weights import from_torch, infer_config, release_names, to_torch
from ames_jax.model.weights import save_model
from ames_jax.retrieval.scorer import Scorer, score_pairs, score_shortlist
from ames_jax.runtime.errors import UserError

GOLDEN = np.load(Path(__file__).parents[1] / "golden" / "elvis_tiny.npz")
WEIGHTS = {name[6:]: GOLDEN[name] for name in GOLDEN.files if name.startswith("param/")}
BINARY = ELViSConfig(descriptor_width=24, bits=16, model_width=16)
RANDOM = np.random.default_rng(0)


def golden_pairs(case: str) -> tuple[DescriptorSet, DescriptorSet]:
    return tuple(
        DescriptorSet(GOLDEN[f"{case}/{side}"], ~GOLDEN[f"{case}/{side}_mask"]) for side in ("query", "database")
    )


def released_model() -> ELViS:
    return from_torch(WEIGHTS, dataclasses.replace(infer_config(WEIGHTS), padding="released"))


@pytest.fixture(scope="module")
def binary() -> ELViS:
    return ELViS(BINARY, nnx.Rngs(0))


@pytest.mark.parametrize("case", ["case0", "case1", "case2"])
def test_scores_equal_the_authors(case):
    scores = score_pairs(released_model(), *golden_pairs(case))
    np.testing.assert_allclose(scores, GOLDEN[f"{case}/score"], atol=1e-5)


@pytest.mark.parametrize("case", ["case0", "case2"])
def test_without_padding_the_default_gives_the_same_scores(case, tmp_path):
    write_checkpoint(tmp_path / "elvis.pt", WEIGHTS)
    sides = [DescriptorSet(side.features) for side in golden_pairs(case)]
    scores = score_pairs(load_model(tmp_path / "elvis.pt"), *sides)
    np.testing.assert_allclose(scores, GOLDEN[f"{case}/score"], atol=1e-5)


def test_loss_and_gradients_equal_the_authors():
    graph, params = nnx.split(released_model())
    sides = golden_pairs("train")

    def loss(params):
        logits = nnx.merge(graph, params)(*sides, train=True).logit
        return optax.sigmoid_binary_cross_entropy(logits, GOLDEN["train/labels"]).mean(), logits

    (value, logits), gradients = jax.jit(jax.value_and_grad(loss, has_aux=True))(params)
    np.testing.assert_allclose(logits, GOLDEN["train/score"], atol=1e-5)
    np.testing.assert_allclose(value, GOLDEN["train/loss"], rtol=1e-5)
    found = to_torch(nnx.merge(graph, gradients))
    for name, gradient in found.items():
        expected = GOLDEN[f"train/grad/{name}"]
        np.testing.assert_allclose(gradient, expected, atol=1e-4 * np.abs(expected).max(), err_msg=name)


def test_padding_changes_no_score():
    """Rows of padding hold anything; with padding="released" they take part in the transport, as the authors have it."""
    query, database = (DescriptorSet(side.features) for side in golden_pairs("case0"))
    padded = []
    for side, rows in ((query, 27), (database, 16)):
        long = side.pad(rows)
        features = np.where(
            long.valid[..., None], long.features, RANDOM.standard_normal(long.features.shape, np.float32)
        )
        padded.append(DescriptorSet(features, long.valid))
    counted = from_torch(WEIGHTS)
    np.testing.assert_allclose(score_pairs(counted, *padded), score_pairs(counted, query, database), atol=1e-5)
    theirs = released_model()
    assert np.abs(score_pairs(theirs, *padded) - score_pairs(theirs, query, database)).max() > 1e-2


def test_order_and_batch_change_no_score():
    model, (query, database) = from_torch(WEIGHTS), golden_pairs("case1")
    alone = np.concatenate([score_pairs(model, query[i : i + 1], database[i : i + 1]) for i in range(4)])
    turned = [DescriptorSet(side.features[:, ::-1], side.valid[:, ::-1]) for side in (query, database)]
    np.testing.assert_allclose(score_pairs(model, *turned), alone, atol=1e-5)
    np.testing.assert_allclose(Scorer(model, micro_batch=3).pairs(query, database), alone, atol=1e-5)
    lists = [score_shortlist(model, query[i], database)[i] for i in range(4)]
    np.testing.assert_allclose(lists, alone, atol=1e-5)


def test_an_image_without_descriptors_scores_least():
    model, (query, database) = from_torch(WEIGHTS), golden_pairs("case1")
    nothing = np.zeros_like(database.valid)
    empty = score_pairs(model, query, DescriptorSet(database.features, nothing))
    assert np.isfinite(empty).all()
    both = score_pairs(
        model, DescriptorSet(query.features, np.zeros_like(query.valid)), DescriptorSet(database.features, nothing)
    )
    np.testing.assert_array_equal(both, 0)


def test_the_plan_gives_what_there_is():
    model, (query, database) = from_torch(WEIGHTS), golden_pairs("case1")
    plan = np.asarray(model(query, database).plan)
    assert not plan.sum(2)[~query.valid].any()
    assert (plan.sum(1) <= database.valid + 1e-5).all()  # columns are set last
    assert plan.sum() > 1


def test_stored_bits_score_as_floats_do(binary):
    features = RANDOM.standard_normal((5, 9, 24)).astype(np.float32)
    database = DescriptorSet(features)
    query = DescriptorSet(RANDOM.standard_normal((7, 24)).astype(np.float32))
    packed = BitPacker(binary).pack(database)
    np.testing.assert_allclose(
        score_shortlist(binary, query, packed), score_shortlist(binary, query, database), atol=1e-5
    )


def test_vectors_of_stored_floats_go_through_float16():
    weights, (query, database) = from_torch(WEIGHTS), golden_pairs("case0")
    stored = from_torch(WEIGHTS, dataclasses.replace(weights.config, round_stored=True))
    difference = np.abs(score_pairs(stored, query, database) - score_pairs(weights, query, database)).max()
    assert 0 < difference < 1e-2


@pytest.mark.parametrize("model", [ELViS(BINARY, nnx.Rngs(1)), from_torch(WEIGHTS)], ids=["binary", "float"])
def test_files_keep_the_model(model, tmp_path):
    assert infer_config(to_torch(model)) == model.config
    assert config_of(fields_of(model.config)) == model.config
    write_checkpoint(tmp_path / "model.pt", to_torch(model), fields_of(model.config))
    for again in (load_model(tmp_path / "model.pt"), load_model(save_model(model, tmp_path / "model"))):
        assert again.config == model.config
        jax.tree.map(np.testing.assert_array_equal, nnx.state(again), nnx.state(model))


@pytest.mark.parametrize("rounded", [False, True])
def test_what_is_stored_of_images_gives_their_scores(rounded):
    """The vectors of database images, made once, in place of their descriptors, and as many as are asked for."""
    model = ELViS(ELViSConfig(descriptor_width=24, model_width=16, round_stored=rounded), nnx.Rngs(0))
    rng, scorer = np.random.default_rng(0), Scorer(model)
    query = DescriptorSet(rng.standard_normal((5, 24), np.float32))
    database = DescriptorSet(rng.standard_normal((700, 6, 24), np.float32), rng.random((700, 6)) < 0.8)
    stored = scorer.vectors(database)
    assert (stored.features.shape, stored.features.dtype) == ((700, 6, 16), np.float16 if rounded else np.float32)
    np.testing.assert_array_equal(scorer.vectors(database[650:].truncate(4)).features, stored.features[650:, :4])
    few = slice(0, 9)
    expected = score_shortlist(model, query, database[few])
    np.testing.assert_allclose(
        scorer.shortlist(query, stored[few], vectors=True), expected, atol=2e-3 if rounded else 1e-5
    )
    pairs = score_pairs(model, DescriptorSet(np.tile(query.features, (9, 1, 1))), database[few])
    np.testing.assert_allclose(pairs, expected, atol=1e-4)
    assert scorer.vectors(database[:0]).features.shape == (0, 6, 16)


def test_the_table_names_every_weight():
    assert set(release_names(infer_config(WEIGHTS)).values()) == set(WEIGHTS)


def test_released_names_read_the_width_from_the_file(tmp_path, monkeypatch):
    asked = []

    def fetch_file(name, addresses, check=None):
        asked.append(f"{addresses[0]}/{name}")
        write_checkpoint(tmp_path / name, WEIGHTS)
        (tmp_path / name).with_suffix(".json").write_text("{}", encoding="utf-8")
        return tmp_path / name

    monkeypatch.setenv("AMES_JAX_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(released, "fetch_file", fetch_file)
    config = load_model("dinov3_elvis_gld").config
    assert (config.descriptor_width, config.bits) == (48, None)
    assert asked[0].endswith("/public/elvis/networks/dinov3_elvis_gld.pt")
    with pytest.raises(UserError, match="these are weights of ELViS, expected those of AMES"):
        load_model("dinov2_ames")
    with pytest.raises(UserError, match=r"unknown model 'dinov3_elvis_gdl'.*did you mean"):
        load_model("dinov3_elvis_gdl")


def test_weights_of_the_other_kind_are_refused():
    ames = np.load(Path(__file__).parents[1] / "golden" / "fp_tiny.npz")
    theirs = {name[6:]: ames[name] for name in ames.files if name.startswith("param/")}
    with pytest.raises(UserError, match="weights of AMES, expected those of ELViS"):
        from_torch(theirs, ELViSConfig(descriptor_width=48))
    with pytest.raises(UserError, match="weights of ELViS, expected those of AMES"):
        from_torch(WEIGHTS, infer_config(theirs, heads=2))


def test_a_configuration_is_checked():
    with pytest.raises(UserError, match="padding must be one of counted, released, found 'none'"):
        ELViSConfig(padding="none")
    with pytest.raises(UserError, match="unknown kind of model 'elvi'"):
        config_of({"kind": "elvi"})


def test_a_student_starts_from_its_teacher():
    sample = RANDOM.standard_normal((2000, 24)).astype(np.float32)
    teacher = ELViS(dataclasses.replace(BINARY, bits=None), nnx.Rngs(2))
    initialise(teacher, "matching", sample, None, 0)
    student = ELViS(BINARY, nnx.Rngs(3))
    initialise(student, "matching", sample, teacher, 0)
    np.testing.assert_array_equal(student.dust_hidden.kernel[...], teacher.dust_hidden.kernel[...])
    one = DescriptorSet(sample[None, :12])
    ours, theirs = student(one, one).tokens, teacher(one, one).tokens
    cosine = np.einsum("bnd,bnd->bn", ours, theirs) / BINARY.model_width
    assert cosine.mean() > 0.5
