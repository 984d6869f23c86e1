"""The networks against golden files of the release; padding, batching and shapes change nothing."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import GOLDEN
from flax import nnx

from ames_jax.benchmarks.extraction_speed import random_weights
from ames_jax.extraction.cvnet import CvnetBackbone, resnet_of
from ames_jax.extraction.detector import Detector, detector_of, detector_weights, strongest
from ames_jax.extraction.dinov2 import Dinov2Backbone
from ames_jax.extraction.network_weights import read_weights
from ames_jax.extraction.vit import ViTConfig, ViTOutput, patches_of, positions_of, resizing_matrix, vit_of
from ames_jax.extraction.xfeat import XFeatBackbone
from ames_jax.model.torch_files import write_checkpoint
from ames_jax.runtime import cache
from ames_jax.runtime.errors import UserError

TOLERANCE = 1e-4


def golden(path: Path) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Weights under the authors' names, and cases."""
    with np.load(path) as file:
        arrays = dict(file)
    weights = {name.removeprefix("param/"): array for name, array in arrays.items() if name.startswith("param/")}
    return weights, arrays


@pytest.fixture(scope="module")
def vit(reference: Path) -> tuple[nnx.Module, dict[str, np.ndarray]]:
    weights, cases = golden(reference / "extraction" / "vit_tiny_reg.npz")
    return vit_of(weights, heads=3), cases


