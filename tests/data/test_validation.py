"""`validate` finds each fault, names the file and the first image, and says what to do; sound files give none."""

import json
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy

from ames_jax.commands.prepare import validate as validate_files
from ames_jax.data.checks import validation
from ames_jax.data.checks.contents import sample_rows
from ames_jax.data.checks.validation import validate
from ames_jax.data.neighbours import save_neighbours
from ames_jax.data.release_hdf5 import ReleaseSource
from ames_jax.data.release_pickles import read_neighbours
from ames_jax.data.shards import link_split, write_shards
from ames_jax.runtime.checksums import forget
from ames_jax.runtime.errors import UserError


def problems(*paths, **options):
    report = validate(paths, **options)
    assert all("\n" not in problem for problem in report.problems)
    return report.problems


def only(found, *words):
    assert len(found) == 1, found
    for word in words:
        assert word in found[0]


def test_sound_files_have_no_problems(release):
    paths = [release.hdf5(), release.hdf5("dinov2_global.hdf5", release.globals), release.list(), release.neighbours()]
    report = validate(paths)
    assert report.problems == []
    text = str(report)
    assert "flat, float16 60 images × 6 × 8, 16.7 % padding, norms" in text
    assert "no problems" in text


@pytest.mark.parametrize("layout", ["virtual", "structured", "bits"])
def test_sound_files_of_other_layouts(release, layout):
    bits = np.full((60, 6, 16), 85, np.uint8)
    path = (
        release.virtual() if layout == "virtual" else release.structured(bits if layout == "bits" else release.features)
    )
    assert problems(path) == []


def test_a_missing_part_of_a_virtual_file(release):
    path = release.virtual()
    (release.folder / "dinov2_xab_local.hdf5").unlink()
    only(problems(path), "dinov2_local.hdf5 is a virtual file and its part", "dinov2_xab_local.hdf5 is missing", "copy")


def test_parts_of_a_virtual_file_that_would_read_as_zeros(release):
    path = release.virtual()
    part = release.folder / "dinov2_xab_local.hdf5"
    whole = part.read_bytes()
    part.write_bytes(whole[:-500])
    only(problems(path), "dinov2_xab_local.hdf5 is cut short")
    release.hdf5(part.name, release.flat[:7])
    only(
        problems(path),
        "maps 1560 values of `features` of",
        "xab_local.hdf5, which holds 546: copy that part again",
    )
    part.write_bytes(whole.replace(b"features", b"featured"))
    only(problems(path), "xab_local.hdf5: no dataset `features`; it has ['featured']")


def test_bits_that_were_not_written(release):
    bits = np.full((60, 6, 16), 85, np.uint8)
    bits[30:40], release.metadata[30:40] = 0, 0
    only(problems(release.structured(bits)), "10 images, the first of them 30, are all zero with metadata and all")
    release.metadata[30:40] = 0.5
    release.metadata[30:40, :, 3] = 0
    assert problems(release.structured(bits)) == []  # zeros are bits like any others


def test_a_virtual_file_that_does_not_map_all_images(release):
    import h5py

    release.virtual()
    layout = h5py.VirtualLayout(release.flat.shape, np.float16)
    layout[:20] = h5py.VirtualSource("dinov2_xaa_local.hdf5", "features", (20, 6, 13), np.float16)
    with h5py.File(release.folder / "half.hdf5", "w") as file:
        file.create_virtual_dataset("features", layout)
    only(problems(release.folder / "half.hdf5"), "40 images, the first of them 20, are all zero", "a chunk is missing")


def test_a_truncated_file(release):
    path = release.hdf5()
    path.write_bytes(path.read_bytes()[:-500])
    only(problems(path), "is cut short", "download it again")


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_rows_that_are_not_numbers(release, value):
    release.features[13, 2, 5] = value
    release.features[40, 0, 0] = value
    only(problems(release.hdf5()), "2 images, the first of them 13, hold NaN or infinity")


def test_padding_may_hold_anything(release):
    release.features[1, 5, 0] = np.nan  # image 1 has one row of padding
    assert problems(release.hdf5()) == []


