"""XFeat against its authors' code on made-up weights; backbones whose local and global descriptors are chosen apart."""

from __future__ import annotations

from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from conftest import GOLDEN
from flax import nnx
from small_networks import made_up_weights, write_networks

from ames_jax.extraction.backbones import open_backbone
from ames_jax.extraction.network import standardised
from ames_jax.extraction.network_weights import read_weights
from ames_jax.extraction.vit import vit_of
from ames_jax.extraction.xfeat import XFeatBackbone, key_points, xfeat_of
from ames_jax.runtime.errors import UserError


@pytest.fixture(scope="module")
def golden() -> dict[str, np.ndarray]:
    with np.load(GOLDEN / "xfeat_tiny.npz") as file:
        return dict(file)


def test_the_network_and_its_key_points_match_the_authors(golden: dict[str, np.ndarray]) -> None:
    network = xfeat_of(made_up_weights())
    found = network(golden["image"].astype(np.float32).mean(2)[None] / 255)
    features = golden["features"] / np.linalg.norm(golden["features"], axis=-1, keepdims=True)
    np.testing.assert_allclose(found.descriptors[0], features, atol=1e-5)
    np.testing.assert_allclose(found.reliability[0], golden["reliability"], atol=1e-5)
    one = [np.asarray(array[0]) for array in (found.descriptors, found.peaks, found.reliability)]
    xy, score, descriptors = key_points(*one, 60)
    np.testing.assert_array_equal(xy, golden["xy"])
    np.testing.assert_allclose(score, golden["score"], atol=1e-5)
    np.testing.assert_allclose(descriptors, golden["descriptors"], atol=1e-5)


def test_weights_of_another_network_are_named() -> None:
    weights = made_up_weights()
    del weights["skip1.1.bias"]
    with pytest.raises(UserError, match=r"file: the weights do not fit the network .*missing skip1\.1\.bias"):
        xfeat_of(weights, "file")


def test_pictures_of_any_size_and_without_key_points() -> None:
    backbone = XFeatBackbone(xfeat_of(made_up_weights()), descriptors=20, max_side=96)
    rng = np.random.default_rng(0)
    pictures = [rng.integers(0, 256, (50, 70, 3), np.uint8), np.full((3, 400, 3), 7, np.uint8)]
    some, none = backbone.extract(pictures)
    assert some.local.features.shape == (20, 64)
    assert (np.diff(some.local.weight) <= 0).all()
    assert ((some.local.xy > 0) & (some.local.xy < 1)).all()
    assert none.local.features.shape[1] == 64


@pytest.fixture
def small_networks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Path]:
    """Files of an XFeat and of a tiny "dinov2_small" without registers."""
    return write_networks(tmp_path, monkeypatch)


def test_local_and_global_descriptors_of_two_networks(small_networks: tuple[Path, Path]) -> None:
    xfeat, vit = small_networks
    other = {"name": "dinov2_small", "weights": vit, "block": 2, "max_side": 56}
    joint = open_backbone("xfeat", weights=xfeat, max_side=96, descriptors=9, global_backbone=other)
    picture = np.random.default_rng(0).integers(0, 256, (60, 80, 3), np.uint8)
    found = joint.extract([picture])[0]
    local = open_backbone("xfeat", weights=xfeat, max_side=96, descriptors=9, global_backbone=other).extract([picture])[
        0
    ]
    alone = open_backbone(**other).extract([picture])[0]
    np.testing.assert_array_equal(found.local.features, local.local.features)
    np.testing.assert_array_equal(found.global_descriptor, alone.global_descriptor)
    assert (joint.width, joint.global_width, joint.global_name) == (64, 48, "DINOv2 small, class token")
    assert joint.settings["global_backbone"]["block"] == 2
    again = open_backbone(**joint.settings)
    np.testing.assert_array_equal(again.extract([picture])[0].global_descriptor, found.global_descriptor)


def test_a_block_ends_the_network_and_the_global_token_weighs_its_patches(small_networks: tuple[Path, Path]) -> None:
    _, vit = small_networks
    picture = np.random.default_rng(0).integers(0, 256, (56, 56, 3), np.uint8)
    whole = open_backbone("dinov2_small", weights=vit, max_side=56).extract([picture])[0]
    first = open_backbone("dinov2_small", weights=vit, max_side=56, block=1).extract([picture])[0]
    assert np.abs(whole.global_descriptor - first.global_descriptor).max() > 1e-3
    cosines = whole.local.features @ whole.global_descriptor
    np.testing.assert_allclose(whole.local.weight, (1 + cosines) / 2, atol=1e-5)


@pytest.mark.parametrize("picture_shape", [(56, 56), (28, 70)])  # of the second half a bucket is padding, too
def test_a_pooled_descriptor_is_the_class_token_beside_half_the_mean_patch(
    small_networks: tuple[Path, Path], picture_shape: tuple[int, int]
) -> None:
    _, vit = small_networks
    picture = np.random.default_rng(0).integers(0, 256, (*picture_shape, 3), np.uint8)
    options = {"weights": vit, "max_side": max(picture_shape)}
    pooled, plain = (open_backbone(name, **options) for name in ("dinov2_small_pooled", "dinov2_small"))
    found, alone = pooled.extract([picture])[0], plain.extract([picture])[0]
    network = vit_of(read_weights(vit))
    network.blocks = nnx.List(list(network.blocks)[:2])  # after three quarters of three blocks
    count = picture_shape[0] * picture_shape[1] // 14**2
    array = {name: jnp.asarray(value)[None, :count] for name, value in plain.inputs(picture, 1.0).items()}
    tokens = network(
        standardised(array["patches"].reshape(1, -1, 3)).reshape(1, count, -1), array["positions"], array["valid"]
    )
    mean = np.asarray(tokens.patches[0]).mean(0)
    expected = np.concatenate([alone.global_descriptor, 0.5 * mean / np.linalg.norm(mean)])
    np.testing.assert_allclose(found.global_descriptor, expected / np.sqrt(1.25), atol=1e-5)
    np.testing.assert_allclose(found.local.features, alone.local.features, atol=1e-6)
    np.testing.assert_allclose(found.local.weight, alone.local.weight, atol=1e-6)
    assert (pooled.global_width, pooled.global_name) == (96, "DINOv2 small, class token and mean patch")
    ended = open_backbone("dinov2_small_pooled", **options, block=1)  # before three quarters
    assert ended.extract([picture])[0].global_descriptor.shape == (96,)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"name": "dinov2_small", "block": 4}, r"--block=4: dinov2_small has blocks 1 to 3"),
        ({"name": "dinov2_base"}, r"dinov2_base has tokens of 768 values and 12 blocks, found 48 and 3"),
        ({"name": "dinov2_smal"}, r"expected one of .*did you mean dinov2_small"),
        ({"name": "xfeat", "block": 3}, r"--block: the backbone xfeat has no such option"),
    ],
)
def test_what_does_not_fit_is_one_line(small_networks: tuple[Path, Path], options: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        open_backbone(weights=small_networks[1], **options)


def test_a_backbone_without_a_global_descriptor_cannot_give_one(small_networks: tuple[Path, Path]) -> None:
    xfeat, vit = small_networks
    other = {"name": "dinov2_small", "weights": vit}
    with pytest.raises(UserError, match="--global=xfeat: it has no global descriptor"):
        open_backbone("dinov2_small", weights=vit, global_backbone={"name": "xfeat", "weights": xfeat})
    assert open_backbone("xfeat", weights=xfeat, global_backbone=other).global_width == 48
