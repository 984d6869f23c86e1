"""Programs for platforms that are not here: nothing that only a CPU can do may slip into a step or a score."""

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from ames_jax import Scorer
from ames_jax.convert import main
from ames_jax.descriptors import DescriptorSet
from ames_jax.model.ames import AMES, AMESConfig
from ames_jax.model.weights import export_scorer, save_model
from ames_jax.runtime.devices import data_mesh, on_all, split_over
from ames_jax.training.step import Recipe, TrainState, TripletArrays, make_step, make_teacher

SHAPE = {"descriptor_width": 24, "model_width": 16, "layers": 2, "feed_forward": 32}


def test_an_exported_scorer_gives_the_scores_at_any_size(tmp_path, rng):
    model = AMES(AMESConfig(**SHAPE, bits=16), nnx.Rngs(0))
    save_model(model, tmp_path / "model")
    main([f"--from={tmp_path / 'model'}", f"--to={tmp_path / 'scorer.stablehlo'}"])
    assert "uint8 ['b', 't', '2']" in (tmp_path / "scorer.stablehlo.json").read_text()
    exported = jax.export.deserialize((tmp_path / "scorer.stablehlo").read_bytes())
    assert set(exported.platforms) == {"cpu", "cuda", "tpu"}
    for count, queries, databases in ((3, 5, 4), (1, 2, 7)):
        query = DescriptorSet(rng.standard_normal((queries, 24), dtype=np.float32), np.arange(queries) < 2)
        images = DescriptorSet(rng.standard_normal((count, databases, 24), dtype=np.float32))
        images = model.tokenizer.binarize(DescriptorSet(images.features, rng.random((count, databases)) < 0.7))
        found = exported.call(query.features, query.valid, jnp.asarray(images.features), images.valid)
        np.testing.assert_allclose(found, Scorer(model).shortlist(query, images), atol=2e-6)


def test_a_full_precision_scorer_takes_floats():
    inputs = export_scorer(AMES(AMESConfig(**SHAPE), nnx.Rngs(0))).in_avals
    assert [str(aval.dtype) for aval in inputs] == ["float32", "bool", "float32", "bool"]


@pytest.mark.parametrize("platform", ["tpu", "cuda"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_training_step_is_lowered_for_accelerators(platform, dtype):
    mesh = data_mesh()
    graph, params = nnx.split(AMES(AMESConfig(**SHAPE, bits=16, dtype=dtype), nnx.Rngs(0)))
    recipe = Recipe(steps=10, clip=1.0, accumulate=2)
    place = lambda a, where: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=where)  # noqa: E731
    state = jax.eval_shape(lambda p: TrainState.create(p, recipe), params)
    state = jax.tree.map(lambda a: place(a, on_all(mesh)), state)
    features = jax.ShapeDtypeStruct((16, 6, 24), np.float16)
    sets = DescriptorSet(features, jax.ShapeDtypeStruct((16, 6), bool))
    sets = jax.tree.map(lambda a: place(a, split_over(mesh)), sets)
    lengths = jax.ShapeDtypeStruct((2,), np.int32, sharding=on_all(mesh))
    batch = TripletArrays(sets, sets, sets, lengths, jax.ShapeDtypeStruct((16,), bool, sharding=split_over(mesh)))
    guide = AMES(AMESConfig(**SHAPE), nnx.Rngs(1))
    tokens = jax.eval_shape(make_teacher(guide, 2, mesh), batch)
    tokens = jax.tree.map(lambda a: place(a, split_over(mesh)), tokens)
    step = jax.jit(lambda *arrays: make_step(graph, recipe, mesh)(*arrays, (6, 6)))
    exported = jax.export.export(step, platforms=[platform])(state, batch, tokens)
    assert exported.nr_devices == 8
