"""Every layout of the release's files, read by row and in part, and one clear line for each way it can be broken."""

import pickle
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest

from ames_jax.data.global_descriptors import GlobalDescriptors
from ames_jax.data.neighbours import open_neighbours
from ames_jax.data.release_hdf5 import ReleaseSource
from ames_jax.data.release_pickles import import_neighbours, read_ground_truth, read_neighbours
from ames_jax.runtime.errors import UserError


def check_rows(source, release, features):
    for row in (0, 7, 59):
        found = source[row].descriptors.truncate(4)
        np.testing.assert_array_equal(found.features, features[row, :4])
        metadata = release.metadata[row, :4].astype(np.float32)
        np.testing.assert_array_equal(found.valid, metadata[:, 3] == 0)
        np.testing.assert_array_equal(found.xy, metadata[:, :2])
        np.testing.assert_array_equal(found.scale, metadata[:, 2])
        np.testing.assert_array_equal(found.weight, metadata[:, 4])
    rows = np.array([5, 6, 8, 40])
    block = source.read(rows, 5)
    np.testing.assert_array_equal(block.features, features[rows, :5])
    np.testing.assert_array_equal(block.valid, release.metadata[rows, :5, 3] == 0)
    assert source.read(rows, 600).count == 6


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
@pytest.mark.parametrize("options", [{}, {"chunks": (16, 6, 13), "compression": "gzip"}, {"chunks": (1, 2, 13)}])
def test_flat(release, dtype, options):
    local = ReleaseSource(release.hdf5(data=release.flat.astype(dtype), **options))
    assert (local.layout, local.packed, local.virtual, local.dtype) == ("flat", False, False, dtype)
    assert (len(local), local.rows, local.width) == (60, 6, 8)
    check_rows(local, release, release.features)


def test_structured(release):
    local = ReleaseSource(release.structured(release.features))
    assert (local.layout, local.packed, local.width) == ("structured", False, 8)
    check_rows(local, release, release.features)


def test_structured_bits(release):
    bits = np.random.default_rng(0).integers(0, 256, (60, 6, 16), dtype=np.uint8)
    local = ReleaseSource(release.structured(bits))
    assert (local.packed, local.width) == (True, 128)
    check_rows(local, release, bits)
    assert local.format.dtype == "bits"
    assert local[3].descriptors.is_packed


def test_structured_with_an_image_an_element(release):
    kind = np.dtype([("metadata", np.float32, (6, 5)), ("descriptor", np.float16, (6, 8))])
    data = np.zeros(60, kind)
    data["metadata"], data["descriptor"] = release.metadata, release.features
    check_rows(ReleaseSource(release.hdf5(data=data)), release, release.features)


def test_virtual(release):
    local = ReleaseSource(release.virtual())
    assert local.virtual
    check_rows(local, release, release.features)


@pytest.mark.parametrize("absolute", [True, False])
def test_a_virtual_file_reads_its_parts_where_they_were_moved(release, tmp_path, monkeypatch, absolute):
    path = release.virtual(absolute=absolute)
    (tmp_path / "moved").mkdir()
    for file in release.folder.glob("*.hdf5"):
        file.rename(tmp_path / "moved" / file.name)
    monkeypatch.chdir(tmp_path)
    check_rows(ReleaseSource(Path("moved") / path.name), release, release.features)


def test_a_missing_part_of_a_virtual_file_is_named(release):
    path = release.virtual()
    (release.folder / "dinov2_xab_local.hdf5").unlink()
    with pytest.raises(UserError, match=r"its part .*dinov2_xab_local.hdf5 is missing \(1 in all\)") as caught:
        ReleaseSource(path)
    assert "\n" not in str(caught.value)


def test_only_the_rows_asked_for_are_read(release):
    """Rows past the first K may be unreadable: they are not touched where the chunks are smaller."""
    path = release.hdf5(chunks=(1, 2, 13), compression="gzip", shuffle=False)
    import h5py

    with h5py.File(path) as file:
        chunk = file["features"].id.get_chunk_info_by_coord((7, 4, 0))
    data = bytearray(path.read_bytes())
    data[chunk.byte_offset : chunk.byte_offset + chunk.size] = b"\xff" * chunk.size
    path.write_bytes(bytes(data))
    np.testing.assert_array_equal(ReleaseSource(path, descriptors=4)[7].descriptors.features, release.features[7, :4])
    np.testing.assert_array_equal(ReleaseSource(path).read(np.array([7]), 4).features[0], release.features[7, :4])
    with pytest.raises(UserError, match="images 7 cannot be read"):
        ReleaseSource(path)[7]


