from pathlib import Path

import jax
import numpy as np
import pytest
from flax import nnx

from ames_jax.model.ames import AMES, AMESConfig
from ames_jax.model.torch_weights import from_torch, infer_config, to_torch
from ames_jax.runtime.errors import UserError

GOLDEN = Path(__file__).parents[1] / "golden"


def weights(name):
    arrays = np.load(GOLDEN / f"{name}.npz")
    return {key[6:]: arrays[key] for key in arrays.files if key.startswith("param/")}


@pytest.mark.parametrize("name", ["fp_tiny", "fp_tiny_gelu_prenorm", "bin_tiny"])
def test_round_trip_is_exact(name):
    theirs = weights(name)
    back = to_torch(from_torch(theirs, infer_config(theirs, heads=2)))
    assert back.keys() == theirs.keys()
    for key in theirs:
        np.testing.assert_array_equal(back[key], theirs[key])


def test_round_trip_of_our_own_model_is_exact():
    config = AMESConfig(descriptor_width=24, bits=16, model_width=32, layers=2, feed_forward=48, pre_norm=True)
    model = AMES(config, nnx.Rngs(3))
    again = from_torch(to_torch(model), config)
    jax.tree.map(np.testing.assert_array_equal, nnx.state(again), nnx.state(model))


def test_shapes_tell_the_configuration():
    config = infer_config(weights("bin_tiny"), heads=2)
    assert (config.descriptor_width, config.bits, config.model_width) == (48, 32, 32)
    assert (config.layers, config.feed_forward, config.pre_norm) == (2, 64, False)
    assert infer_config(weights("fp_tiny_gelu_prenorm"), 4, "gelu").pre_norm


def test_every_fault_is_listed_in_one_error():
    broken = weights("fp_tiny")
    del broken["classifier.bias"]
    broken["surplus"] = np.zeros(3)
    broken["decoder.layers.1.linear2.weight"] = np.zeros((5, 5))
    with pytest.raises(UserError) as error:
        from_torch(broken, infer_config(broken, heads=2))
    for part in (
        "3 faults",
        "missing classifier.bias",
        "unknown surplus",
        "linear2.weight has shape (5, 5), expected (32, 64)",
    ):
        assert part in str(error.value)


def test_something_else_is_not_a_checkpoint():
    with pytest.raises(UserError, match="not an AMES checkpoint"):
        from_torch({"conv1.weight": np.zeros(3)})


def test_heads_are_not_guessed():
    """A wrong number of heads gives wrong scores without any sign of it."""
    with pytest.raises(UserError, match=r"tokens of width 32 .* --heads=NUMBER"):
        from_torch(weights("fp_tiny"))