def test_real_descriptors_of_zeros(release):
    release.features[20, 1] = 0
    only(problems(release.hdf5()), "1 images, the first of them 20, hold real descriptors that are all zero")


def test_a_mask_the_wrong_way_round(release):
    release.metadata[..., 3] = 1 - release.metadata[..., 3]
    found = problems(release.hdf5())
    assert any("the mask is the wrong way round" in problem for problem in found)


def test_values_that_are_no_mask(release):
    release.metadata[5, :, 3] = 0.5
    found = problems(release.hdf5())
    assert any("1 images, the first of them 5, have mask values other than 0 and 1" in problem for problem in found)


def test_an_image_without_descriptors_and_one_out_of_order(release):
    release.metadata[6, :, 3] = 1
    release.metadata[9, :, 4] = np.arange(6)
    only(problems(release.hdf5()), "the first of them 9, are not sorted by falling weight")
    assert "1 images without descriptors" in str(validate([release.hdf5()]))


def test_global_descriptors(release):
    release.globals[3] = 0
    release.globals[8, 1] = np.nan
    release.globals[9] *= 3
    found = problems(release.hdf5("dinov2_global.hdf5", release.globals))
    assert len(found) == 3
    assert "the first of them 8, hold NaN" in found[0]
    assert "the first of them 3, are all zero" in found[1]
    assert "L2-normalise" in found[2]


def test_a_list_of_another_length(release):
    only(problems(release.hdf5(), release.list(order=range(59))), "train.txt: 59 images, but", "has 60")


def test_a_list_without_a_label(release):
    path = release.list()
    path.write_text(path.read_text().replace(f",{release.labels[7]},480,640\ntrain/8", ",,480,640\ntrain/8"))
    only(problems(path), "train.txt line 8: expected `id,label,width,height` as in line 1")


def test_a_list_with_an_image_twice(release):
    only(problems(release.list(order=[*range(59), 4])), "'train/4, a.jpg' (line 5) comes more than once")


def test_a_list_in_the_wrong_order(release):
    order = np.random.default_rng(3).permutation(60)
    found = problems(release.list(order), release.neighbours())
    only(found, "train.txt: labels of neighbours in", "as by chance", "the list is in the wrong order")


def test_a_list_in_another_order_than_the_ground_truth(release):
    names = [f"image_{i}" for i in range(5)]
    lines = [f"jpg/{name}.jpg,640,480\n" for name in (*names[:2], names[3], names[2], names[4])]
    (release.folder / "test_gallery.txt").write_text("".join(lines))
    truth = {"gnd": [{"easy": [0], "hard": [4], "junk": []}], "imlist": names, "qimlist": ["q"]}
    path = release.pickle("gnd_toy.pkl", truth)
    found = problems(release.folder / "test_gallery.txt", path)
    only(found, "line 3 is 'jpg/image_3.jpg', but image 2", "wrong order")
    (release.folder / "test_gallery.txt").write_text("".join(f"jpg/{name}.jpg,640,480\n" for name in names))
    assert problems(release.folder / "test_gallery.txt", path) == []
    (release.folder / "test_gallery.txt").write_text("".join(f"jpg/x{name}.jpg,640,480\n" for name in names))
    only(problems(release.folder / "test_gallery.txt", path), "does not list the images of")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda s, i: i.__setitem__((4, 3), 60),
            "the lists of 1 images, the first of them 4, name images outside of the 60",
        ),
        (lambda s, i: i.__setitem__((4, 3), -1), "name images outside of the 60"),
        (lambda s, i: i.__setitem__((5, 3), 2.5), "the first of them 5, hold indices that are not whole numbers"),
        (lambda s, i: i.__setitem__((6, 0), 6), "the first of them 6, hold the image itself"),
        (lambda s, i: s.__setitem__((7, 0), np.nan), "the first of them 7, hold similarities that are NaN"),
        (lambda s, i: s.__setitem__((8, 9), 3), "the first of them 8, are not sorted by falling similarity"),
    ],
)
def test_neighbour_lists(release, change, message):
    similarities, indices = release.lists()
    indices = indices.astype(np.float32)
    change(similarities, indices)
    only(problems(release.hdf5(), release.neighbours(np.stack([similarities, indices]))), "nn_dinov2.pkl", message)


