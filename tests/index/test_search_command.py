"""`python -m ames_jax.search query` and `explain`: what they print, write and draw."""

from __future__ import annotations

import base64
import json
import re
import subprocess
import sys

import cv2
import numpy as np
import pytest
from matplotlib.image import imread

from ames_jax import search
from ames_jax.index import collection
from ames_jax.runtime.errors import UserError

pytestmark = pytest.mark.usefixtures("one_device")


@pytest.fixture
def query(made):
    """The command line of a query of scene 1."""
    image = made / "asked" / "scene1" / "5.jpg"
    return ["query", f"--index={made / 'index'}", f"--image={image}", "--shortlist=8", "--query-descriptors=30"]


def test_query_prints_and_draws(made, query, tmp_path, capsys):
    pictures = [tmp_path / "found.html", tmp_path / "found.png"]
    flags = ["--top=3", "--columns=4", "--labels=folder", "--timing", f"--json={tmp_path / 'found.json'}"]
    assert search.main([*query, *flags, *(f"--gallery={path}" for path in pictures)]) == 0
    printed = capsys.readouterr().out
    assert len(re.findall(r"^ +[123] .*scene\d/\d.jpg$", printed, re.MULTILINE)) == 3
    assert re.search(r"ms per query: extract [\d.]+, global [\d.]+, gather [\d.]+, score [\d.]+, rank [\d.]+ ", printed)
    found = json.loads((tmp_path / "found.json").read_text())["queries"]
    assert [hit["place"] for hit in found[0]["hits"]] == [1, 2, 3]
    assert found[0]["hits"][0]["picture"] == str(made / "pictures" / found[0]["hits"][0]["id"])
    page = pictures[0].read_text()
    images = re.findall(r'src="data:image/webp;base64,([^"]+)"', page)
    assert len(images) == 1 + 2 * 4
    assert cv2.imdecode(np.frombuffer(base64.b64decode(images[0]), np.uint8), cv2.IMREAD_COLOR).shape == (160, 200, 3)
    assert not re.search(r"https?://|<script|src=\"(?!data:)", page)
    assert page.count('class="right"') + page.count('class="wrong"') == 8
    assert page.index("Re-ranked") < page.index("Global ranking")
    assert imread(pictures[1]).std() > 0.01


def test_broken_queries_are_left_out(made, query, tmp_path, capsys):
    (tmp_path / "broken.jpg").write_text("text")
    command = [*query, f"--image={tmp_path / 'broken.jpg'}", "--top=2"]
    with pytest.raises(UserError, match=r"broken\.jpg: cannot be read as an image"):
        search.main(command)
    assert search.main([*command, "--skip-broken"]) == 0
    told = capsys.readouterr()
    assert told.out.startswith(str(made / "asked" / "scene1" / "5.jpg"))
    assert "broken.jpg: cannot be read as an image" in told.err
    with pytest.raises(UserError, match="none of the queries can be read"):
        search.main([*query[:2], f"--image={tmp_path / 'broken.jpg'}", "--skip-broken"])


def test_several_queries_as_json(made, query, capsys):
    assert search.main([*query[:2], *query[3:], f"--images={made / 'asked'}", "--top=2", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["queries"]
    assert [len(entry["hits"]) for entry in found] == [2] * 4


def test_explain_draws(made, tmp_path, query, capsys):
    picture = tmp_path / "why.png"
    assert search.main(["explain", *query[1:], "--id=scene1/0.jpg", f"--out={picture}"]) == 0
    assert re.search(r"score 0.\d+: \d+ correspondences, drawn in", capsys.readouterr().out)
    assert imread(picture).std() > 0.01


def test_explain_refuses_what_is_not_the_indexed_picture(made, query, tmp_path):
    (tmp_path / "scene1").mkdir()
    other = (made / "pictures" / "scene2" / "0.jpg").read_bytes()
    (tmp_path / "scene1" / "0.jpg").write_bytes(other)
    with pytest.raises(UserError, match=r"scene1/0.jpg: not the picture that was indexed"):
        search.main(["explain", *query[1:], "--id=scene1/0.jpg", f"--pictures={tmp_path}"])
    with pytest.raises(UserError, match=r"scene1/1.jpg: the picture is no longer there"):
        search.main(["explain", *query[1:], "--id=scene1/1.jpg", f"--pictures={tmp_path}"])


HELP = """
import sys
from ames_jax import search
for command in (["--help"], ["query", "--help"]):
    assert search.main(command) == 0
heavy = {"jax", "flax", "faiss", "cv2", "matplotlib", "PIL", "tensorflow_datasets"} & set(sys.modules)
assert not heavy, heavy
"""


def test_help_lists_everything_and_imports_little():
    done = subprocess.run([sys.executable, "-c", HELP], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    for word in ("index", "explain", "plan", "Find the images", "--shortlist", "--gallery", "[default: 20]"):
        assert word in done.stdout


def test_what_cannot_be_asked(made, query, tmp_path):
    with pytest.raises(UserError, match=r"--gallery=found.svg: expected a name that ends in"):
        search.main([*query, "--gallery=found.svg"])
    with pytest.raises(UserError, match="nothing to search for"):
        search.main([*query[:2]])
    (tmp_path / "broken.jpg").write_bytes(b"no picture")
    with pytest.raises(UserError, match=r"broken.jpg: cannot be read as an image"):
        search.main([*query[:2], *query[3:], f"--image={tmp_path / 'broken.jpg'}"])
    with pytest.raises(UserError, match="--add uses the model of the index"):
        search.main(["index", f"--descriptors={made / 'set'}", f"--out={made / 'index'}", "--add", "--model=m"])


@pytest.mark.parametrize(
    ("command", "flag"),
    [
        ("query --index=HERE --image=nowhere.jpg", "image=nowhere.jpg: no such image"),
        ("query --index=HERE --image=HERE --images=nowhere", "images=nowhere: no such folder or list"),
        ("query --index=HERE --image=HERE --labels=nowhere", "labels=nowhere: no such file or folder"),
        ("serve --index=nowhere", "index=nowhere: no such index; make one with"),
        ("explain --index=HERE --id=x --image=nowhere.jpg", "image=nowhere.jpg: no such image"),
        ("index --images=nowhere --out=new", "images=nowhere: no such folder or list"),
        ("index --images=HERE --out=new --backbone=sfit", "backbone=sfit: expected one of .*; did you mean sift"),
        ("sync --index=HERE --images=nowhere", "images=nowhere: no such folder or list"),
        ("remove --index=HERE --list=nowhere", "list=nowhere: no such file or folder"),
        ("speed --image=nowhere.jpg", "image=nowhere.jpg: no such image"),
        ("calibrate --index=nowhere", "index=nowhere: no such index"),
    ],
)
def test_paths_that_are_not_there_are_told_before_anything_is_opened(command, flag, tmp_path, monkeypatch):
    monkeypatch.setattr(search.cache, "start", lambda: None)
    monkeypatch.setattr(collection.SearchIndex, "open", None)
    with pytest.raises(UserError, match=f"^--{flag}"):
        search.main(command.replace("HERE", str(tmp_path)).split())
