"""Changing an index: ids keep their pictures whatever happens, and no kill is seen by readers."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import photo_folder
import pytest
import stub_index
from flax import nnx
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ames_jax import search
from ames_jax.extraction.listing import list_images
from ames_jax.index import changes, collection, photos
from ames_jax.index.building import build_index
from ames_jax.index.changes import changing, compact, remove_images
from ames_jax.index.collection import SearchIndex
from ames_jax.index.model_choice import ChosenModel
from ames_jax.index.photos import sync_photos
from ames_jax.index.searcher import Searcher
from ames_jax.model.ames import AMES, AMESConfig
from ames_jax.model.packing import BitPacker
from ames_jax.runtime.errors import UserError

pytest.importorskip("faiss")
pytestmark = pytest.mark.usefixtures("one_device")
TESTS = Path(__file__).parents[1]
NAMES = ["a.jpg", "b.jpg", "deep/ü c.jpg", "d,1.jpg"]
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("write"), st.sampled_from(NAMES), st.integers(0, 5)),
        st.tuples(st.just("delete"), st.sampled_from(NAMES)),
        st.tuples(st.just("move"), st.sampled_from(NAMES), st.sampled_from(NAMES)),
        st.tuples(st.just("touch"), st.sampled_from(NAMES)),
        st.tuples(st.just("remove"), st.sampled_from(NAMES)),
        st.tuples(st.sampled_from(["sync", "sync", "compact"])),
    ),
    min_size=3,
    max_size=9,
)


@pytest.fixture
def stub(tmp_path, monkeypatch):
    """An index of stub images (always one, keep.jpg) whose extraction reads a number from a file."""
    model = AMES(
        AMESConfig(descriptor_width=stub_index.WIDTH, bits=stub_index.BITS, model_width=16, layers=1, feed_forward=16),
        nnx.Rngs(0),
    )
    packer = BitPacker(model)
    monkeypatch.setattr(collection, "read_model", lambda _: model)
    monkeypatch.setattr(changes, "BitPacker", lambda _: packer)
    monkeypatch.setattr(SearchIndex, "open_backbone", lambda _: None)

    def extracted(path, images, stamps, *_):
        numbers = {file.id: int(file.path.read_text()) for file in images.files}
        return stub_index.StubDescriptors.of(numbers, images.root, stamps), {}

    monkeypatch.setattr(photos, "_extracted", extracted)
    chosen = ChosenModel(model, "stub", {}, 0.5, 0.1)

    def make(root: Path) -> Path:
        (root / "photos").mkdir(parents=True)
        (root / "photos" / "keep.jpg").write_text("9")
        build_index(root / "index", stub_index.StubDescriptors.of({"keep.jpg": 9}, root / "photos"), chosen, budget=6)
        return root

    make.packer = packer
    return make


def step(root: Path, action: str, *names) -> None:
    """One change of the folder or the index."""
    files = [root / "photos" / name for name in names if isinstance(name, str)]
    if action == "write":
        files[0].parent.mkdir(exist_ok=True)
        files[0].write_text(str(names[1]))
    elif action == "move" and files[0].exists():
        files[1].parent.mkdir(exist_ok=True)
        files[0].replace(files[1])
    elif action == "delete":
        files[0].unlink(missing_ok=True)
    elif action == "touch" and files[0].exists():
        os.utime(files[0])
    elif action == "remove" and names[0] in SearchIndex.open(root / "index").ids:
        remove_images(root / "index", names)
    elif action == "compact":
        compact(root / "index")
    elif action == "sync":
        sync_photos(root / "index", list_images(root / "photos"))


def check(index: SearchIndex, expected: dict[str, int], packer: BitPacker) -> None:
    """Every id has the bits, the vector and the picture of what it shows."""
    assert sorted(index.ids) == sorted(expected)
    images = stub_index.StubDescriptors.of(dict.fromkeys(index.ids, 0) | {n: expected[n] for n in index.ids}, Path())
    rows = np.arange(len(index))
    bits = packer.pack(images.reader().read(rows, stub_index.COUNT)).features
    np.testing.assert_array_equal(index.read(rows).features, bits)
    np.testing.assert_allclose(index.global_index[rows], images.global_descriptors)
    similarities, found = index.global_index.search(images.global_descriptors, len(index))
    assert all(sorted(row) == rows.tolist() for row in found.tolist())
    np.testing.assert_allclose(similarities[:, 0], 1, atol=1e-5)


def contents(folder: Path) -> dict[str, bytes]:
    """All files of a folder."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_compaction_that_a_kill_prevented_is_done_by_the_next_command(stub, tmp_path, monkeypatch):
    index, unbroken = stub(tmp_path) / "index", tmp_path / "unbroken"
    for name in ("a.jpg", "b.jpg"):
        step(tmp_path, "write", name, 1)
        step(tmp_path, "sync")
    shutil.copytree(index, unbroken)
    remove_images(unbroken, ["a.jpg"])
    with monkeypatch.context() as killed:
        killed.setattr(changes, "_first_to_compact", lambda _: None)
        remove_images(index, ["a.jpg"])
    assert contents(index) != contents(unbroken)
    with pytest.raises(UserError, match=r"a\.jpg"):
        remove_images(index, ["a.jpg"])
    assert contents(index) == contents(unbroken)
    compact(index)  # of one part that is whole
    assert contents(index) == contents(unbroken)