def test_neighbour_lists_of_another_set(release):
    similarities, indices = release.lists()
    path = release.neighbours(np.stack([similarities, indices])[:, :50])
    only(problems(release.list(), path), "lists of 50 images, but there are 60")


def test_neighbours_of_queries_may_have_the_same_number(release):
    similarities, indices = release.lists()
    indices[:, 0] = np.arange(60)
    files = [release.hdf5(f"dinov2_{role}_local.hdf5") for role in ("query", "gallery")]
    assert problems(*files, release.neighbours(np.stack([similarities, indices]))) == []


def test_ground_truth_out_of_range(release):
    files = [release.hdf5(f"dinov2_{role}_local.hdf5") for role in ("query", "gallery")]
    truth = [{"ok": [i]} for i in range(60)]
    assert problems(*files, release.pickle("gnd_toy.pkl", {"gnd": truth})) == []
    truth[7] = {"ok": [3, 60]}
    only(problems(*files, release.pickle("gnd_toy.pkl", {"gnd": truth})), "query 7 names image 60 (ok) of 60")
    only(problems(*files, release.pickle("gnd_toy.pkl", {"gnd": truth[:5]})), "5 queries, but there are 60")


@pytest.mark.parametrize("folder", ["revisitop1m", "roxford5k", "rparis6k", "rparis6k+1m"])
def test_a_gallery_of_a_benchmark_has_its_number_of_images(release, folder):
    (release.folder / folder).mkdir()
    expected = {"revisitop1m": "1,001,001", "roxford5k": "4,993", "rparis6k": "6,322", "rparis6k+1m": "1,007,323"}[
        folder
    ]
    path = release.hdf5(f"{folder}/dinov2_gallery_local.hdf5")
    only(problems(path), str(path), f"60 images, expected the {expected} of {folder}")
    assert problems(release.hdf5(f"{folder}/dinov2_query_local.hdf5")) == []


def test_distractors_stand_behind_the_gallery(release, monkeypatch):
    """Rows in the lists of a set with distractors count both; of the set without them, the gallery alone."""
    monkeypatch.setitem(validation.GALLERIES, "revisitop1m", 60)
    monkeypatch.setattr(validation, "DISTRACTORS", 60)
    (release.folder / "revisitop1m").mkdir()
    names = ("toy_query", "toy_gallery", "revisitop1m/toy_gallery")
    files = [release.hdf5(f"{name}_local.hdf5") for name in names]
    truth = {"gnd": [{"ok": [119]}] * 60}
    assert problems(*files, release.pickle("gnd_toy+1m.pkl", truth)) == []
    only(problems(*files, release.pickle("gnd_toy.pkl", truth)), "query 0 names image 119 (ok) of 60")
    truth["gnd"][3] = {"ok": [120]}
    only(problems(*files, release.pickle("gnd_toy+1m.pkl", truth)), "query 3 names image 120 (ok) of 120")


def test_a_foreign_pickle(release):
    only(problems(release.pickle("nn_evil.pkl", print)), "nn_evil.pkl: refused: it asks for builtins.print")
    only(problems(release.pickle("gnd_evil.pkl", {"gnd": [eval]})), "refused: it asks for builtins.eval")


def test_large_files_are_sampled_and_say_so(release, monkeypatch):
    monkeypatch.setattr("ames_jax.data.checks.contents.WHOLE_BYTES", 0)
    monkeypatch.setattr("ames_jax.data.checks.contents.SAMPLE_RUNS", 3)
    monkeypatch.setattr("ames_jax.data.checks.contents.SAMPLE_RUN", 4)
    release.features[30, 0, 0] = np.nan
    release.features[10, 0, 0] = np.nan
    path = release.hdf5()
    assert "sampled 12 images, --full reads all" in str(validate([path]))
    only(problems(path), "1 images, the first of them 30")
    only(problems(path, full=True), "2 images, the first of them 10")


