"""`scenes.build("landmarks")` under the name that callers know."""

from functools import partial

from ames_jax import scenes

NAME = scenes.LANDMARKS.name
build = partial(scenes.build, "landmarks")