def test_a_truncated_file_is_named(release):
    path = release.hdf5()
    path.write_bytes(path.read_bytes()[:-500])
    with pytest.raises(UserError, match=r"dinov2_local.hdf5 is cut short at \d+ bytes: copy or download it again"):
        ReleaseSource(path)


def test_files_of_another_kind_are_named(release):
    (release.folder / "text.hdf5").write_text("not HDF5")
    with pytest.raises(UserError, match="not a readable HDF5 file"):
        ReleaseSource(release.folder / "text.hdf5")
    with pytest.raises(UserError, match=r"absent.hdf5 is missing"):
        ReleaseSource(release.folder / "absent.hdf5")
    with pytest.raises(UserError, match=r"`features` is float32 \(60, 16\), expected floats"):
        ReleaseSource(release.hdf5("dinov2_global.hdf5", release.globals))
    with pytest.raises(UserError, match=r"fields \['a', 'b'\], expected metadata and descriptor"):
        ReleaseSource(release.hdf5("other.hdf5", np.zeros((3, 4), [("a", "f4"), ("b", "f4")])))


def test_global_descriptors(release):
    hdf5 = release.hdf5("g.hdf5", release.globals)
    np.save(release.folder / "g.npy", release.globals.astype(np.float16))
    both = GlobalDescriptors([hdf5, release.folder / "g.npy"])
    assert both.shape == (120, 16)
    np.testing.assert_array_equal(both[:60], release.globals)
    expected = np.concatenate([release.globals, release.globals.astype(np.float16)])
    np.testing.assert_array_equal(both[55:70], expected[55:70])
    assert both[130:].shape == (0, 16)
    both.save(release.folder / "copy.npy")
    np.testing.assert_array_equal(np.load(release.folder / "copy.npy"), expected)
    with pytest.raises(UserError, match=r"expected global descriptors \[images, values\], found float16 \(60, 6, 13\)"):
        GlobalDescriptors([release.hdf5()])
    with pytest.raises(UserError, match=r"n.hdf5: 8 values per image, but .*g.hdf5 has 16"):
        GlobalDescriptors([hdf5, release.hdf5("n.hdf5", release.globals[:, :8])])
    with pytest.raises(UserError, match=r"x.npy is missing"):
        GlobalDescriptors([release.folder / "x.npy"])


def test_a_source_is_images_with_ids_and_labels(release):
    source = pickle.loads(pickle.dumps(ReleaseSource(release.hdf5(), release.list(), descriptors=4)))
    assert len(source) == 60
    image = source[7]
    assert (image.id, image.label) == ("train/7, a.jpg", release.labels[7])
    np.testing.assert_array_equal(image.descriptors.features, release.features[7, :4])
    assert source.ids()[59] == "train/59, a.jpg"
    np.testing.assert_array_equal(source.labels(), release.labels)
    assert (source.format.descriptors, source.format.width) == (4, 8)
    with pytest.raises(IndexError):
        source[60]


def test_a_source_without_a_list(release):
    source = ReleaseSource(release.hdf5())
    assert (source[5].id, source[5].label) == ("5", -1)
    with pytest.raises(UserError, match="no labels; give the list"):
        source.labels()


def test_a_list_of_another_length_is_named(release):
    release.list(order=range(59))
    with pytest.raises(UserError, match=r"train.txt lists 59 images, .*holds 60"):
        ReleaseSource(release.hdf5(), release.folder / "train.txt")


def test_neighbours_and_ground_truth(release):
    similarities, indices = release.lists()
    found, rows = read_neighbours(release.neighbours())
    np.testing.assert_array_equal(rows, indices)
    np.testing.assert_array_equal(found, similarities)
    truth = {"gnd": [{"easy": [1], "hard": np.array([2]), "junk": [], "bbx": [1, 2, 3, 4]}], "imlist": ["a"]}
    assert read_ground_truth(release.pickle("gnd_x.pkl", truth)) == (
        [{"easy": [1], "hard": [2], "junk": [], "bbx": [1.0, 2.0, 3.0, 4.0]}], ["a"], None,
    )  # fmt: skip


