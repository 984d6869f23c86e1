"""Trains with a work folder in a bucket of a local fake object store: bucket_job.py DATA"""

import http.server
import os
import signal
import socket
import sys
import traceback
import warnings
from pathlib import Path

with socket.socket() as probe:
    probe.bind(("127.0.0.1", 0))
    PORT = probe.getsockname()[1]
ADDRESS = f"http://127.0.0.1:{PORT}"
# gcsfs and TensorBoard's writer take the first, tensorstore the second; nobody shall look for a real account.
os.environ.update(
    STORAGE_EMULATOR_HOST=ADDRESS, TENSORSTORE_GCS_HTTP_URL=ADDRESS, FSSPEC_GS_TOKEN="anon", FSSPEC_GCS_TOKEN="anon",
    GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT="false",
    GCE_METADATA_ROOT="127.0.0.1:1", GCE_METADATA_IP="127.0.0.1:1", GCE_METADATA_TIMEOUT="1", NO_GCE_CHECK="true",
    GOOGLE_CLOUD_PROJECT="none",
)  # fmt: skip
warnings.simplefilter("ignore")

import grain  # noqa: E402, F401 (imports http.server's classes, so before they are changed)
import small_run  # noqa: E402
from gcp_storage_emulator.handlers import objects  # noqa: E402
from gcp_storage_emulator.server import create_server  # noqa: E402

from ames_jax.model.released import load_model  # noqa: E402
from ames_jax.model.weights import facts_of  # noqa: E402
from ames_jax.runtime.paths import path_of  # noqa: E402
from ames_jax.runtime.preemption import StoppedEarly  # noqa: E402
from ames_jax.training.log import read_history  # noqa: E402

STEPS = 6


def download(request, response, storage, *arguments, plain=objects.download, **options):
    """The emulator's download leaves out a header that tensorstore checks."""
    plain(request, response, storage, *arguments, **options)
    if response.status.value < 300:
        found = storage.get_file_obj(request.params["bucket_name"], request.params["object_id"])
        response["x-goog-generation"] = found["generation"]


def main():
    objects.download = download
    # One connection at a time is too few: each client keeps its own open.
    http.server.HTTPServer = http.server.ThreadingHTTPServer
    server = create_server("127.0.0.1", PORT, in_memory=True, default_bucket="bucket")
    server.start()
    data, directory = Path(sys.argv[1]), path_of("gs://bucket/run")

    def validate(model):
        validate.calls += 1
        if validate.calls == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        return small_run.validate(model)

    validate.calls = 0
    try:
        small_run.train(data, directory, STEPS, validate, validate_every=3, checkpoint_every=2)
    except StoppedEarly as stopped:
        print(stopped)
    print("checkpoints", sorted(path.name for path in (directory / "checkpoints").iterdir()))
    small_run.train(data, directory, STEPS, validate_every=3, checkpoint_every=2)
    assert [line["step"] for line in read_history(directory) if "loss" in line] == list(range(1, STEPS + 1))
    assert facts_of(directory / "last")["finished"]
    assert load_model("gs://bucket/run").config == small_run.CONFIG
    assert list((directory / "tensorboard").iterdir())
    print("all there", flush=True)


if __name__ == "__main__":
    code = 1
    try:
        main()
        code = 0
    except BaseException:
        traceback.print_exc()
    os._exit(code)  # clients with open connections would hold the server up
