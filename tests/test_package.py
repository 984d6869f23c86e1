"""The package as it is installed: the wheel, the console script, and machines without Unix or without Grain."""

from __future__ import annotations

import ast
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import ames_jax
from ames_jax.__main__ import COMMANDS

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "ames_jax"
UNIX_ONLY = {"fcntl", "resource", "pwd", "grp", "termios", "pty", "tty"}
NOT_ON_WINDOWS = {"grain", "array_record", "tensorflow_datasets"}


def python(*arguments: str, folder: Path, package: Path = ROOT) -> subprocess.CompletedProcess:
    environment = {**os.environ, "PYTHONPATH": str(package), "XLA_FLAGS": os.environ["ONE_DEVICE_XLA_FLAGS"]}
    return subprocess.run(
        [sys.executable, *arguments], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )


@pytest.fixture(scope="module")
def installed(tmp_path_factory) -> Path:
    """What the wheel holds, in a folder of its own."""
    pytest.importorskip("setuptools")
    source, built, place = (tmp_path_factory.mktemp(name) for name in ("source", "built", "installed"))
    for folder in ("ames_jax", "configs"):
        shutil.copytree(ROOT / folder, source / folder, ignore=shutil.ignore_patterns("__pycache__"))
    for file in ("pyproject.toml", "README.md", "LICENSE", "requirements.txt"):
        shutil.copy(ROOT / file, source)
    done = python("-c", f"from setuptools import build_meta; build_meta.build_wheel({str(built)!r})", folder=source)
    assert done.returncode == 0, done.stderr
    (wheel,) = built.glob(f"ames_jax-{ames_jax.__version__}-*.whl")
    zipfile.ZipFile(wheel).extractall(place)
    return place


def test_the_wheel_holds_every_file(installed):
    kept = {path.relative_to(installed).as_posix() for path in installed.rglob("*") if path.is_file()}
    ours = [path for path in PACKAGE.rglob("*") if path.is_file() and "__pycache__" not in path.parts]
    expected = {path.relative_to(ROOT).as_posix() for path in ours}
    expected |= {f"ames_jax/configs/{path.name}" for path in (ROOT / "configs").glob("*.py")}
    assert not expected - kept


def test_configs_are_found_where_only_the_wheel_is(installed, tmp_path):
    done = python("-m", "ames_jax.train", "--config=student_bin", "--help", folder=tmp_path, package=installed)
    assert "train_teacher.optimizer.steps = 600" in done.stdout, done.stderr
    places = "import ames_jax.runtime.command_line as c; print(c.__file__, c.find_config('configs/sift.py'))"
    done = python("-c", places, folder=tmp_path, package=installed)
    assert done.stdout.count(str(installed)) == 2, done.stderr


def test_the_package_lists_its_commands(installed, tmp_path):
    scripts = next(installed.glob("*.dist-info")) / "entry_points.txt"
    assert "ames-jax = ames_jax.__main__:console" in scripts.read_text()
    shown = python("-m", "ames_jax", folder=tmp_path, package=installed).stdout
    assert all(f"  {name} " in shown for name in COMMANDS)
    assert ames_jax.__version__ in shown
    done = python("-m", "ames_jax", "convert", "--from=x.pt", "--to=y", folder=tmp_path, package=installed)
    assert (done.returncode, done.stderr) == (2, "error: --from=x.pt: no such file\n")
    done = python("-m", "ames_jax", "trian", folder=tmp_path, package=installed)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "did you mean train" in done.stderr


def test_no_module_needs_unix_to_be_imported():
    for path in PACKAGE.rglob("*.py"):
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module] if isinstance(node, ast.ImportFrom) else []
            assert not UNIX_ONLY & set(names), path


HELP = """
import importlib, sys
for door in sys.argv[1].split(","):
    try:
        importlib.import_module(f"ames_jax.{door}").main(["--help"])
    except SystemExit as end:
        assert not end.code, door
    print("helped with", door)
heavy = "jax flax torch faiss cv2 matplotlib scipy tensorboardX orbax grain PIL".split()
assert not sys.modules.keys() & set(heavy), sys.modules.keys() & set(heavy)
"""


def test_help_imports_nothing_heavy(tmp_path):
    done = python("-c", HELP, ",".join(COMMANDS), folder=tmp_path)
    assert (done.returncode, done.stdout.count("helped with")) == (0, len(COMMANDS)), done.stderr


WITHOUT = """
import sys
import numpy, jax, flax.nnx, faiss, orbax.checkpoint, h5py, scipy.optimize, filelock, etils.epath  # each as on its system
for name in sys.argv[1].split(","):
    sys.modules[name] = None
import ames_jax
from ames_jax import AMES, AMESConfig, DescriptorSet, Scorer, Searcher, load_model, score_shortlist
from ames_jax.model.weights import save_model
rng = numpy.random.default_rng(0)
save_model(AMES(AMESConfig(descriptor_width=16, bits=16, model_width=16, layers=1, feed_forward=16), flax.nnx.Rngs(0)), "model")
model = load_model("model")
query = DescriptorSet(rng.standard_normal((6, 16), numpy.float32))
images = DescriptorSet(rng.standard_normal((3, 5, 16), numpy.float32))
print(score_shortlist(model, query, images).shape)
import ames_jax.evaluate, ames_jax.search, ames_jax.extract, ames_jax.report.retrieval_evaluation
from ames_jax.training.pipeline import TripletPipeline
try:
    next(TripletPipeline.batches(None))
except Exception as error:
    print(error)
"""


@pytest.mark.parametrize("blocked", [UNIX_ONLY, NOT_ON_WINDOWS], ids=["unix", "grain"])
def test_scoring_needs_neither_unix_nor_grain(blocked, tmp_path):
    done = python("-c", WITHOUT, ",".join(sorted(blocked)), folder=tmp_path)
    scores, training = done.stdout.splitlines() or (done.stderr, "")
    assert scores == "(3,)"
    assert training.endswith("pip install grain") == ("grain" in blocked)
