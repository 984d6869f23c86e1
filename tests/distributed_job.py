"""One of two processes that are one program: distributed_job.py DATA DIRECTORY PORT PROCESS"""

import json
import os
import signal
import sys
from pathlib import Path

import jax
import numpy as np
import small_run

from ames_jax.report.retrieval_evaluation import evaluate
from ames_jax.runtime import processes
from ames_jax.runtime.command_line import load_config
from ames_jax.runtime.preemption import StoppedEarly

ROOT = Path(__file__).parents[1]
STEPS, STOP = 16, 3


def main():
    data, directory, port, process = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3], int(sys.argv[4])
    config = load_config(ROOT / "configs" / "evaluate.py")
    config.update(distributed=f"127.0.0.1:{port}", process=process, processes=2, start_timeout=60.0)
    processes.start(config)

    def validate(model):
        validate.calls += 1
        if validate.calls == 2 and process == 1:
            os.kill(os.getpid(), signal.SIGTERM)  # to one process: both must stop, at the same step
        return small_run.validate(model)

    validate.calls = 0
    small_run.train(data, directory / "whole", STEPS, validate_every=1000, checkpoint_every=1000)
    try:
        small_run.train(data, directory / "stopped", STEPS, validate, validate_every=STOP, checkpoint_every=1000)
    except StoppedEarly as stopped:
        print(stopped, flush=True)

    config.update(data_dir=str(data), dataset="test", model=str(directory / "whole" / "last"))
    config.update(query_descriptors=8, database_descriptors=4, rerank="5", lam="0.5", gamma="1")
    results = evaluate(config, directory / "evaluation")
    print("RESULT", json.dumps(results["rows"]), flush=True)

    skewed = processes.facts_of(config) | {"--config.data.batch": str(8 + process)}
    try:
        processes.check_agreement(skewed)
    except processes.UserError as error:
        print(error, flush=True)
    assert processes.join_shares(processes.own_share(5), 5).tolist() == [0, 1, 2, 3, 4]
    assert np.asarray(processes.as_lead(np.int32(process))) == 0
    processes.wait_for_all("end")
    assert jax.device_count() == 4


if __name__ == "__main__":
    main()
