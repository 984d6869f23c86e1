#!/usr/bin/env bash
# Many GPUs under SLURM: launch/slurm.sh ACTION [--dry-run], on a login node, in an environment with ames_jax's requirements
#   run      submits the job of $STAGE: one process per GPU; it requeues itself when it is preempted or its time is up
#   smoke    ten steps on every GPU; fails unless all end with the same parameters
#   status   of the job
#   logs     follows the log
#   stop     cancels the job: every process saves in SLURM's KillWait (30 s), and `run` goes on from there
# --dry-run prints the commands and does nothing. Settings: launch/settings.env.
# shellcheck source=launch/common.sh
. "$(dirname "$0")/common.sh"

submit() {
  # SIGTERM comes two minutes before the end; a checkpoint takes seconds.
  run sbatch --job-name="$NAME" --partition="$PARTITION" --time="$TIME" --nodes="$NODES" \
    --ntasks-per-node="$GPUS_PER_NODE" --gpus-per-node="$GPUS_PER_NODE" --signal=TERM@120 --requeue --open-mode=append \
    --output="$NAME.log" --chdir="$root" "$launch/slurm_job.sh" "$@"
}

case "$ACTION" in run | smoke) needs WORKDIR TRAIN ;; esac
# shellcheck disable=SC2086 # TRAIN and SMOKE hold several arguments
case "$ACTION" in
  run) submit $TRAIN --workdir="$WORKDIR" ;;
  smoke) submit $SMOKE --workdir="$SMOKE_FOLDER" ;;
  status) run squeue --name="$NAME" ;;
  logs) run tail -n 100 -F "$root/$NAME.log" ;;
  stop | delete) run scancel --name="$NAME" ;;
  *) usage ;;
esac