@pytest.fixture(scope="module")
def forward(vit: tuple) -> Callable[[np.ndarray], ViTOutput]:
    """Tokens of one normalised image [H, W, 3], padded to 256 patches."""
    network = vit[0]
    compiled = jax.jit(lambda *inputs: network(*inputs))

    def run(image: np.ndarray) -> ViTOutput:
        patches = patches_of(image.astype(np.float32), 14)
        positions = positions_of(np.asarray(network.positions[...]), image.shape[0] // 14, image.shape[1] // 14)
        count, padding = len(patches), ((0, 256 - len(patches)), (0, 0))
        pixels = np.pad(patches, padding, constant_values=7)
        return compiled(pixels[None], np.pad(positions, padding)[None], (np.arange(256) < count)[None])

    return run


@pytest.fixture(scope="module")
def resnet() -> tuple[nnx.Module, dict[str, np.ndarray]]:
    weights, cases = golden(GOLDEN / "resnet_tiny.npz")
    return resnet_of(weights), cases


def test_vit_matches_with_resized_positions_and_padding(vit: tuple, forward: Callable) -> None:
    cases = vit[1]
    for case, count in (("case1", 35), ("case2", 234)):
        found = forward(cases[f"{case}/image"][0].transpose(1, 2, 0))
        np.testing.assert_allclose(found.class_token, cases[f"{case}/cls"], atol=TOLERANCE, rtol=0)
        np.testing.assert_allclose(found.registers, cases[f"{case}/registers"], atol=TOLERANCE, rtol=0)
        np.testing.assert_allclose(found.patches[:, :count], cases[f"{case}/patches"], atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize("patches", [(2, 90), (37, 3)])
def test_vit_without_registers_matches(patches: tuple[int, int]) -> None:
    weights = random_weights(ViTConfig(width=48, depth=3, heads=3, mlp=96))
    del weights["register_tokens"]
    network = vit_of(weights, heads=3)
    image = np.random.default_rng(0).standard_normal((14 * patches[0], 14 * patches[1], 3))
    grid = np.asarray(network.positions[...])
    positions = positions_of(grid, *patches, antialias=network.config.antialias)
    pixels = patches_of(image.astype(np.float32), 14)
    found = network(pixels[None], positions[None], np.ones((1, len(pixels)), bool))
    expected = plain_vit(weights, image, heads=3)
    assert found.registers.shape == (1, 0, 48)
    np.testing.assert_allclose(found.class_token[0], expected[0], atol=TOLERANCE, rtol=0)
    np.testing.assert_allclose(found.patches[0], expected[1:], atol=TOLERANCE, rtol=0)


def plain_vit(weights: dict[str, np.ndarray], image: np.ndarray, heads: int) -> np.ndarray:
    """Tokens [1 + h · w, d] of a normalised image [14 h, 14 w, 3] in float64, as DINOv2's code computes them."""
    erf = np.vectorize(math.erf)

    def linear(x: np.ndarray, name: str) -> np.ndarray:
        return x @ weights[f"{name}.weight"].T.astype(float) + weights[f"{name}.bias"]

    def norm(x: np.ndarray, name: str) -> np.ndarray:
        x = (x - x.mean(1, keepdims=True)) / np.sqrt(x.var(1, keepdims=True) + 1e-6)
        return x * weights[f"{name}.weight"] + weights[f"{name}.bias"]

    height, width = image.shape[0] // 14, image.shape[1] // 14
    split = image.reshape(height, 14, width, 14, 3)
    tokens = np.einsum("hpwqc,dcpq->hwd", split, weights["patch_embed.proj.weight"]) + weights["patch_embed.proj.bias"]
    position = weights["pos_embed"][0].astype(float)
    tokens = tokens + cubic(cubic(position[1:].reshape(37, 37, -1), height).swapaxes(0, 1), width).swapaxes(0, 1)
    tokens = np.concatenate([weights["cls_token"][0] + position[:1], tokens.reshape(height * width, -1)])
    for block in ("blocks.0", "blocks.1", "blocks.2"):
        qkv = linear(norm(tokens, f"{block}.norm1"), f"{block}.attn.qkv").reshape(len(tokens), 3, heads, -1)
        scores = np.exp(np.einsum("nhc,mhc->hnm", qkv[:, 0], qkv[:, 1]) / qkv.shape[-1] ** 0.5)
        mixed = np.einsum("hnm,mhc->nhc", scores / scores.sum(2, keepdims=True), qkv[:, 2]).reshape(len(tokens), -1)
        tokens = tokens + weights[f"{block}.ls1.gamma"] * linear(mixed, f"{block}.attn.proj")
        hidden = linear(norm(tokens, f"{block}.norm2"), f"{block}.mlp.fc1")
        hidden = hidden * (1 + erf(hidden / 2**0.5)) / 2
        tokens = tokens + weights[f"{block}.ls2.gamma"] * linear(hidden, f"{block}.mlp.fc2")
    return norm(tokens, "norm")


def cubic(values: np.ndarray, wanted: int) -> np.ndarray:
    """The first axis resized by four taps (a = -0.75), edges repeated, at the scale that DINOv2's code gives PyTorch."""
    found = np.zeros((wanted, *values.shape[1:]))
    for row in range(wanted):
        place = (row + 0.5) * len(values) / (wanted + 0.1) - 0.5
        for tap in range(math.floor(place) - 1, math.floor(place) + 3):
            x = abs(place - tap)
            weight = 1.25 * x**3 - 2.25 * x**2 + 1 if x < 1 else -0.75 * (x**3 - 5 * x**2 + 8 * x - 4)
            found[row] += weight * values[min(max(tap, 0), len(values) - 1)]
    return found


def test_resizing_matrix_keeps_constants_and_sizes() -> None:
    for wanted in (1, 5, 37, 60):
        for antialias in (False, True):
            np.testing.assert_allclose(resizing_matrix(37, wanted, antialias).sum(1), 1, atol=1e-6)
    np.testing.assert_allclose(resizing_matrix(37, 37), np.eye(37), atol=1e-6)


def test_resnet_matches_inside_a_larger_frame(resnet: tuple) -> None:
    network, cases = resnet
    image = cases["case0/image"].transpose(0, 2, 3, 1)
    framed = np.pad(image, ((0, 0), (0, 31), (0, 31), (0, 0)), constant_values=3)
    found = jax.jit(lambda pixels, sizes: network(pixels, sizes))(framed, jnp.array([image.shape[1:3]]))
    local = cases["case0/local_before_relu"].transpose(0, 2, 3, 1)
    np.testing.assert_allclose(found.local[:, :7, :9], local, atol=TOLERANCE, rtol=0)
    np.testing.assert_allclose(found.global_descriptor, cases["case0/global"], atol=TOLERANCE, rtol=0)


def test_detector_matches_and_survives_a_round_trip() -> None:
    weights, cases = golden(GOLDEN / "detector_tiny.npz")
    detector = detector_of(weights)
    features, strength = detector(jnp.asarray(cases["case0/features"].transpose(0, 2, 3, 1)))
    expected = cases["case0/out_features"].transpose(0, 2, 3, 1)
    np.testing.assert_allclose(features, expected, atol=TOLERANCE, rtol=0)
    np.testing.assert_allclose(strength, cases["case0/weights"][:, 0], atol=TOLERANCE, rtol=0)
    for name, array in detector_weights(detector).items():
        np.testing.assert_array_equal(array, weights[name])


def test_the_strongest_come_first_and_padding_last() -> None:
    features, weights = jnp.arange(10.0).reshape(1, 5, 2), jnp.array([[0.1, 0.9, 0.5, 2.0, 0.7]])
    valid = jnp.array([[True, True, True, False, True]])
    found, ranked, rows = strongest(features, weights, valid, 9)
    assert rows[0].tolist() == [1, 4, 2, 0, 3]
    assert ranked[0, -1] == -1
    np.testing.assert_array_equal(found[0, 0], [2, 3])


PICTURES = [(100, 140, 3), (140, 100, 3), (1, 1, 3), (4, 900, 3)]


@pytest.fixture(scope="module")
def pictures() -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [rng.integers(0, 255, shape).astype(np.uint8) for shape in PICTURES]


def test_dinov2_of_many_shapes_at_once(vit: tuple, forward: Callable, pictures: list[np.ndarray]) -> None:
    detector = Detector(48, nnx.Rngs(0))
    backbone = Dinov2Backbone(vit[0], detector, descriptors=40, max_side=140)
    found = backbone.extract(pictures)
    assert [len(item.local.weight) for item in found] == [40, 40, 40, 10]
    again = backbone.extract(pictures[1:2])[0]
    np.testing.assert_allclose(again.local.features, found[1].local.features, atol=1e-5)
    for item in found:
        assert (np.diff(item.local.weight) <= 0).all()
        np.testing.assert_allclose(np.linalg.norm(item.local.features, axis=1), 1, atol=1e-5)
        np.testing.assert_allclose(np.linalg.norm(item.global_descriptor), 1, atol=1e-5)
    fitted = backbone.fit(pictures[0])
    assert fitted.shape == (98, 140, 3)
    assert backbone.fit(fitted) is fitted
    # The strongest patch by hand.
    tokens = forward((fitted / 255 - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225])
    features, weights = detector(tokens.patches[0, :70])
    best = int(np.argmax(weights))
    np.testing.assert_allclose(found[0].local.features[0], features[best], atol=1e-4)
    np.testing.assert_allclose(found[0].local.xy[0], [(best % 10 + 0.5) / 10, (best // 10 + 0.5) / 7], atol=1e-6)
    np.testing.assert_allclose(
        found[0].global_descriptor, tokens.class_token[0] / np.linalg.norm(tokens.class_token), atol=1e-4
    )


def test_cvnet_joins_three_scales(resnet: tuple, pictures: list[np.ndarray]) -> None:
    backbone = CvnetBackbone(resnet[0], Detector(32, nnx.Rngs(0)), descriptors=30, max_side=40)
    found = backbone.extract(pictures[:3])
    assert set(found[0].local.scale.tolist()) <= {0.0, 1.0, 2.0}
    # 1 × 1 pixel: one position a scale.
    assert sorted(found[2].local.scale.tolist()) == [0, 1, 2]
    for item in found:
        assert (np.diff(item.local.weight) <= 0).all()
        assert ((item.local.xy >= 0) & (item.local.xy <= 1)).all()
        np.testing.assert_allclose(np.linalg.norm(item.global_descriptor), 1, atol=1e-5)
    again = backbone.extract(pictures[1:2])[0]
    np.testing.assert_allclose(again.local.features, found[1].local.features, atol=1e-5)


def test_weights_that_do_not_fit_are_listed(tmp_path: Path) -> None:
    weights, _ = golden(GOLDEN / "detector_tiny.npz")
    wrong = {name: array for name, array in weights.items() if name != "bn.bias" and "num_batches" not in name}
    write_checkpoint(tmp_path / "d.pt", {**wrong, "more": np.zeros(2, np.float32)})
    with pytest.raises(UserError, match=r"d\.pt: the weights do not fit.*\(2 faults\): missing bn\.bias; unknown more"):
        detector_of(read_weights(tmp_path / "d.pt"), source=str(tmp_path / "d.pt"))
    with pytest.raises(UserError, match="weigh/kernel has shape"):
        detector_of({**weights, "conv2.weight": np.zeros((1, 4, 1, 1), np.float32)})


def test_cvnet_weights_are_found_below_their_prefix() -> None:
    weights, _ = golden(GOLDEN / "resnet_tiny.npz")
    both = {f"encoder_q.globalmodel.{name}": array for name, array in weights.items()}
    both |= {f"encoder_k.globalmodel.{name}": array * 0 for name, array in weights.items()}
    found, expected = resnet_of(both), resnet_of(weights)
    np.testing.assert_array_equal(found.stem.kernel[...], expected.stem.kernel[...])


@pytest.mark.parametrize(
    ("fetch", "name"),
    [
        (lambda: Dinov2Backbone.read_network(None, "float32"), "dinov2_vitb14_reg4_pretrain.pth"),
        (lambda: CvnetBackbone.read_detector(None), "cvnet_detector.pt"),
        (XFeatBackbone.open, "xfeat.pt"),
    ],
)
@pytest.mark.parametrize("content", [b"<html>Sign in</html>", b""])
def test_a_download_that_holds_no_weights_is_not_kept(tmp_path, monkeypatch, fetch, name, content):
    monkeypatch.setenv("AMES_JAX_HOME", str(tmp_path))

    def download(path: Path, addresses: object) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)

    monkeypatch.setattr(cache, "_download", download)
    with pytest.raises(UserError, match=name):
        fetch()
    assert not list((tmp_path / "weights").iterdir())
