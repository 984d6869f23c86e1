"""Training steps against the release's own (golden files), and what makes a step safe to run anywhere."""

import dataclasses
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from ames_jax.descriptors import DescriptorSet
from ames_jax.model.ames import AMES, AMESConfig
from ames_jax.model.torch_weights import from_torch, infer_config, to_torch
from ames_jax.runtime.devices import data_mesh, local_copy, on_all, split_over
from ames_jax.training.batch import parts_of
from ames_jax.training.step import Recipe, TrainState, TripletArrays, make_loss, make_step, make_teacher

GOLDEN = Path(__file__).parents[1] / "golden"
ROLES = ("anchor", "positive", "negative")
GRADIENT_TOLERANCE, PARAMETER_TOLERANCE = 1e-4, 1e-6
# The gradient of a key bias is exactly zero (it shifts all scores of a row alike), so its rounding noise, which Adam blows up
# to the learning rate, differs between any two programs. It has no effect on any output.
IN_PROJ = "in_proj_bias"


class Golden:
    def __init__(self, name, settings):
        self.arrays, self.settings = np.load(GOLDEN / f"{name}.npz"), settings[name]
        heads = self.settings["num_heads"]
        teacher = from_torch(self.part("teacher/"), infer_config(self.part("teacher/"), heads))
        self.teach = make_teacher(teacher) if self.settings["beta"] else lambda batch: None
        config = infer_config(self.part("student/"), heads)
        config = dataclasses.replace(config, binarizer="erf", sigma=self.settings["binarization_sigma"])
        self.graph, params = nnx.split(from_torch(self.part("student/"), config))
        self.params = jax.device_get(params)  # a step uses its arrays up
        self.recipe = Recipe(
            steps=self.settings["cosine_steps"], distillation=self.settings["beta"], distil_padding=True, buckets=(12,)
        )

    def part(self, prefix):
        return {k[len(prefix) :]: self.arrays[k] for k in self.arrays.files if k.startswith(prefix)}

    def batch(self, step):
        sets = (DescriptorSet(self.arrays[f"step{step}/{r}"], ~self.arrays[f"step{step}/{r}_mask"]) for r in ROLES)
        lengths = [self.arrays[f"step{step}/{side}_len"] for side in ("query", "database")]
        return TripletArrays(*sets, jnp.array(lengths, jnp.int32))


FILES = ["train_fp", "train_distill_fp", "train_distill_bin_sigma1e-2", "train_distill_bin"]


@pytest.fixture(scope="module", params=FILES)
def golden(request, golden_settings):
    return Golden(request.param, golden_settings)


def test_gradients_of_the_first_step_equal_the_release(golden):
    batch = golden.batch(0)
    differentiate = jax.jit(jax.grad(make_loss(golden.graph, golden.recipe), has_aux=True), static_argnums=3)
    gradient = differentiate(golden.params, batch, golden.teach(batch), (12, 12))[0]
    ours, theirs = to_torch(nnx.merge(golden.graph, gradient)), golden.part("step0/grad/")
    assert ours.keys() == theirs.keys()
    for key, expected in theirs.items():
        error = np.abs(ours[key] - expected).max()
        assert error <= GRADIENT_TOLERANCE * np.abs(expected).max(), key


def test_three_steps_equal_the_release(golden):
    step, state = make_step(golden.graph, golden.recipe), TrainState.create(golden.params, golden.recipe)
    for i in range(3):
        batch = golden.batch(i)
        state, metrics = step(state, batch, golden.teach(batch), (12, 12))
        for ours, theirs in (("loss", "loss"), ("bce", "bce"), ("learning_rate", "lr")):
            np.testing.assert_allclose(metrics[ours], golden.arrays[f"step{i}/{theirs}"], rtol=1e-6)
        if golden.settings["beta"]:
            np.testing.assert_allclose(metrics["distillation"], golden.arrays[f"step{i}/distill"], rtol=1e-6)
    final, width = to_torch(nnx.merge(golden.graph, state.params)), golden.settings["model_dim"]
    for key, expected in golden.part("final/").items():
        found = final[key].copy()
        if key.endswith(IN_PROJ):
            found[width : 2 * width] = expected[width : 2 * width]
        np.testing.assert_allclose(found, expected, atol=PARAMETER_TOLERANCE, rtol=0, err_msg=key)


