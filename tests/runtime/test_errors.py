"""What the user can mend ends in one line and an exit code; a bug in its traceback."""

import errno
import io
import os
import re
import subprocess
import sys
from concurrent.futures.process import BrokenProcessPool

import pytest

from ames_jax.runtime import cache
from ames_jax.runtime.errors import UserError, run_main


def raising(error):
    def main():
        raise error

    return main


@pytest.mark.parametrize(
    ("error", "code", "text"),
    [
        (UserError("x.json: wrong"), 2, "error: x.json: wrong\n"),
        (UserError("a\nb\x1b[31m\u2028.jpg: öde"), 2, "error: a\\nb\\x1b[31m\\u2028.jpg: öde\n"),
        (ImportError("Install s3fs to access S3"), 2, "error: Install s3fs to access S3: or give"),
        (KeyboardInterrupt(), 130, "stopped by Ctrl-C"),
        (OSError(errno.ENOSPC, "No space left on device", "out.npy"), 2, "error: out.npy: No space left on device\n"),
        (OSError(errno.ENAMETOOLONG, "File name too long", "x" * 300), 2, "error: xxx"),
        (ConnectionRefusedError(111, "Connection refused"), 2, "error: the network: "),
        (MemoryError("Unable to allocate 9 GiB"), 2, "error: out of memory (Unable to allocate 9 GiB)"),
        (RuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating"), 2, "error: out of memory"),
        (RuntimeError("can't start new thread"), 2, "error: out of memory"),
        (
            RuntimeError("Worker process was terminated unexpectedly with exit code -9. Search the logs"),
            2,
            "error: a working",
        ),
        (OSError(12, "Cannot allocate memory"), 2, "error: out of memory"),
        (ImportError("libjax_common.so: failed to map segment from shared object"), 2, "error: out of memory"),
        (BrokenProcessPool("A process in the process pool was terminated"), 2, "error: a working process ended"),
        (RuntimeError("Unable to initialize backend 'foo': none"), 2, "error: JAX_PLATFORMS="),
        (RuntimeError("Unknown backend foo"), 2, "error: JAX_PLATFORMS="),
    ],
)
def test_one_line_and_a_code(capsys, error, code, text):
    with pytest.raises(SystemExit) as caught:
        run_main(raising(error))
    assert caught.value.code == code
    told = capsys.readouterr().err
    assert told.startswith(text)
    assert told.count("\n") == 1


def test_a_platform_without_devices_is_one_line(capsys):
    """JAX 0.10 asserts without a word, and takes its own frames away."""
    error = AssertionError()
    error.add_note("--------------------\nFor simplicity, JAX has removed its internal frames from the traceback.")
    with pytest.raises(SystemExit) as caught:
        run_main(raising(error))
    assert caught.value.code == 2
    assert re.fullmatch(r"error: JAX_PLATFORMS=.*: JAX finds no such device here: set .*\n", capsys.readouterr().err)


def test_a_bug_keeps_its_traceback():
    with pytest.raises(KeyError):
        run_main(raising(KeyError("x")))


def test_a_terminal_without_our_signs_shows_others(monkeypatch):
    stream = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", stream)
    with pytest.raises(SystemExit):
        run_main(lambda: print("a → b – c"))
    stream.flush()
    assert stream.buffer.getvalue() == b"a ? b ? c\n"


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_closed_streams_are_no_error(tmp_path, closed):
    code = "import os; from ames_jax.runtime.errors import run_main; "
    code += f"run_main(lambda: print('x') or open({str(tmp_path / 'f')!r}, 'w').fileno() < 3)"
    assert (
        subprocess.run(
            ["sh", "-c", f'exec "$0" -c "$1" {closed}', sys.executable, code], capture_output=True
        ).returncode
        == 0
    )


def test_a_reader_that_has_seen_enough_is_no_error():
    code = "from ames_jax.runtime.errors import run_main; run_main(lambda: print('x\\n' * 10**6))"
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        process.stdout.readline()
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait(60) == 141


def test_a_library_that_ends_on_a_closed_pipe_is_no_error():
    """As rich does, which prints the help."""
    code = "from ames_jax.runtime.errors import run_main\ndef main():\n try: raise BrokenPipeError\n"
    code += " except BrokenPipeError: raise SystemExit(1)\nrun_main(main)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True)
    assert (done.returncode, done.stdout + done.stderr) == (141, b"")


def test_a_home_that_is_a_file_is_named(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("AMES_JAX_HOME", str(tmp_path / "file"))
    with pytest.raises(UserError, match=r"AMES_JAX_HOME=.* is a file"):
        cache.home()


def test_a_folder_below_a_file_is_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    code = "from ames_jax.runtime.errors import run_main; from ames_jax.runtime.files import write_json; "
    code += f"from pathlib import Path; run_main(lambda: write_json(Path({str(tmp_path)!r}) / 'file' / 'x.json', {{}}))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (2, f"error: {tmp_path / 'file'}: File exists\n")


def test_help_without_docstrings():
    code = "from ames_jax.evaluate import main; main(['--help'])"
    environment = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run([sys.executable, "-OO", "-c", code], env=environment, capture_output=True, text=True)
    assert done.returncode == 0
    assert "--workdir" in done.stdout
