#!/usr/bin/env bash
# What SLURM runs (submitted by launch/slurm.sh): one process per task, found by JAX itself; 75 means saved, go on later.
set -uo pipefail
srun --kill-on-bad-exit=1 python -m ames_jax.train "$@"
code=$?
if [ "$code" = 75 ]; then scontrol requeue "$SLURM_JOB_ID"; fi
exit "$code"