def small(rng, batch=8, count=6):
    model = AMES(AMESConfig(descriptor_width=24, bits=16, model_width=16, layers=2, feed_forward=32), nnx.Rngs(0))
    graph, params = nnx.split(model)
    sets = [DescriptorSet(rng.standard_normal((batch, count, 24), dtype=np.float32)) for _ in ROLES]
    return graph, params, TripletArrays(*sets, jnp.array([4, 3], jnp.int32))


def test_the_padded_shape_does_not_change_a_step(rng):
    graph, params, batch = small(rng)
    recipe = Recipe(steps=10)
    loss = jax.jit(make_loss(graph, recipe), static_argnums=3)
    losses = [loss(params, batch, None, rows)[0] for rows in ((6, 6), (4, 3), (4, 6))]
    np.testing.assert_allclose(losses, losses[0], rtol=1e-6)


def test_only_kept_descriptors_count_in_the_token_loss(rng):
    graph, params, batch = small(rng)
    teacher = make_teacher(nnx.merge(graph, jax.tree.map(jnp.copy, params)))(batch)
    loss = jax.jit(make_loss(graph, Recipe(steps=10)), static_argnums=3)
    before = loss(params, batch, teacher, (6, 6))[1]["distillation"]
    beyond = teacher.at[:, 5:7].add(9.0).at[:, 10:].add(9.0)  # of the query 4 of 6 count, of the database image 3 of 6
    assert loss(params, batch, beyond, (6, 6))[1]["distillation"] == before
    within = teacher.at[:, 4].add(9.0)
    assert loss(params, batch, within, (6, 6))[1]["distillation"] > before + 1


def five_steps(devices, accumulate=1, fill=0, dtype="float32"):
    """Parameters after five student steps on 8 triplets, and `fill` more that do not count; and the step's program."""
    mesh, rng = data_mesh(devices), np.random.default_rng(0)
    config = AMESConfig(descriptor_width=24, model_width=16, layers=1, feed_forward=32, dtype=dtype)
    graph, params = nnx.split(AMES(config, nnx.Rngs(0)))
    recipe = Recipe(steps=10, accumulate=accumulate, clip=1.0)
    state = jax.device_put(TrainState.create(params, recipe), on_all(mesh))
    sets = [rng.standard_normal((8, 6, 24), dtype=np.float32) for _ in ROLES]
    sets = [DescriptorSet(np.concatenate([features, 100 * features[:fill]])) for features in sets]
    lengths = jax.device_put(np.array([4, 3], np.int32), on_all(mesh))
    sets, real = jax.device_put((sets, np.arange(8 + fill) < 8), split_over(mesh))
    batch = TripletArrays(*sets, lengths, real)
    guide = nnx.split(AMES(dataclasses.replace(config, dtype="float32"), nnx.Rngs(1)))
    teacher = make_teacher(nnx.merge(guide[0], jax.device_put(guide[1], on_all(mesh))), accumulate, mesh)(batch)
    step = make_step(graph, recipe, mesh)
    program = step.lower(state, batch, teacher, (6, 6)).as_text()
    with jax.transfer_guard("disallow"):
        for _ in range(5):
            state, metrics = step(state, batch, teacher, (6, 6))
    assert np.isfinite(metrics["loss"])
    return to_torch(nnx.merge(graph, local_copy(state.params))), program


@pytest.fixture(scope="module")
def one_device():
    return five_steps(jax.devices()[:1])[0]


