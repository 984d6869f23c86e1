"""Every form of a model into every other and back, bit for bit; and the released names behind a web server."""

from __future__ import annotations

import dataclasses
import functools
import http.server
import threading
from pathlib import Path

import numpy as np
import pytest
from flax import nnx

from ames_jax.commands.convert import read
from ames_jax.convert import main
from ames_jax.model import released
from ames_jax.model.ames import AMES, NAMED, AMESConfig
from ames_jax.model.released import fetch, load_model, load_released
from ames_jax.model.torch_files import write_checkpoint
from ames_jax.model.torch_weights import to_torch
from ames_jax.model.weights import save_model
from ames_jax.runtime.errors import UserError


def small_model(**changes) -> AMES:
    shape = {"descriptor_width": 12, "model_width": 16, "heads": 1, "layers": 1, "feed_forward": 8} | changes
    return AMES(AMESConfig(**shape), nnx.Rngs(3))


def assert_same(one: AMES, other: AMES) -> None:
    assert one.config == other.config
    ours, theirs = to_torch(one), to_torch(other)
    assert list(ours) == list(theirs)
    for name in ours:
        np.testing.assert_array_equal(ours[name], theirs[name])


@pytest.mark.parametrize("bits", [None, 16])
@pytest.mark.parametrize("way", [("a.pt", "dir"), ("a.safetensors", "b.pt"), ("dir", "a.safetensors"), ("a.pt",)])
def test_every_way_and_back_is_exact(tmp_path, bits, way):
    model = small_model(bits=bits)
    save_model(model, tmp_path / "start")
    source = tmp_path / "start"
    for name in way:
        main([f"--from={source}", f"--to={tmp_path / name}"])
        source = tmp_path / name
    assert_same(read(str(source)), model)


def test_what_weights_do_not_show_is_kept_or_given(tmp_path):
    model = small_model(heads=2, activation="gelu")
    save_model(model, tmp_path / "start")
    main([f"--from={tmp_path / 'start'}", f"--to={tmp_path / 'm.pt'}"])
    assert_same(load_model(tmp_path / "m.pt"), model)
    write_checkpoint(tmp_path / "m.pt", to_torch(model))  # as the release writes it
    with pytest.raises(UserError, match="--heads=NUMBER"):
        load_model(tmp_path / "m.pt")
    main([f"--from={tmp_path / 'm.pt'}", f"--to={tmp_path / 'dir'}", "--heads=2", "--activation=gelu"])
    assert_same(read(str(tmp_path / "dir")), model)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--from=x.pt"], "--to"),
        (["--from=x.pt", "--to=y"], "no such file"),
        (["--from=x.pt", "--to=y", "--hads=2"], "Did you mean --heads"),
        (["--from=dinov2_ams", "--to=y"], "dinov2_ames"),
        (["--from=dinov2_ames", "--to=y", "--heads=2"], "other models know theirs"),
    ],
)
def test_bad_arguments_are_one_clear_line(arguments, message):
    with pytest.raises(UserError, match=message):
        main(arguments)


def test_weights_that_do_not_fit_are_refused(tmp_path):
    weights = to_torch(small_model())
    del weights["classifier.bias"]
    write_checkpoint(tmp_path / "m.pt", weights, dataclasses.asdict(small_model().config))
    with pytest.raises(UserError, match=r"classifier\.bias"):
        read(str(tmp_path / "m.pt"))