def test_pickles_of_another_kind_are_named(release):
    with pytest.raises(UserError, match=r"expected a tensor \[2, queries, neighbours\], found a dict"):
        read_neighbours(release.pickle("nn_a.pkl", {}))
    with pytest.raises(UserError, match="expected a dict with the key gnd, found a list"):
        read_ground_truth(release.pickle("gnd_a.pkl", []))
    with pytest.raises(UserError, match="query 0 has neither"):
        read_ground_truth(release.pickle("gnd_b.pkl", {"gnd": [{"easy": [1]}]}))


def test_the_release_files_at_hand(reference):
    folder = reference / "evaluation" / "gldv2-train"
    source = ReleaseSource(folder / "dinov2_local.hdf5", folder / "train.txt")
    assert (len(source), source.format.descriptors, source.format.width) == (1500, 12, 24)
    assert source[3].label == 79493
    similarities, indices = read_neighbours(folder / "nn_dinov2.pkl")
    assert similarities.shape == indices.shape == (1500, 100)
    truth, database, queries = read_ground_truth(reference / "evaluation" / "roxford5k" / "gnd_roxford5k.pkl")
    assert (len(truth), len(database), len(queries)) == (70, 4993, 70)


def test_nan_in_padding_rows_reads_as_zeros(release):
    values = release.flat
    padding = release.metadata[..., 3] == 1
    values[..., 5:][padding] = np.nan
    source = ReleaseSource(release.hdf5(data=values))
    read = source.read(np.arange(60), 6)
    np.testing.assert_array_equal(read.features[padding], 0)
    np.testing.assert_array_equal(read.features[~padding], release.features[~padding])
    assert np.isfinite(source[2].descriptors.features).all()


@pytest.mark.parametrize("mask", [np.nan, 0.5, -1, 2])
def test_a_mask_of_other_than_0_and_1_is_told(release, mask):
    values = release.flat
    values[3, 1, 3] = mask
    with pytest.raises(UserError, match=r"images 3: the mask \(value 3 of 5 before the descriptor\) is not 0 or 1"):
        ReleaseSource(release.hdf5(data=values))[3]


def test_more_images_than_rows_can_number_are_told(release):
    path = release.folder / "huge.hdf5"
    with h5py.File(path, "w") as file:
        file.create_dataset("features", (2**31, 2, 9), np.float32, chunks=(1, 2, 9))
    with pytest.raises(UserError, match="claims 2,147,483,648 images"):
        ReleaseSource(path)


def outside(release):
    (release.folder / "secret").write_bytes(bytes(range(256)) * 8)
    return release.folder / "secret"


def external_link(release, file):
    file["features"] = h5py.ExternalLink(str(release.hdf5("other.hdf5")), "features")


def external_storage(release, file):
    file.create_dataset("features", (1, 1, 9), np.float32, external=[(str(outside(release)), 0, 36)])


def maps_itself(release, file):
    layout = h5py.VirtualLayout((2, 1, 9), np.float32)
    layout[:] = h5py.VirtualSource(".", "features", (2, 1, 9), np.float32)
    file.create_virtual_dataset("features", layout)


