"""A training run of seconds on the synthetic data, for processes that are started, connected and killed."""

import jax
import numpy as np
import synthetic
from flax import nnx

from ames_jax.data.neighbours import open_neighbours
from ames_jax.data.shards import open_split
from ames_jax.model.ames import AMES, AMESConfig
from ames_jax.training.loop import FitSettings
from ames_jax.training.model_task import ModelTask, fit
from ames_jax.training.pipeline import TripletPipeline
from ames_jax.training.step import Recipe
from ames_jax.training.triplets import Triplets

CONFIG = AMESConfig(descriptor_width=synthetic.WIDTH, model_width=8, heads=1, layers=1, feed_forward=8)


def validate(model):
    """A figure that any change of the parameters changes."""
    return {"map": float(sum(np.abs(p).sum() for p in jax.tree.leaves(nnx.state(model, nnx.Param))))}


def train(data, directory, steps, validate=validate, **settings):
    """Trains a teacher in `directory`, or goes on with it."""
    source = open_split(data, "train")
    lists = open_neighbours(data / "neighbours" / "train.train")
    pipeline = TripletPipeline(
        source, Triplets(source.labels(), lists, seed=0, top=30, minimum=1), batch=6, lengths=(3, 9), descriptors=8,
        process=jax.process_index(), processes=jax.process_count(), multiple=jax.device_count(),
    )  # fmt: skip
    settings = FitSettings(directory=directory, label="teacher", log_every=1, **settings)
    recipe = Recipe(steps=steps, learning_rate=1e-3, buckets=(8,))
    return fit(ModelTask(AMES(CONFIG, nnx.Rngs(0)), recipe, pipeline, settings, validate))
