#!/usr/bin/env bash
# Many GPUs under SLURM: launch/slurm.sh ACTION [--dry-run], on a login node, in an environment with ames_jax's requirements
#   run      submits the job: one process a GPU; it requeues itself when it is preempted or its time is up
#   smoke    ten steps on every GPU; fails unless all end with the same parameters
#   logs     follows the log
#   delete   cancels the job
# --dry-run prints the commands and does nothing. Settings: launch/settings.env.
# shellcheck source=launch/common.sh
. "$(dirname "$0")/common.sh"

submit() {
  # SIGTERM comes two minutes before the end; a checkpoint takes seconds.
  run sbatch --job-name="$NAME" --partition="$PARTITION" --time="$TIME" --nodes="$NODES" \
    --ntasks-per-node="$GPUS_PER_NODE" --gpus-per-node="$GPUS_PER_NODE" --signal=TERM@120 --requeue --open-mode=append \
    --output="$NAME.log" --chdir="$root" "$launch/slurm_job.sh" "$@"
}

# shellcheck disable=SC2086 # TRAIN holds several arguments
case "$ACTION" in
  run) submit $TRAIN --workdir="$WORKDIR" ;;
  smoke) submit --config=configs/teacher_fp.py --config.optimizer.steps=10 --config.optimizer.warmup=0 \
    --config.validation.every=10 --workdir="$WORKDIR-smoke-$(date +%s)" ;;
  logs) run tail -n 100 -F "$root/$NAME.log" ;;
  delete) run scancel --name="$NAME" ;;
  *) usage ;;
esac