def maps_another_folder(release, file):
    (release.folder / "sub").mkdir()
    layout = h5py.VirtualLayout(release.flat.shape, np.float16)
    layout[:] = h5py.VirtualSource(str(release.hdf5("sub/part.hdf5")), "features", release.flat.shape, np.float16)
    file.create_virtual_dataset("features", layout)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (external_link, "is a link to another place"),
        (lambda release, file: file.__setitem__("features", h5py.SoftLink("/features")), "is a link to another place"),
        (lambda release, file: file.create_group("features"), "is a group without values"),
        (lambda release, file: file.create_dataset("features", data=h5py.Empty("f4")), "is a dataset without values"),
        (external_storage, "is stored in other files"),
        (maps_itself, "which is virtual itself"),
        (maps_another_folder, "parts are read from its own folder alone"),
        (lambda release, file: file.create_dataset("features", (0, 2, 9), np.float32), "holds no descriptors"),
        (lambda release, file: file.create_dataset("features", (2, 0, 9), np.float32), "holds no descriptors"),
        (lambda release, file: file.create_dataset("features", (9, 10**5, 5000), np.float32), "more than 1 GiB each"),
        (lambda release, file: file.create_dataset("features", (), np.float32), "expected floats"),
    ],
)
def test_what_is_no_data_of_the_file_itself_is_refused(release, make, message):
    with h5py.File(release.folder / "strange.hdf5", "w") as file:
        make(release, file)
    with pytest.raises(UserError, match=f"strange.hdf5.*{message}") as caught:
        ReleaseSource(release.folder / "strange.hdf5")
    assert "\n" not in str(caught.value)


def test_a_file_that_is_being_written_is_told_as_such(release):
    """HDF5's locks are between processes."""
    path = release.hdf5()
    code = f"from ames_jax.data.release_hdf5 import ReleaseSource; ReleaseSource({str(path)!r})"
    with h5py.File(path, "r+"):
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert "is open in another process that writes it" in done.stderr


@pytest.mark.parametrize(
    "truth",
    [
        {"gnd": None}, {"gnd": {}}, {"gnd": []}, {"gnd": [None]}, {"gnd": [{"ok": None}]}, {"gnd": [{"ok": 3}]},
        {"gnd": [{"ok": ["a"]}]}, {"gnd": [{"ok": "12"}]}, {"gnd": [{"ok": b"12"}]}, {"gnd": [{"ok": [0.5]}]},
        {"gnd": [{"ok": [-1]}]}, {"gnd": [{"ok": [1e20]}]}, {"gnd": [{"ok": [1], "bbx": "all"}]}, {"gnd": 3},
        {"gnd": [{"ok": {"a": 1}}]}, {"gnd": [{"ok": [1], "bbx": [float("nan")] * 4}]}, [1], None, b"gnd",
        {"gnd": [{"ok": [1]}], "imlist": 3}, {"gnd": [{"ok": [1]}], "imlist": [3]},
    ],
)  # fmt: skip
def test_ground_truth_of_another_shape_is_named(release, truth):
    with pytest.raises(UserError, match=r"gnd_x.pkl") as caught:
        read_ground_truth(release.pickle("gnd_x.pkl", truth))
    assert "\n" not in str(caught.value)


def test_plain_bits_as_elvis_writes_them(release):
    bits = np.random.default_rng(0).integers(1, 256, (60, 7, 16), dtype=np.uint8)
    bits[3, 5:] = 0
    local = ReleaseSource(release.hdf5("dinov2_gallery_local.hdf5", bits))
    assert (local.layout, local.packed, local.rows, local.width) == ("plain", True, 7, 128)
    found = local.read(np.array([3, 9]), 6)
    np.testing.assert_array_equal(found.features, bits[[3, 9], :6])
    assert found.valid.tolist() == [[True] * 5 + [False], [True] * 6]
    assert found.xy is None
    assert local[3].descriptors.weight is None


def test_lists_with_rows_of_the_local_file(release):
    """ELViS's third row: kept where the local file holds other rows, and read instead of them."""
    rng = np.random.default_rng(0)
    indices, similarities = np.stack([rng.permutation(100)[:5] for _ in range(4)]), -np.sort(-rng.random((4, 5)))
    local = indices // 2
    for third, expected in ((indices, None), (local, local)):
        path = release.pickle("nn_a.pkl", np.stack([similarities, indices, third]).astype(np.float32))
        np.testing.assert_array_equal(read_neighbours(path)[1], indices)
        import_neighbours(path, release.folder / "lists")
        lists = open_neighbours(release.folder / "lists")
        np.testing.assert_array_equal(lists.indices, indices)
        assert (lists.local is None) == (expected is None)
    np.testing.assert_array_equal(lists.local, local)
    import_neighbours(release.pickle("nn_a.pkl", np.stack([similarities, indices])), release.folder / "lists")
    assert open_neighbours(release.folder / "lists").local is None