@settings(max_examples=12, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps=STEPS)
def test_ids_keep_their_pictures(stub, tmp_path_factory, steps):
    """Any order of changes to a folder and its index: after a sync the index is the folder."""
    root = stub(tmp_path_factory.mktemp("property"))
    reader, held = SearchIndex.open(root / "index"), None
    for action, *names in [*steps, ("sync",)]:
        step(root, action, *names)
        if action == "sync":
            folder = {f.relative_to(root / "photos").as_posix(): f for f in (root / "photos").rglob("*.jpg")}
            expected = {name: int(path.read_text()) for name, path in folder.items()}
            index = SearchIndex.open(root / "index")
            check(index, expected, stub.packer)
            assert all(index.picture(row) == folder[name] for row, name in enumerate(index.ids))
            index.verify()
            if held is not None:  # whoever has an old version open still reads that one
                check(reader, held, stub.packer)
            reader, held = index, expected


def test_a_sync_says_what_it_did(stub, tmp_path):
    root = stub(tmp_path)
    for action, *names in [("write", "a.jpg", 1), ("write", "b.jpg", 2), ("write", "d,1.jpg", 3), ("sync",)]:
        step(root, action, *names)
    for action, *names in [
        ("move", "a.jpg", "deep/ü c.jpg"),
        ("write", "b.jpg", 4),
        ("touch", "keep.jpg"),
        ("delete", "d,1.jpg"),
    ]:
        step(root, action, *names)
    (root / "photos" / "copy.jpg").write_text("9")
    report = sync_photos(root / "index", list_images(root / "photos"))
    assert str(report) == "1 new, 1 changed, 1 moved, 1 removed, 1 unchanged"
    assert (
        str(sync_photos(root / "index", list_images(root / "photos")))
        == "0 new, 0 changed, 0 moved, 0 removed, 4 unchanged"
    )
    moved = root / "photos"
    moved.rename(root / "elsewhere")
    report = sync_photos(root / "index", list_images(root / "elsewhere"))
    assert (report.moved + report.unchanged, report.new) == (4, 0)
    assert SearchIndex.open(root / "index").picture(0).is_file()


def test_an_index_is_brought_up_to_date_from_inside_of_it(stub, tmp_path, monkeypatch):
    root = stub(tmp_path)
    monkeypatch.chdir(root / "index")
    assert sync_photos(".", list_images(root / "photos")).broken == {}
    assert [path.name for path in root.glob(".*.extraction")] == []


def test_uploads_stay(stub, tmp_path):
    """Pictures that lie in the index itself are not those of a folder."""
    root = stub(tmp_path)
    uploads = root / "index" / "uploads"
    uploads.mkdir()
    (uploads / "u.jpg").write_text("3")
    with changing(root / "index") as index:
        changes.change(index, [stub_index.StubDescriptors.of({"u.jpg": 3}, uploads).images()])
    for _ in range(2):
        sync_photos(root / "index", list_images(root / "photos"))
        check(SearchIndex.open(root / "index"), {"keep.jpg": 9, "u.jpg": 3}, stub.packer)
    (root / "photos" / "u.jpg").write_text("4")
    with pytest.raises(UserError, match=r"'u.jpg' is in the index already, as another picture"):
        sync_photos(root / "index", list_images(root / "photos"))


def test_many_small_additions_are_joined(stub, tmp_path):
    root = stub(tmp_path)
    for number in range(20):
        with changing(root / "index") as index:
            images = stub_index.StubDescriptors.of({f"{number}.jpg": number}, root / f"folder{number % 2}")
            changes.change(index, [images.images()])
    index = SearchIndex.open(root / "index")
    assert len(index.facts["parts"]) <= changes.MOST_PARTS
    check(index, {"keep.jpg": 9, **{f"{number}.jpg": number for number in range(20)}}, stub.packer)
    assert index.picture(6) == root / "folder1" / "5.jpg"
    assert index.row_of_picture(root / "folder1" / "5.jpg") == 6
    assert index.row_of_picture(root / "folder0" / "5.jpg") is None


def test_space_of_removed_images_is_given_back(stub, tmp_path):
    root = stub(tmp_path)
    with changing(root / "index") as index:
        changes.change(index, [stub_index.StubDescriptors.of({str(n): n for n in range(7)}, root).images()])
    remove_images(root / "index", ["3", "5"])
    assert sum(part["images"] for part in SearchIndex.open(root / "index").facts["parts"]) == 8
    remove_images(root / "index", ["0"])  # above a quarter
    facts = SearchIndex.open(root / "index").facts
    assert ([part["images"] for part in facts["parts"]], facts["removed"]) == ([5], None)
    with pytest.raises(UserError, match=r"holds no image '3' \(1 of 2 ids are unknown\)"):
        remove_images(root / "index", ["3", "1"])
    remove_images(root / "index", ["keep.jpg", "1", "2", "4", "6"])  # the last one
    empty = SearchIndex.open(root / "index")
    assert (len(empty), empty.ids) == (0, [])
    assert len(empty.global_index.search(np.ones((1, stub_index.GLOBAL_WIDTH)), 5)[0][0]) == 0


