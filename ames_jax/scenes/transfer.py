"""`scenes.build("transfer")` under the name that callers know."""

from functools import partial

from ames_jax import scenes

NAME = scenes.TRANSFER.name
build = partial(scenes.build, "transfer")