def distance(found, expected):
    """Relative to the size of all parameters together; key biases left out, see IN_PROJ."""
    apart = {key: found[key] - expected[key] for key in expected}
    for key in apart:
        if key.endswith(IN_PROJ):
            apart[key][16:32] = 0
    norm = lambda tensors: np.sqrt(sum(np.sum(np.square(t, dtype=np.float64)) for t in tensors.values()))  # noqa: E731
    return norm(apart) / norm(expected)


@pytest.mark.parametrize(
    ("devices", "options"), [(8, {}), (2, {"accumulate": 2}), (4, {"fill": 4, "accumulate": 3})], ids=str
)
def test_devices_and_parts_do_not_change_what_is_learned(one_device, devices, options):
    assert distance(five_steps(jax.devices()[:devices], **options)[0], one_device) < 1e-6


@pytest.mark.parametrize(
    ("triplets", "rows", "at_least", "platform", "parts"),
    [
        (100, (400, 400), 1, "gpu", 1),
        (100, (400, 400), 5, "gpu", 5),
        (100, (400, 400), 1, "cpu", 100),
        (100, (100, 100), 1, "cpu", 50),
        (9, (100, 100), 3, "cpu", 9),
        (100, (10, 10), 1, "cpu", 5),
        (8, (6, 6), 1, "cpu", 1),
    ],
)
def test_parts_fit_the_cache_on_cpu_and_follow_the_recipe_elsewhere(triplets, rows, at_least, platform, parts):
    assert parts_of(triplets, rows, at_least, platform) == parts


def test_lengths_of_one_bucket_share_a_program(rng):
    graph, params, batch = small(rng)
    recipe = Recipe(steps=10, buckets=(4, 6))
    step, state = make_step(graph, recipe), TrainState.create(params, recipe)
    for lengths in ([2, 3], [4, 1], [3, 6], [1, 5], [4, 4]):
        batch = dataclasses.replace(batch, lengths=jnp.array(lengths, jnp.int32))
        state, metrics = step(state, batch, None, tuple(recipe.bucket(n) for n in lengths))
    assert np.isfinite(metrics["loss"])
    assert step._cache_size() == 2  # of buckets (4, 4) and (4, 6)


def test_bfloat16_keeps_parameters_and_reductions_in_float32(one_device):
    found, program = five_steps(jax.devices()[:2], accumulate=2, dtype="bfloat16")
    assert {array.dtype for array in found.values()} == {np.dtype(np.float32)}
    assert "bf16" in program
    reduced = re.findall(r"all_reduce.*?\}\) : \(tensor<([^>]*)>", program, re.DOTALL)
    assert len(reduced) >= len(found)
    assert not any("bf16" in kind for kind in reduced), reduced
    assert distance(found, one_device) < 3e-3


def test_schedule_warms_up_and_ends_at_zero():
    recipe = Recipe(steps=100, learning_rate=1.0, warmup=10)
    rates = np.array([recipe.schedule(s) for s in range(101)])
    np.testing.assert_allclose(rates[0], 0.1, rtol=1e-6)
    assert np.argmax(rates) == 9
    assert rates[100] == 0
    assert Recipe(steps=100).schedule(0) == pytest.approx(2e-4)


def test_clipping_bounds_the_gradient_that_adam_sees():
    gradient = {"w": jnp.full(4, 100.0)}
    moments = [
        Recipe(steps=10, clip=clip)
        .optimizer()
        .update(gradient, Recipe(steps=10, clip=clip).optimizer().init(gradient), gradient)[1]
        for clip in (None, 1.0)
    ]
    largest = [max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(m) if leaf.shape == (4,)) for m in moments]
    assert largest[0] > 5
    assert largest[1] < 0.1


def test_buckets_hold_their_lengths():
    recipe = Recipe(steps=1, buckets=(16, 48))
    assert [recipe.bucket(n) for n in (1, 16, 17, 48)] == [16, 16, 48, 48]