def test_kills_at_every_write(tmp_path):
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(TESTS.parent), str(TESTS)])}
    command = [sys.executable, TESTS / "kill_changes.py", tmp_path]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    points = json.loads(done.stdout)
    assert all(points.values()), points
    assert sum(points.values()) >= 60, points


def test_pictures_to_an_index_and_back(made, tmp_path, capsys):
    """The commands, on real pictures: a killed build goes on, and a synced index finds what one built anew finds."""
    pictures = photo_folder.write_pictures(tmp_path / "pictures", range(2))
    flags = [f"--model={made / 'model'}", f"--statistics={made / 'statistics.npz'}", "--budget=80B"]
    index = ["index", f"--images={pictures}", f"--out={tmp_path / 'index'}", *flags]
    (pictures / "broken.jpg").write_text("no picture")
    with pytest.raises(UserError, match=r"broken.jpg: cannot be read as an image.*--skip-broken"):
        search.main(index)
    assert (tmp_path / ".index.extraction").is_dir()
    assert search.main([*index, "--skip-broken"]) == 0
    assert "left out broken.jpg" in capsys.readouterr().out
    assert sorted(path.name for path in tmp_path.iterdir()) == ["index", "pictures"]
    (pictures / "broken.jpg").unlink()
    photo_folder.write_pictures(pictures, range(2, 3))
    (pictures / "scene0" / "0.jpg").rename(pictures / "scene0" / "moved.jpg")
    (pictures / "scene1" / "1.jpg").write_bytes((made / "asked" / "scene1" / "5.jpg").read_bytes())
    (pictures / "scene2" / "0.jpg").unlink()
    sync = ["sync", f"--index={tmp_path / 'index'}", f"--images={pictures}"]
    assert search.main(sync) == 0
    assert "4 new, 1 changed, 1 moved, 1 removed, 5 unchanged" in capsys.readouterr().out
    (pictures / "bad.jpg").write_text("no picture")
    assert search.main([*sync, "--skip-broken"]) == 0
    assert "left out bad.jpg" in capsys.readouterr().out
    (pictures / "bad.jpg").unlink()
    assert search.main(["index", f"--images={pictures}", f"--out={tmp_path / 'anew'}", *flags]) == 0
    query = made / "asked" / "scene0" / "5.jpg"
    synced, anew = (Searcher(tmp_path / name, query_descriptors=30).search(query, 20) for name in ("index", "anew"))
    assert [hit.id for hit in synced.hits] == [hit.id for hit in anew.hits]
    assert len(synced.hits) == 11
    capsys.readouterr()
    assert search.main(["duplicates", f"--index={tmp_path / 'index'}"]) == 0
    assert search.main(["remove", f"--index={tmp_path / 'index'}", "--ids=scene0/moved.jpg,scene3/1.jpg"]) == 0
    assert search.main(["compact", f"--index={tmp_path / 'index'}"]) == 0
    assert search.main(["verify", f"--index={tmp_path / 'index'}"]) == 0
    assert "2 images removed, 9 left" in capsys.readouterr().out


def test_near_duplicates(made, tmp_path, capsys):
    """The same picture in another quality and size, and none else."""
    import cv2

    pictures = photo_folder.write_pictures(tmp_path / "pictures", range(1))
    picture = cv2.imread(str(pictures / "scene2" / "0.jpg"))
    cv2.imwrite(str(pictures / "again.jpg"), picture, [cv2.IMWRITE_JPEG_QUALITY, 80])
    flags = [f"--model={made / 'model'}", f"--statistics={made / 'statistics.npz'}", "--budget=160B"]
    assert search.main(["index", f"--images={pictures}", f"--out={tmp_path / 'index'}", *flags]) == 0
    capsys.readouterr()
    assert search.main(["duplicates", f"--index={tmp_path / 'index'}", f"--json={tmp_path / 'groups.json'}"]) == 0
    assert json.loads((tmp_path / "groups.json").read_text()) == {"groups": [["again.jpg", "scene2/0.jpg"]]}
    assert capsys.readouterr().out == "again.jpg\nscene2/0.jpg\n"


def test_no_work_that_the_disk_does_not_hold(made, tmp_path, monkeypatch):
    pictures = photo_folder.write_pictures(tmp_path / "pictures", range(1))
    monkeypatch.setattr(photos.shutil, "disk_usage", lambda _: SimpleNamespace(free=1000))
    flags = [f"--model={made / 'model'}", f"--statistics={made / 'statistics.npz'}"]
    with pytest.raises(UserError, match=r"index: 4 pictures take .* GB free; make room"):
        search.main(["index", f"--images={pictures}", f"--out={tmp_path / 'index'}", *flags])
