from contextlib import nullcontext
from pathlib import Path

import pytest

from ames_jax import search
from ames_jax.runtime.command_line import find_config, parse, refuse_missing
from ames_jax.runtime.errors import UserError

CONFIGS = Path(__file__).parents[2] / "configs"
STUDENT = str(CONFIGS / "student_bin.py")


def test_defaults_overrides_and_workdir():
    command = parse("about", STUDENT, ["--config.optimizer.steps=7", "--config.data.lengths=5,9", "--workdir=/tmp/x"])
    assert command.config.optimizer.steps == 7
    assert command.config.data.lengths == (5, 9)
    assert command.workdir == Path("/tmp/x")
    assert parse("about", STUDENT, []).workdir == Path("runs/student_bin")


def test_variants():
    command = parse("about", STUDENT, [f"--config={STUDENT}:gldv2"])
    assert command.workdir == Path("runs/student_bin-gldv2")
    assert command.config.data.batch == 100
    assert command.config.train_teacher.data.lengths == (10, 400)
    with pytest.raises(UserError, match="did you mean gldv2"):
        parse("about", STUDENT, [f"--config={STUDENT}:gldv1"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--config.optimizer.step=7"], "no key 'optimizer.step'; did you mean --config.optimizer.steps"),
        (["--config.learning_rate=7"], r"did you mean --config.optimizer.learning_rate"),
        (["--config.optimizer.steps=many"], "optimizer.steps"),
        (["--config.data.buckets="], r"--config.data.buckets=.*: expected numbers with commas between them"),
        (["--wrokdir=x"], "unknown flag --wrokdir; did you mean --workdir"),
        (["--config=nowhere.py"], "nowhere.py: no such file"),
        (["stray"], "unexpected argument 'stray'"),
    ],
)
def test_mistakes_are_one_clear_line(arguments, message):
    with pytest.raises(UserError, match=message) as error:
        parse("about", STUDENT, arguments)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("value", "refused"), [("no/where", True), ("sift", False), ("a/b,c", False), ("gs://b/c", False)]
)
def test_a_path_at_which_nothing_is_is_told_at_once(value, refused):
    config = parse("about", STUDENT, [f"--config.teacher={value}"]).config
    with pytest.raises(UserError, match=r"--config.teacher=no/where: no such") if refused else nullcontext():
        refuse_missing(config, ("data_dir", "teacher"))


def test_help_lists_every_key(capsys):
    with pytest.raises(SystemExit) as stop:
        parse("What it does.", STUDENT, ["--help"])
    assert stop.value.code == 0
    shown = capsys.readouterr().out
    assert "What it does." in shown
    assert "optimizer.learning_rate = 0.0005  # peak of AdamW" in shown
    assert "train_teacher.optimizer.learning_rate = 0.001  # peak of AdamW" in shown
    assert "distillation = 10.0  # β" in shown


@pytest.mark.parametrize("name", ["student_bin", "student_bin.py", "configs/student_bin.py"])
def test_our_configs_are_found_from_any_folder(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    command = parse("about", "evaluate", [f"--config={name}:gldv2"])
    assert command.config.data.batch == 100
    assert command.workdir == Path("runs/student_bin-gldv2")
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "student_bin.py").write_text("def get_config(): pass")
    assert find_config("configs/student_bin.py") == Path("configs/student_bin.py")


def test_a_drive_is_no_variant(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"--config=C:\\mine\.py: no such file"):
        parse("about", "evaluate", [r"--config=C:\mine.py"])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "no get_config"),
        ("def get_config(): pass", "no variants"),
        ("def (", "line 1: "),
        ("raise ValueError(3)", r"cannot be run \(ValueError: 3\)"),
        ("def get_config(_=0): return 3", "returns int, expected"),
    ],
)
def test_a_config_file_that_is_none_is_one_line(text, message, tmp_path):
    (tmp_path / "mine.py").write_text(text)
    with pytest.raises(UserError, match=message):
        parse("about", "evaluate", [f"--config={tmp_path / 'mine.py'}:small"])


@pytest.mark.parametrize("name", [*sorted(path.stem for path in CONFIGS.glob("*.py")), "student_bin:gldv2"])
def test_help_explains_every_key_of_every_config(name, capsys):
    with pytest.raises(SystemExit):
        parse("about", name, ["--help"])
    keys = capsys.readouterr().out.partition("--config.KEY=VALUE):\n")[2].splitlines()
    assert keys
    assert not [line for line in keys if "  # " not in line]


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("--index=gs://bucket/x", r"--index.*expected a path on disk, found gs:/bucket/x"),
        ("--index=", r"--index= is empty: give a value"),
    ],
)
def test_a_path_elsewhere_or_an_empty_one_is_told(argument, message):
    with pytest.raises(UserError, match=message):
        search.main(["compact", argument])


def test_a_terminal_of_no_width_gets_its_help(monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "0")
    assert search.main(["verify", "--help"]) == 0
    assert "--index" in capsys.readouterr().out
