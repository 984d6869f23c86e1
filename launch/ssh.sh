#!/usr/bin/env bash
# Plain hosts with SSH and a shared folder for RUNS: launch/ssh.sh ACTION [--dry-run]
#   setup    code, virtual environment and requirements on every host (JAX_EXTRA=cuda13 for GPUs)
#   smoke    ten steps on every host; fails unless all end with the same parameters
#   run      starts the training of $STAGE in the background on every host, unless one is running there
#   status   of the processes, with the last lines of their logs
#   logs     follows the log of process 0
#   stop     sends SIGTERM: every process saves and exits with 75; `run` goes on
# --dry-run prints the commands and does nothing. Settings: launch/settings.env.
# shellcheck source=launch/common.sh
. "$(dirname "$0")/common.sh"

read -r -a machines <<<"$HOSTS"
JAX="jax${JAX_EXTRA:+[$JAX_EXTRA]}"
alive="kill -0 \$(cat $NAME.pid 2> /dev/null) 2> /dev/null"

setup() {
  for host in "${machines[@]}"; do
    run rsync -a --delete --exclude-from="$root/.dockerignore" --exclude="$NAME.log" --exclude="$NAME.pid" "$root/" "$host:$REMOTE/"
    run ssh "$host" "cd $REMOTE && python3 -m venv venv && venv/bin/pip install --quiet '$JAX' -r requirements.txt"
  done
}

process() { # the flags of process $1
  echo "--config.distributed=${machines[0]}:$PORT --config.process=$1 --config.processes=${#machines[@]}"
}

start() {
  for i in "${!machines[@]}"; do
    run ssh "${machines[$i]}" "cd $REMOTE || exit 1; if $alive; then echo it is running already >&2; exit 1; fi; \
setsid nohup venv/bin/python -m ames_jax.train $TRAIN --workdir=$WORKDIR $(process "$i") > $NAME.log 2>&1 < /dev/null & \
echo \$! > $NAME.pid"
  done
}

smoke() {
  local pids=()
  for i in "${!machines[@]}"; do
    run ssh "${machines[$i]}" "cd $REMOTE && venv/bin/python -m ames_jax.train $SMOKE --workdir=$SMOKE_FOLDER $(process "$i")" &
    pids+=($!)
  done
  for pid in "${pids[@]}"; do wait "$pid"; done
  if [ -z "$DRY_RUN" ]; then echo "every host has run ten steps to the same parameters"; fi
}

on_each() { for host in "${machines[@]}"; do run ssh "$host" "$1"; done; }

case "$ACTION" in
  setup | status | logs | stop) needs HOSTS ;;
  smoke | run) needs HOSTS WORKDIR TRAIN ;;
esac
case "$ACTION" in
  setup | smoke) "$ACTION" ;;
  run) start ;;
  status) on_each "cd $REMOTE; if $alive; then echo running; else echo not running; fi; tail -n 1 $NAME.log" ;;
  logs) run ssh "${machines[0]}" "tail -n 100 -F $REMOTE/$NAME.log" ;;
  stop) on_each "kill -TERM \$(cat $REMOTE/$NAME.pid)" ;;
  *) usage ;;
esac
