#!/usr/bin/env bash
# Plain hosts with SSH and a shared folder for WORKDIR: launch/ssh.sh ACTION [--dry-run]
#   setup    code, virtual environment and requirements on every host (JAX_EXTRA=cuda13 for GPUs)
#   smoke    ten steps on every host; fails unless all end with the same parameters
#   run      starts the training in the background on every host
#   logs     follows the log of process 0
#   stop     sends SIGTERM: every process saves and exits with 75; `run` goes on
# --dry-run prints the commands and does nothing. Settings: launch/settings.env.
# shellcheck source=launch/common.sh
. "$(dirname "$0")/common.sh"

read -r -a machines <<<"$HOSTS"
JAX="jax${JAX_EXTRA:+[$JAX_EXTRA]}"

setup() {
  for host in "${machines[@]}"; do
    run rsync -a --delete --exclude=.git --exclude=runs --exclude=venv "$root/" "$host:$REMOTE/"
    run ssh "$host" "cd $REMOTE && python3 -m venv venv && venv/bin/pip install --quiet '$JAX' -r requirements.txt"
  done
}

process() { # the flags of process $1
  echo "--config.distributed=${machines[0]}:$PORT --config.process=$1 --config.processes=${#machines[@]}"
}

start() {
  for i in "${!machines[@]}"; do
    run ssh "${machines[$i]}" "cd $REMOTE; setsid nohup venv/bin/python -m ames_jax.train $TRAIN --workdir=$WORKDIR \
$(process "$i") > $NAME.log 2>&1 < /dev/null & echo \$! > $NAME.pid"
  done
}

smoke() {
  local folder pids=()
  folder="$WORKDIR-smoke-$(date +%s)"
  for i in "${!machines[@]}"; do
    run ssh "${machines[$i]}" "cd $REMOTE && venv/bin/python -m ames_jax.train --config=configs/teacher_fp.py \
--config.optimizer.steps=10 --config.optimizer.warmup=0 --config.validation.every=10 --workdir=$folder $(process "$i")" &
    pids+=($!)
  done
  for pid in "${pids[@]}"; do wait "$pid"; done
  if [ -z "$DRY_RUN" ]; then echo "every host has run ten steps to the same parameters"; fi
}

case "$ACTION" in
  setup | smoke) "$ACTION" ;;
  run) start ;;
  logs) run ssh "${machines[0]}" "tail -n 100 -F $REMOTE/$NAME.log" ;;
  stop) for host in "${machines[@]}"; do run ssh "$host" "kill -TERM \$(cat $REMOTE/$NAME.pid)"; done ;;
  *) usage ;;
esac