@pytest.fixture
def server(tmp_path, monkeypatch):
    """A web server with one released name, here a small model; the cache is an empty folder."""
    shape = {"descriptor_width": 12, "model_width": 16, "heads": 1, "layers": 1, "feed_forward": 8}
    monkeypatch.setitem(NAMED, "dinov2_ames", shape)
    monkeypatch.setenv("AMES_JAX_HOME", str(tmp_path / "home"))
    folder = tmp_path / "served"
    folder.mkdir()
    write_checkpoint(folder / "dinov2_ames.pt", to_torch(small_model()))

    asked: list[str] = []

    class Handler(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_):
            asked.append(self.path)

    handler = functools.partial(Handler, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as found:
        threading.Thread(target=found.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{found.server_port}"
        monkeypatch.setattr(released, "ADDRESSES", (address,))
        yield address, asked, folder
        found.shutdown()


def test_a_released_name_is_fetched_once_and_remembered(server):
    address, asked, folder = server
    fetch("dinov2_ames", (f"{address}/not-here", address))
    assert_same(load_released("dinov2_ames"), small_model())
    downloads = len(asked)
    (folder / "dinov2_ames.pt").unlink()
    fetch("dinov2_ames", (address,))
    assert_same(load_released("dinov2_ames"), small_model())
    assert len(asked) == downloads


def test_a_file_given_by_hand_needs_no_server(server, tmp_path):
    _, asked, folder = server
    place = tmp_path / "home" / "weights"
    place.mkdir(parents=True)
    (folder / "dinov2_ames.pt").rename(place / "dinov2_ames.pt")
    before = len(asked)
    assert_same(load_released("dinov2_ames"), small_model())
    assert len(asked) == before


def test_a_file_that_changed_is_refused(server):
    address, _, _ = server
    path = fetch("dinov2_ames", (address,))
    content = bytearray(path.read_bytes())
    content[100] ^= 1
    path.write_bytes(bytes(content))
    with pytest.raises(UserError, match="has changed since its first use"):
        fetch("dinov2_ames", (address,))


def test_no_server_is_one_clear_line(server, tmp_path):
    address, _, _ = server
    with pytest.raises(UserError, match="could not be downloaded") as caught:
        fetch("cvnet_ames", (address,))
    assert str(Path("weights") / "cvnet_ames.pt") in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not list((tmp_path / "home").rglob("*.pt"))


def test_an_unknown_name_is_refused():
    with pytest.raises(UserError, match="did you mean dinov2_ames"):
        fetch("dinov2_ames_")


def test_a_model_that_the_release_cannot_run_is_refused(tmp_path):
    save_model(small_model(bits=16, match_weight=1.0), tmp_path / "start")
    with pytest.raises(UserError, match="cannot score such a model"):
        main([f"--from={tmp_path / 'start'}", f"--to={tmp_path / 'model.pt'}"])


def test_an_ending_that_no_model_is_written_as_is_refused(tmp_path):
    save_model(small_model(), tmp_path / "start")
    with pytest.raises(UserError, match=r"no model is written as \.onnx"):
        main([f"--from={tmp_path / 'start'}", f"--to={tmp_path / 'x.onnx'}"])
    assert not (tmp_path / "x.onnx").exists()


def test_weights_of_wrapped_models_are_read(tmp_path):
    weights = {f"_orig_mod.module.{name}": array for name, array in to_torch(small_model()).items()}
    write_checkpoint(tmp_path / "wrapped.pt", weights, dataclasses.asdict(small_model().config))
    assert_same(load_model(tmp_path / "wrapped.pt"), small_model())


@pytest.mark.parametrize("length", [0, 3, 8, 60, 500])
def test_safetensors_cut_short_are_named(tmp_path, length):
    save_model(small_model(), tmp_path / "start")
    main([f"--from={tmp_path / 'start'}", f"--to={tmp_path / 'a.safetensors'}"])
    for path in (tmp_path / "a.safetensors", tmp_path / "start" / "model.safetensors"):
        path.write_bytes(path.read_bytes()[:length])
    with pytest.raises(UserError, match=r"a.safetensors: cannot be read"):
        read(str(tmp_path / "a.safetensors"))
    with pytest.raises(UserError, match=r"model.safetensors: "):
        read(str(tmp_path / "start"))


def test_what_is_no_checkpoint_is_not_kept(server, tmp_path):
    """A login page in place of the file."""
    address, _, folder = server
    (folder / "dinov2_ames.pt").write_text("<html>please log in</html>")
    with pytest.raises(UserError, match=r"dinov2_ames.pt: cannot be read"):
        fetch("dinov2_ames", (address,))
    assert not list((tmp_path / "home" / "weights").glob("dinov2_ames.*"))