def test_sampling_covers_both_ends_in_small_blocks():
    rows = list(sample_rows(Path("x"), 10**6, row_bytes=100, block_bytes=700, full=False))
    assert rows[0].start == 0
    assert rows[-1].stop == 10**6
    assert all(0 < r.stop - r.start <= 7 for r in rows)
    everything = [
        i for r in sample_rows(Path("x"), 50, row_bytes=100, block_bytes=700, full=True) for i in range(r.start, r.stop)
    ]
    assert everything == list(range(50))


def test_a_data_set_of_ours(release):
    root = release.folder / "shards"
    write_shards(
        root, "toy", {"train": ReleaseSource(release.hdf5(), release.list())}, descriptors=6, width=8, shards=2
    )
    report = validate([root])
    assert report.problems == []
    assert "float16 60 images × 6 × 8" in str(report)
    labels = root / "images" / "train.labels.npy"
    np.save(labels, np.load(labels)[::-1])
    only(problems(root), "labels.npy is damaged: its checksum is wrong")
    forget(labels.parent, labels.name)
    only(problems(root), "record 0 has the label")
    values = np.load(labels)[::-1].copy()
    values[1] += 1  # not among the records that opening looks at
    np.save(labels, values)
    only(problems(root), "ids or labels of train are not those of its records")
    shard = root / "toy-train.array_record-00001-of-00002"
    data = bytearray(shard.read_bytes())
    data[data.index(b"train/40") + 100] ^= 255
    shard.write_bytes(bytes(data))
    only(problems(root), "00001-of-00002", "write the data set again")


def test_the_lists_of_a_data_set_of_ours(release):
    root = release.folder / "set"
    link_split(root, "train", ReleaseSource(release.hdf5(), release.list()))
    similarities, indices = release.lists()
    save_neighbours(root / "neighbours" / "train.train", similarities, indices)
    (root / "global").mkdir()
    np.save(root / "global" / "train.npy", release.globals)
    assert problems(root) == []
    indices[4, 3] = 60
    save_neighbours(root / "neighbours" / "train.train", similarities, indices)
    np.save(root / "global" / "train.npy", release.globals[:50])
    (root / "ground_truth").mkdir()
    truth = {"query": "train", "database": "train", "queries": [{"ok": [99]}] * 60}
    (root / "ground_truth" / "toy.json").write_text(json.dumps(truth))
    found = problems(root)
    assert len(found) == 3
    assert "train.npy: 50 images, but split train has 60" in found[0]
    assert "name images outside of the 60" in found[1]
    assert "toy.json: query 0 names image 99" in found[2]


def test_recorded_release_files_are_compared_by_later_reads(release):
    """A bit of a float, a digit of a list, an entry of a pickle: without checksums other numbers, with them one line."""
    files = [release.hdf5(), release.list(), release.neighbours()]
    assert validate_files(files, record=True) == 0
    reads = [
        lambda: ReleaseSource(files[0]),
        lambda: ReleaseSource(files[0], files[1]),
        lambda: read_neighbours(files[2]),
    ]
    for path, read in zip(files, reads):
        whole = path.read_bytes()
        path.write_bytes(whole[:-30] + bytes([whole[-30] ^ 1]) + whole[-29:])
        with pytest.raises(UserError, match=f"{path.name} is damaged: its checksum is wrong"):
            read()
        path.write_bytes(whole)
        read()


def test_weights_of_others_are_recorded(tmp_path):
    path = tmp_path / "elvis.safetensors"
    safetensors.numpy.save_file({"weight": np.ones(3, np.float32)}, path)
    assert validate_files([path], record=True) == 0
    path.write_bytes(path.read_bytes()[:-1] + b"\x41")
    only(problems(path), "elvis.safetensors is damaged: its checksum is wrong")


def test_files_that_cannot_be_checked(release):
    (release.folder / "notes.md").write_text("")
    only(problems(release.folder / "notes.md"), "expected .hdf5, .npy, .pkl, .txt, .json, .safetensors, a file")
    (release.folder / "cut.safetensors").write_bytes(b"\x10")
    only(problems(release.folder / "cut.safetensors"), "cannot be read as safetensors")
    only(problems(release.folder), "is no finished data set")
