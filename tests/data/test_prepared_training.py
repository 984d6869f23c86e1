"""From the release's files to shards to training: a killed run ends with the parameters of an unbroken one."""

import dataclasses
from pathlib import Path

import jax
import numpy as np
import pytest
from flax import nnx

from ames_jax.data.neighbours import open_neighbours
from ames_jax.data.shards import open_split
from ames_jax.model.ames import AMES, AMESConfig
from ames_jax.model.weights import read_model
from ames_jax.prepare import main
from ames_jax.training.loop import FitSettings
from ames_jax.training.model_task import ModelTask, fit
from ames_jax.training.pipeline import TripletPipeline
from ames_jax.training.step import Recipe
from ames_jax.training.triplets import Triplets

STEPS = 6


def prepare(root, folder, *more):
    inputs = ["--features", folder / "dinov2_local.hdf5", "--list", folder / "train.txt"]
    commands = [
        ["shards", "--root", root, "--name", "toy", "--split", "train", *inputs, *more],
        ["import", "--root", root, "--query", "train", "--neighbours", folder / "nn_dinov2.pkl"],
    ]
    for command in commands:
        assert main([str(word) for word in command]) == 0
    return root


def write_files(release):
    release.hdf5()
    release.list()
    release.neighbours()
    return release.folder


@pytest.fixture(params=["made here", "golden"])
def folder(request, release):
    if request.param == "golden":
        return request.getfixturevalue("reference") / "evaluation" / "gldv2-train"
    return write_files(release)


def make_pipeline(root, **options):
    source = open_split(root, "train")
    triplets = Triplets(
        source.labels(), open_neighbours(root / "neighbours" / "train.train"), seed=1, top=20, minimum=2
    )
    rows = source.format.descriptors
    return TripletPipeline(source, triplets, batch=8, lengths=(2, rows), seed=1, descriptors=rows, **options)


class Killed(TripletPipeline):
    """Dies in the fifth step."""

    def batches(self, start_step=0):
        for batch in super().batches(start_step):
            if batch.step == 4:
                raise KeyboardInterrupt
            yield batch


def train(pipeline, directory):
    config = AMESConfig(
        descriptor_width=pipeline.source.format.width, model_width=16, heads=2, layers=1, feed_forward=32
    )
    recipe = Recipe(STEPS, learning_rate=1e-2, buckets=(pipeline.descriptors,))
    settings = FitSettings(directory=directory, label="teacher", log_every=1, validate_every=STEPS, checkpoint_every=3)
    # optax's AdamW multiplies Python floats with integer counts.
    with jax.numpy_dtype_promotion("standard"):
        fit(ModelTask(AMES(config, nnx.Rngs(0)), recipe, pipeline, settings, lambda model: {"map": 1.0}))
    return jax.tree.leaves(nnx.state(read_model(directory / "last"), nnx.Param))


def test_a_killed_run_ends_with_the_same_parameters(release, tmp_path):
    golden = Path(__file__).parents[3] / "shared" / "reference" / "evaluation" / "gldv2-train"
    folder = golden if golden.is_dir() else write_files(release)
    root = prepare(tmp_path / "set", folder, "--shards", 3)
    unbroken = train(make_pipeline(root), tmp_path / "unbroken")
    plain = make_pipeline(root)
    fields = {field.name: getattr(plain, field.name) for field in dataclasses.fields(plain)}
    with pytest.raises(KeyboardInterrupt):
        train(Killed(**fields), tmp_path / "killed")
    resumed = train(make_pipeline(root, threads=1, prefetch=1), tmp_path / "killed")
    for expected, found in zip(unbroken, resumed):
        np.testing.assert_array_equal(found, expected)


def test_shards_and_the_hdf5_file_itself_give_the_same_batches(folder, tmp_path):
    from_shards = make_pipeline(prepare(tmp_path / "set", folder))
    in_place = make_pipeline(prepare(tmp_path / "link", folder, "--in-place"))
    for first, second, _ in zip(from_shards.batches(), in_place.batches(), range(3)):
        np.testing.assert_array_equal(first.ids, second.ids)
        for role in ("anchor", "positive", "negative"):
            one, other = getattr(first.arrays, role), getattr(second.arrays, role)
            np.testing.assert_array_equal(one.valid, other.valid)
            np.testing.assert_array_equal(one.features[one.valid], other.features[other.valid])
