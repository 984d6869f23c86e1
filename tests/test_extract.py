"""`python -m ames_jax.extract`: from a folder of pictures to a data set, through kills, broken images and hosts."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import photo_folder
import pytest
from conftest import GOLDEN
from flax import nnx
from small_networks import write_networks

from ames_jax import extract, search
from ames_jax.benchmarks.extraction_speed import dead_leaves, random_weights
from ames_jax.data.checks.validation import validate
from ames_jax.data.global_descriptors import GlobalDescriptors
from ames_jax.data.neighbours import save_neighbours
from ames_jax.data.release_hdf5 import ReleaseSource
from ames_jax.data.shards import open_split
from ames_jax.descriptors import DescriptorSet
from ames_jax.extraction import backbones, extracting
from ames_jax.extraction.backbone import ExtractedImage
from ames_jax.extraction.backbones import open_backbone, reopen_backbone
from ames_jax.extraction.images import load_image
from ames_jax.extraction.keypoints import detect
from ames_jax.extraction.sift import SiftBackbone, SiftStatistics
from ames_jax.extraction.vit import ViTConfig
from ames_jax.model.ames import AMES, AMESConfig
from ames_jax.model.torch_files import write_checkpoint
from ames_jax.model.weights import save_model
from ames_jax.report.retrieval_evaluation import evaluate
from ames_jax.runtime import files
from ames_jax.runtime.command_line import load_config
from ames_jax.runtime.errors import UserError
from ames_jax.runtime.files import lock

BAD_NAMES = ("a/b", "a b", "a[1]", "a.b", "..", "a\nb", "ä")
PICTURES = ("a/0.png", "a/1.png", "b/2.png", "b/3.png", "4.png")


@pytest.fixture(autouse=True)
def no_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    """No cache in the home folder."""
    monkeypatch.setattr(extract.cache, "start", lambda: None)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pictures")
    for i, name in enumerate(PICTURES):
        (folder / name).parent.mkdir(exist_ok=True)
        cv2.imwrite(str(folder / name), dead_leaves(i, 90 + 10 * i, 120))
    return folder


@pytest.fixture(scope="module")
def statistics(pictures: Path) -> Path:
    path = pictures.parent / f"{pictures.name}_statistics.npz"
    SiftStatistics.learn(detect(cv2.imread(str(pictures / "4.png"), 0), 200).histogram, centres=4).save(path)
    return path


def sift(pictures: Path, out: Path, statistics: Path, *more: str) -> int:
    flags = [f"--images={pictures}", "--backbone=sift", f"--out={out}", f"--statistics={statistics}"]
    return extract.main([*flags, "--descriptors=60", *more])


@pytest.fixture(scope="module")
def data_set(pictures: Path, statistics: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("out") / "My Photos"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(extract.cache, "start", lambda: None)
        sift(pictures, out, statistics, "--hdf5")
    return out


def test_it_is_a_data_set_like_any_other(data_set: Path, pictures: Path) -> None:
    source = open_split(data_set, "images")
    assert source.ids() == sorted(PICTURES)
    assert source.labels().tolist() == [-1, 0, 0, 1, 1]
    assert (data_set / "images" / "images.label_names.txt").read_text() == "a\nb\n"
    about = json.loads((data_set / "about.json").read_text())
    assert about["name"] == "my_photos"
    assert (about["backbone"], about["width"], about["global"]) == ("sift", 128, "VLAD, 4 centres")
    assert about["images"] == {"images": str(pictures.resolve())}
    values = np.load(data_set / "global" / "images.npy")
    assert values.shape == (5, 512)
    np.testing.assert_allclose(np.linalg.norm(values, axis=1), 1, atol=1e-5)
    assert not list(data_set.rglob(".*"))


def test_a_query_is_extracted_as_the_collection_was(data_set: Path, pictures: Path) -> None:
    found = reopen_backbone(data_set).extract([load_image(pictures / "a/1.png")])[0]
    record = open_split(data_set, "images")[2]
    assert record.id == "a/1.png"
    count = found.local.count
    np.testing.assert_allclose(record.descriptors.features[:count], found.local.features, atol=1e-3)
    np.testing.assert_allclose(record.descriptors.xy[:count], found.local.xy, atol=1e-6)
    np.testing.assert_allclose(np.load(data_set / "global" / "images.npy")[2], found.global_descriptor, atol=1e-6)


def test_the_releases_files_hold_the_same(data_set: Path) -> None:
    release = ReleaseSource(data_set / "sift_images_local.hdf5", data_set / "images.txt")
    ours = open_split(data_set, "images")
    assert release.ids() == ours.ids()
    for row in range(5):
        theirs, mine = release[row].descriptors, ours[row].descriptors
        np.testing.assert_array_equal(theirs.valid, mine.valid)
        np.testing.assert_array_equal(theirs.features, mine.features)
        np.testing.assert_allclose(theirs.xy, mine.xy, atol=1e-3)
        np.testing.assert_allclose(theirs.weight, mine.weight, atol=1e-3)
    values = GlobalDescriptors([data_set / "sift_images_global.hdf5"])[:]
    np.testing.assert_array_equal(values, np.load(data_set / "global" / "images.npy"))
    assert (data_set / "images.txt").read_text().splitlines()[0] == "4.png,120,130"


def records(root: Path, split: str = "images") -> list[tuple]:
    """Everything in the records, as bytes."""
    found = []
    for record in open_split(root, split):
        local = record.descriptors
        fields = (local.features, local.valid, local.xy, local.scale, local.weight)
        found.append((record.id, record.label, *(field.tobytes() for field in fields)))
    return found


def test_a_run_that_was_killed_goes_on_and_a_finished_one_stays(
    pictures: Path, statistics: Path, data_set: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, real, batches = tmp_path / "my_photos", SiftBackbone.extract, []

    def killed(backbone: SiftBackbone, images: list) -> list:
        batches.append(len(images))
        if len(batches) == 2:
            raise KeyboardInterrupt
        return real(backbone, images)

    monkeypatch.setattr(SiftBackbone, "extract", killed)
    with pytest.raises(KeyboardInterrupt):
        sift(pictures, out, statistics, "--chunk=2")
    assert batches == [1, 2]  # three shards of 1, 2 and 2 images
    assert not (out / "dataset_info.json").exists()
    with pytest.raises(UserError, match=r"extraction was .*'descriptors': 60.*is .*'max_side': 100"):
        sift(pictures, out, statistics, "--chunk=2", "--max-side=100")
    assert sift(pictures, out, statistics, "--chunk=2") == 0
    assert batches == [1, 2, 2, 2]
    assert records(out) == records(data_set)
    for name in ("global/images.npy", "images/images.ids.txt", "images/images.labels.npy", "images/images.sizes.npy"):
        assert (out / name).read_bytes() == (data_set / name).read_bytes()
    assert not list(out.rglob(".*"))
    assert sift(pictures, out, statistics, "--chunk=2", "--hdf5") == 0
    assert batches == [1, 2, 2, 2]
    assert (out / "sift_images_local.hdf5").read_bytes() == (data_set / "sift_images_local.hdf5").read_bytes()
    with pytest.raises(UserError, match="use the same settings, or another folder"):
        sift(pictures, out, statistics, "--max-side=100")


def test_a_picture_replaced_under_its_name_is_not_taken_for_the_old_one(
    pictures: Path, statistics: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own, out = shutil.copytree(pictures, tmp_path / "own"), tmp_path / "my_photos"
    finish = extracting._finish
    monkeypatch.setattr(extracting, "_finish", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        sift(own, out, statistics, "--chunk=2")
    monkeypatch.setattr(extracting, "_finish", finish)
    cv2.imwrite(str(own / "b/3.png"), dead_leaves(9, 100, 100))
    assert sift(own, out, statistics, "--chunk=2") == 0
    assert sift(own, tmp_path / "fresh", statistics, "--chunk=2") == 0
    assert records(out) == records(tmp_path / "fresh")
    cv2.imwrite(str(own / "b/3.png"), dead_leaves(10, 100, 100))
    with pytest.raises(UserError, match=r"1 pictures are others than those that were extracted, the first .*3\.png"):
        sift(own, out, statistics, "--chunk=2")


def test_a_picture_that_was_copied_again_or_touched_is_the_same(
    pictures: Path, statistics: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own, out = shutil.copytree(pictures, tmp_path / "own"), tmp_path / "my_photos"
    assert sift(own, out, statistics) == 0
    os.utime(own / "4.png", ns=(1, 1))
    monkeypatch.setattr(SiftBackbone, "extract", None)  # nothing is extracted again
    assert sift(own, out, statistics) == 0
    for name in ("stamps.npy", "sizes.npy", "extracted.json"):
        path = out / "images" / f"images.{name}"
        content = path.read_bytes()
        path.write_bytes(content[:-9] + bytes([content[-9] ^ 1]) + content[-8:])
        with pytest.raises(UserError, match=rf"images\.{name}"):
            sift(own, out, statistics, "--hdf5")
        path.write_bytes(content)
    np.save(out / "images" / "images.stamps.npy", np.zeros(3))
    (out / "images" / "CHECKSUMS").unlink()
    with pytest.raises(UserError, match=r"images\.stamps\.npy: float64 \[3\], expected uint64 \[5, 4\]: it is damaged"):
        sift(own, out, statistics)
    (out / "images" / "images.extracted.json").write_text('{"written": "5"}')
    with pytest.raises(UserError, match=r"images\.extracted\.json: extraction is missing"):
        sift(own, out, statistics)


def test_a_run_that_was_killed_at_its_very_end_is_finished(
    pictures: Path, statistics: Path, data_set: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "my_photos"
    with monkeypatch.context() as patch:
        patch.setattr(extracting.shard_writing, "finish", lambda tasks: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            sift(pictures, out, statistics)
    kept = sorted((out / ".unfinished" / "images").glob("*00000*"))
    receipt, vectors, _ = map(Path.read_bytes, kept)
    kept[0].write_bytes(receipt.replace(b'"bytes": ', b'"bytes": 1'))
    with pytest.raises(UserError, match="its checksum is wrong: it is damaged; delete it"):
        sift(pictures, out, statistics)
    kept[0].write_bytes(receipt)
    kept[1].write_bytes(vectors[:-2] + b"xx")
    assert sift(pictures, out, statistics) == 0  # that shard is made again
    assert records(out) == records(data_set)
    np.testing.assert_array_equal(*(np.load(folder / "global" / "images.npy") for folder in (out, data_set)))
    monkeypatch.setattr(SiftBackbone, "extract", None)
    (out / ".unfinished").mkdir()  # killed between its two last calls
    assert sift(pictures, out, statistics) == 0
    assert not (out / ".unfinished").exists()


@pytest.mark.parametrize("free", [1000, 10**5])
def test_a_disk_too_small_is_told_before_the_work(
    pictures: Path, statistics: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, free: int
) -> None:
    """100,000 bytes would do for the shards, but not for the HDF5 files, too."""
    monkeypatch.setattr(files.shutil, "disk_usage", lambda _: SimpleNamespace(free=free))
    monkeypatch.setattr(SiftBackbone, "extract", None)
    with pytest.raises(UserError, match=r"needs 0\.\d MB, and its disk has"):
        sift(pictures, tmp_path / "out", statistics, *(["--hdf5"] if free > 1000 else []))


def test_what_an_earlier_version_left_is_begun_anew(
    pictures: Path, statistics: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    left = tmp_path / "out" / ".extracted" / "images"
    left.mkdir(parents=True)
    (left / "0000000.npz").write_bytes(b"")
    assert sift(pictures, tmp_path / "out", statistics) == 0
    assert "begun by an earlier version" in capsys.readouterr().out
    assert not left.parent.exists()


def test_hosts_share_the_list(pictures: Path, statistics: Path, data_set: Path, tmp_path: Path, capsys) -> None:
    out = tmp_path / "my_photos"
    assert sift(pictures, out, statistics, "--process=1", "--processes=2") == 0
    assert "others are still at work" in capsys.readouterr().out
    assert sift(pictures, out, statistics, "--process=0", "--processes=2") == 0
    assert "split images of 5 images" in capsys.readouterr().out
    assert records(out) == records(data_set)
    assert not list(out.rglob(".*"))


def test_two_runs_at_a_time_are_told_apart(
    pictures: Path, statistics: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AMES_JAX_HOME", str(tmp_path / "home"))
    out = tmp_path / "out"
    with lock(out / "images", tmp_path / "home"), pytest.raises(UserError, match="is being written by process"):
        sift(pictures, out, statistics)


def test_broken_images_stop_or_are_listed_and_rows_do_not_shift(
    pictures: Path, statistics: Path, tmp_path: Path
) -> None:
    listed = tmp_path / "list.txt"
    (tmp_path / "broken.jpg").write_bytes(b"\xff\xd8\xff broken")
    names = [
        pictures / "a/0.png",
        tmp_path / "broken.jpg",
        pictures / "4.png",
        tmp_path / "gone.jpg",
        pictures / "b/3.png",
    ]
    listed.write_text("".join(f"{path},{i}\n" for i, path in enumerate(names)))
    with pytest.raises(UserError, match=r"broken\.jpg: cannot be read.*--skip-broken"):
        sift(listed, tmp_path / "out", statistics, "--chunk=1")
    assert sift(listed, tmp_path / "out", statistics, "--skip-broken", "--chunk=1") == 0
    source = open_split(tmp_path / "out", "images")
    assert source.ids() == [str(names[i]) for i in (0, 2, 4)]
    assert source.labels().tolist() == [0, 2, 4]
    assert len(np.load(tmp_path / "out" / "global" / "images.npy")) == 3
    backbone = open_backbone("sift", statistics=statistics, descriptors=60)
    for row, i in enumerate((0, 2, 4)):
        expected = backbone.extract([load_image(names[i])])[0].local
        np.testing.assert_allclose(source[row].descriptors.features[: expected.count], expected.features, atol=1e-3)
    lines = (tmp_path / "out" / "images" / "images.broken.txt").read_text().splitlines()
    assert [line.split("\t")[0] for line in lines] == [str(names[1]), str(names[3])]


def test_a_box_is_cut_out_and_positions_are_mapped_back(pictures: Path, statistics: Path, tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_text("b/2.png,120,110\n")
    (tmp_path / "boxes.txt").write_text("30,20,110,100\n")
    more = [f"--root={pictures}", f"--boxes={tmp_path / 'boxes.txt'}", "--split=query"]
    sift(tmp_path / "list.txt", tmp_path / "out", statistics, *more)
    found = open_split(tmp_path / "out", "query")[0].descriptors
    xy = found.xy[found.valid] * [120, 110]
    assert ((xy >= [30, 20]) & (xy <= [110, 100])).all()
    part = load_image(pictures / "b/2.png")[20:100, 30:110]
    alone = open_backbone("sift", statistics=statistics, descriptors=60).extract([np.ascontiguousarray(part)])[0].local
    np.testing.assert_allclose(xy, alone.xy * 80 + [30, 20], atol=1e-3)


def test_a_second_split_joins_the_first(pictures: Path, statistics: Path, tmp_path: Path) -> None:
    for folder, split in (("a", "query"), ("b", "gallery")):
        sift(pictures / folder, tmp_path / "out", statistics, f"--split={split}")
    assert [len(open_split(tmp_path / "out", split)) for split in ("query", "gallery")] == [2, 2]
    assert set(json.loads((tmp_path / "out" / "about.json").read_text())["images"]) == {"query", "gallery"}
    SiftStatistics(np.zeros(128, np.float32), np.ones((4, 128), np.float32)).save(tmp_path / "other.npz")
    with pytest.raises(UserError, match="other SIFT statistics"):
        sift(pictures / "a", tmp_path / "out", tmp_path / "other.npz", "--split=more")


def test_dinov2_and_cvnet_from_files_of_their_authors(pictures: Path, tmp_path: Path) -> None:
    vit = ViTConfig(width=64, depth=1, heads=1, mlp=32, grid=4, registers=2)
    write_checkpoint(tmp_path / "vit.pth", random_weights(vit))
    with np.load(GOLDEN / "resnet_tiny.npz") as file:
        write_checkpoint(
            tmp_path / "resnet.pyth", {n.removeprefix("param/"): file[n] for n in file if n[:6] == "param/"}
        )
    rng = np.random.default_rng(0)
    for backbone, weights, width in (("dinov2", "vit.pth", 64), ("cvnet", "resnet.pyth", 32)):
        detector = {
            "conv1.weight": (width, width, 1, 1),
            "conv1.bias": width,
            "conv2.weight": (1, width, 1, 1),
            "conv2.bias": 1,
        }
        detector |= {f"bn.{name}": width for name in ("weight", "bias", "running_mean", "running_var")}
        write_checkpoint(tmp_path / "d.pt", {n: rng.uniform(0.1, 1, s).astype(np.float32) for n, s in detector.items()})
        out = tmp_path / backbone
        flags = [
            f"--images={pictures / 'a'}",
            f"--backbone={backbone}",
            f"--out={out}",
            "--descriptors=12",
            "--max-side=56",
        ]
        assert extract.main([*flags, f"--weights={tmp_path / weights}", f"--detector={tmp_path / 'd.pt'}"]) == 0
        source = open_split(out, "images")
        assert source[1].descriptors.features.shape == (12, width)
        found = reopen_backbone(out).extract([load_image(pictures / "a" / source.ids()[1])])[0]
        np.testing.assert_allclose(source[1].descriptors.features[:12], found.local.features, atol=2e-3)
        np.testing.assert_allclose(np.load(out / "global" / "images.npy")[1], found.global_descriptor, atol=1e-5)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--backbone=surf"], "--backbone=surf: expected one of sift, dinov2, cvnet"),
        (["--backbone=sift", "--weights=x"], "--weights: the backbone sift has no such option"),
        (["--backbone=sift", "--statistics=none.npz"], r"none\.npz: no such SIFT statistics; give --statistics=FILE"),
        (["--backbone=sift", "--descriptors=0"], r"--descriptors.*expected a number in 1\.\."),
        (["--backbone=sift", "--skip"], "Unknown option.*--skip"),
        (["--backbone=cvnet"], r"cvnet needs --weights=CVNet_R101\.pyth.*github"),
        (["--backbone=dinov2", "--weights=x.pth", "--detector=y.pt"], r"x\.pth is missing"),
        (["--backbone=sift", "--process=2", "--processes=2"], "--process=2: expected 0 to 1"),
        (["--backbone=sift", "--split="], "--split= is empty"),
        *(
            (["--backbone=sift", f"--split={name}"], "split .*expected letters, digits and underscores")
            for name in (*BAD_NAMES, "a-b", "all")
        ),
        *(
            (["--backbone=sift", f"--name={name}"], "name .*expected lower-case letters")
            for name in (*BAD_NAMES, "1a", "a-b")
        ),
        *(
            (["--backbone=sift", f"--{flag}={value}"], f"--{flag}")
            for flag in ("chunk", "max-side", "descriptors", "processes", "process")
            for value in ("-1", "0.5", "nan", "inf", "1e30", "x")
        ),
        (["--backbone=sift", "--chunk=0"], r"--chunk.*expected a number in 1\.\."),
        (["--backbone=sift", "--max-side=0"], r"--max-side.*expected a number in 1\.\."),
        (["--backbone=sift", "--max-side=1e6"], r"--max-side=1000000: expected 1 to 16,384"),
        (["--backbone=sift", "--descriptors=70000"], r"--descriptors=70000: expected 1 to 65,535"),
    ],
)
def test_user_errors(pictures: Path, tmp_path: Path, flags: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        extract.main([f"--images={pictures}", f"--out={tmp_path / 'out'}", *flags])


def test_blank_pictures_and_single_pixels_go_through_index_and_query(
    pictures: Path, statistics: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(search.cache, "start", lambda: None)
    monkeypatch.setenv("AMES_JAX_HOME", str(tmp_path / "home"))
    own = shutil.copytree(pictures, tmp_path / "own")
    cv2.imwrite(str(own / "blank.png"), np.full((80, 90, 3), 128, np.uint8))
    cv2.imwrite(str(own / "pixel.png"), np.full((1, 1, 3), 9, np.uint8))
    assert sift(own, tmp_path / "set", statistics) == 0
    source = open_split(tmp_path / "set", "images")
    empty = [record.id for record in (source[row] for row in range(len(source))) if not record.descriptors.valid.any()]
    assert empty == ["blank.png", "pixel.png"]
    assert validate([tmp_path / "set"], full=True).problems == []
    photo_folder.write_model(tmp_path / "model", statistics)
    index = ["index", f"--descriptors={tmp_path / 'set'}", f"--model={tmp_path / 'model'}", "--budget=80B"]
    assert search.main([*index, f"--out={tmp_path / 'index'}"]) == 0
    query = ["query", f"--index={tmp_path / 'index'}", f"--json={tmp_path / 'hits.json'}"]
    asked = [f"--image={own / name}" for name in ("blank.png", "pixel.png", "b/3.png")]
    assert search.main([*query, *asked, "--top=7"]) == 0
    found = [query["hits"] for query in json.loads((tmp_path / "hits.json").read_text())["queries"]]
    assert [len(hits) for hits in found] == [6, 6, 6]  # the query itself is left out
    assert np.isfinite([hit["score"] for hits in found for hit in hits]).all()
    assert {hit["id"] for hit in found[2][-2:]} == {"blank.png", "pixel.png"}


def test_xfeat_with_the_global_descriptor_of_another_network(
    pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(search.cache, "start", lambda: None)
    monkeypatch.setenv("AMES_JAX_HOME", str(tmp_path / "home"))
    xfeat, vit = write_networks(tmp_path, monkeypatch)
    flags = [f"--images={pictures}", f"--out={tmp_path / 'set'}", "--backbone=xfeat", "--global=dinov2_small"]
    flags += [f"--weights={xfeat}", f"--global-weights={vit}", "--max-side=96", "--descriptors=20"]
    assert extract.main(flags) == 0
    about = json.loads((tmp_path / "set" / "about.json").read_text())
    assert (about["backbone"], about["width"], about["global"]) == ("xfeat", 64, "DINOv2 small, class token")
    assert about["extraction"]["global_backbone"]["weights"] == str(vit)
    values = np.load(tmp_path / "set" / "global" / "images.npy")
    assert values.shape == (5, 48)
    shape = AMESConfig(descriptor_width=64, bits=32, model_width=16, layers=2, feed_forward=16)
    save_model(AMES(shape, nnx.Rngs(0)), tmp_path / "model", {"backbone": "xfeat", "lam": 0.6, "gamma": 0.3})
    index = ["index", f"--descriptors={tmp_path / 'set'}", f"--model={tmp_path / 'model'}", "--budget=80B"]
    assert search.main([*index, f"--out={tmp_path / 'index'}"]) == 0
    query = ["query", f"--index={tmp_path / 'index'}", f"--image={pictures / 'b/3.png'}", "--top=5"]
    assert search.main([*query, f"--json={tmp_path / 'hits.json'}"]) == 0  # opens both networks from the index's facts
    [asked] = json.loads((tmp_path / "hits.json").read_text())["queries"]
    assert {hit["id"] for hit in asked["hits"]} == {*PICTURES} - {"b/3.png"}
    found = reopen_backbone(tmp_path / "set").extract([load_image(pictures / "b/3.png")])[0]
    seen = json.loads((tmp_path / "set" / "about.json").read_text())["input"]
    assert (seen["channels"], seen["global"]["channels"]) == ("grey", "RGB")
    assert seen["sha256"] == {"weights": hashlib.sha256(xfeat.read_bytes()).hexdigest()}
    assert seen["global"]["sha256"] == {"weights": hashlib.sha256(vit.read_bytes()).hexdigest()}
    row = open_split(tmp_path / "set", "images").ids().index("b/3.png")
    np.testing.assert_allclose(values[row], found.global_descriptor, atol=1e-5)


def test_a_folder_of_one_picture_is_a_data_set(pictures: Path, statistics: Path, tmp_path: Path) -> None:
    (tmp_path / "one").mkdir()
    shutil.copy(pictures / "4.png", tmp_path / "one" / "4.jfif")  # the content decides, not the ending
    assert sift(tmp_path / "one", tmp_path / "out", statistics, "--processes=1", "--chunk=1") == 0
    assert open_split(tmp_path / "out", "images").ids() == ["4.jfif"]


def test_a_job_is_built_from_names() -> None:
    with pytest.raises(TypeError, match="positional"):
        extracting.ExtractionJob(None, None, Path("out"))


def test_documentation_holds_no_placeholder() -> None:
    text = (Path(__file__).parents[1] / "docs" / "extraction.md").read_text(encoding="utf-8")
    prose = re.sub(r"```.*?```", "", text, flags=re.DOTALL)
    assert not re.findall(r"^[A-Z0-9_]+$", prose, flags=re.MULTILINE)


def test_broken_images_of_a_killed_run_are_read_again_once_they_are_mended(
    pictures: Path, statistics: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    listed, picture, out = tmp_path / "list.txt", tmp_path / "a.png", tmp_path / "out"
    listed.write_text(f"{picture}\n{pictures / '4.png'}\n")
    picture.write_bytes(b"broken")
    with monkeypatch.context() as patch:
        patch.setattr(extracting.shard_writing, "finish", lambda tasks: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            sift(listed, out, statistics, "--skip-broken")
    picture.write_bytes((pictures / "a/0.png").read_bytes())
    assert sift(listed, out, statistics) == 0
    assert open_split(out, "images").ids() == [str(picture), str(pictures / "4.png")]


def test_no_image_that_can_be_read_is_an_error(statistics: Path, tmp_path: Path) -> None:
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures" / "a.png").write_bytes(b"broken")
    with pytest.raises(UserError, match=r"none of the 1 images can be read; the first: .*a\.png"):
        sift(tmp_path / "pictures", tmp_path / "out", statistics, "--skip-broken")
    with pytest.raises(UserError, match=r"--out=.*a\.png is a file"):
        sift(tmp_path / "pictures", tmp_path / "pictures" / "a.png", statistics, "--skip-broken")


class MeanColour:
    """A backbone as somebody might add it: one descriptor per image, its mean colour."""

    name, width, global_width, global_name, together = "colour", 3, 3, "mean colour", 2

    @classmethod
    def open(cls, *, descriptors: int = 4) -> MeanColour:
        backbone = cls()
        backbone.descriptors, backbone.settings = descriptors, {"name": cls.name, "descriptors": descriptors}
        return backbone

    def fit(self, image: np.ndarray) -> np.ndarray:
        return image

    def extract(self, images: list[np.ndarray]) -> list[ExtractedImage]:
        means = [image.mean((0, 1)).astype(np.float32) / 255 for image in images]
        one = np.ones(1, np.float32)
        return [
            ExtractedImage(DescriptorSet(mean[None], None, one[None] * [[0.5, 0.5]], one, one), mean) for mean in means
        ]


def test_a_backbone_is_one_class_and_one_line(pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(backbones.BACKBONES, "colour", lambda: MeanColour)
    out = tmp_path / "out"
    assert extract.main([f"--images={pictures}", "--backbone=colour", f"--out={out}", "--descriptors=2"]) == 0
    source, image = open_split(out, "images"), load_image(pictures / "4.png")
    assert source[0].descriptors.valid.tolist() == [True, False]
    found = reopen_backbone(out).extract([image])[0].local
    np.testing.assert_allclose(source[0].descriptors.features[0], found.features[0], atol=1e-3)
    with pytest.raises(UserError, match="--max-side: the backbone colour has no such option; it has descriptors"):
        extract.main([f"--images={pictures}", "--backbone=colour", f"--out={out}", "--max-side=20"])


def test_help_names_the_flags(capsys: pytest.CaptureFixture) -> None:
    assert extract.main(["--help"]) == 0
    assert "--skip-broken" in capsys.readouterr().out


def test_queries_and_a_gallery_extracted_in_different_ways_are_refused(
    pictures: Path, statistics: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    """Crops of queries are nobody's concern, crops of a gallery are told, and another size ends the evaluation."""
    boxes = tmp_path / "boxes.txt"
    boxes.write_text("10,10,80,80\n" + "\n" * (len(PICTURES) - 1))
    sift(pictures, tmp_path / "query", statistics, f"--boxes={boxes}")
    sift(pictures, tmp_path / "gallery", statistics, "--hdf5")
    sift(pictures, tmp_path / "small", statistics, "--max-side=64")
    count, ranks = len(PICTURES), np.tile(np.arange(len(PICTURES)), (len(PICTURES), 1))
    save_neighbours(tmp_path / "lists", np.tile(np.linspace(1, 0, count), (count, 1)), ranks)
    (tmp_path / "truth.json").write_text(json.dumps([{"ok": [row]} for row in range(count)]))
    config = load_config("evaluate")
    config.update(data_dir=str(tmp_path), dataset="custom", tune_on="custom", model="kernel", rerank="3")

    def results(query: str, gallery: str) -> dict:
        sides = {side: {"descriptors": text} for side, text in (("query", query), ("gallery", gallery))}
        manifest = {"name": "photos", "metric": "map", "first_stage": "SIFT", "neighbours": "lists", **sides}
        (tmp_path / "manifest.json").write_text(json.dumps({**manifest, "ground_truth": "truth.json"}))
        return evaluate(config, tmp_path / "run")

    for gallery in ("gallery:images", "gallery/sift_images_local.hdf5"):
        found = results("query:images", gallery)["extraction"]
        assert found["query"] | {"boxes": 0} == found["gallery"]
        assert found["query"]["boxes"] == 1
        assert (found["query"]["max_side"], found["query"]["channels"]) == (640, "grey")
        assert len(found["query"]["statistics"]) >= 16
    assert "pictures of the gallery" not in capsys.readouterr().out
    results("gallery:images", "query:images")
    assert "note: of 1 pictures of the gallery a part alone was extracted" in capsys.readouterr().out
    with pytest.raises(UserError, match="photos: queries were extracted with max_side = 64, the gallery with 640"):
        results("small:images", "gallery:images")
