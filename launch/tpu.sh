#!/usr/bin/env bash
# A Cloud TPU slice, from nothing to a finished run: launch/tpu.sh ACTION [--dry-run]
#   create   asks for the slice (queued resource: $CAPACITY) and waits until it is there
#   setup    code, virtual environment and requirements on every host
#   data     mounts ($DATA_ROUTE=mount) or copies the data on every host
#   smoke    ten steps on every host; fails unless all end with the same parameters
#   run      starts the training of $STAGE in the background on every host, unless one is running
#   status   of the slice and of the training
#   logs     follows the log of process 0
#   stop     sends SIGTERM: every process saves; `run` and `resume` go on from there
#   resume   what is missing of create, setup, data and run, again whenever the slice is taken away, until the training is done
#   delete   gives the slice back
# --dry-run prints the commands and does nothing. Settings: launch/settings.env.
# `resume` can itself be stopped and started at any time: it waits for a slice that is queued, watches a training that runs,
# and deletes a request only where Google says three times in a row that it has FAILED or is SUSPENDED.
# shellcheck source=launch/common.sh
. "$(dirname "$0")/common.sh"

place=(--project="$PROJECT" --zone="$ZONE")
POLL="${POLL:-60}" # seconds between looks
GRACE="${GRACE:-60}" # seconds that processes of an ended run have to end by themselves
LOOKS=3            # equal answers in a row before anything is done about a slice that is not there
FAULTS=5           # failed starts or runs before resume gives up; being taken away is none
complaint="$(mktemp)"
trap 'rm -f "$complaint"' EXIT

on_all() { run gcloud compute tpus tpu-vm ssh "$NAME" "${place[@]}" --worker=all --command="$1"; }
on_first() { run gcloud compute tpus tpu-vm ssh "$NAME" "${place[@]}" --worker=0 --command="$1"; }

describe=(gcloud compute tpus queued-resources describe "$NAME" "${place[@]}" '--format=value(state.state)')

state() { # of the queued resource: Google's word for it, GONE where there is none, UNKNOWN where nobody can say
  local answer
  if answer="$("${describe[@]}" 2> "$complaint")" && [ -n "$answer" ]; then
    echo "$answer"
  elif grep -q NOT_FOUND "$complaint"; then
    echo GONE
  else
    echo UNKNOWN
  fi
}

settled() { # a state that something can be done about: what would cost a slice is asked $LOOKS times
  local now before="" same=0
  while true; do
    now="$(state)"
    case "$now" in GONE | FAILED | SUSPENDED | UNKNOWN) ;; *) break ;; esac
    if [ "$now" = "$before" ]; then same=$((same + 1)); else same=1; fi
    if [ "$same" -ge "$LOOKS" ]; then break; fi
    before="$now"
    sleep "$POLL"
  done
  echo "$now"
}

request() {
  local options=()
  case "$CAPACITY" in
    spot) options=(--spot) ;;
    reserved) options=(--reserved) ;;
    on-demand) ;;
    *) fail "CAPACITY=$CAPACITY: expected spot, reserved or on-demand" ;;
  esac
  run gcloud compute tpus queued-resources create "$NAME" --node-id="$NAME" "${place[@]}" \
    --accelerator-type="$ACCELERATOR" --runtime-version="$RUNTIME" "${options[@]}"
}

create() {
  local now
  request
  show "${describe[@]}"
  if [ -n "$DRY_RUN" ]; then return; fi
  while now="$(settled)"; [ "$now" != ACTIVE ]; do
    case "$now" in FAILED | SUSPENDED | GONE) echo "error: the request for $NAME is $now" >&2; return 1 ;; esac
    echo "waiting for $NAME: $now"
    sleep "$POLL"
  done
}

setup() {
  local archive
  archive="${TMPDIR:-/tmp}/ames_jax-$NAME.tar.gz"
  run tar -C "$root" --exclude-from="$root/.dockerignore" -czf "$archive" . &&
    run gcloud compute tpus tpu-vm scp "$archive" "$NAME:/tmp/ames_jax.tar.gz" "${place[@]}" --worker=all &&
    on_all "set -e; rm -f ~/ames.ready; mkdir -p ~/ames_jax; tar -C ~/ames_jax -xzf /tmp/ames_jax.tar.gz; \
python3 -m pip install --user --quiet uv; python3 -m uv venv --quiet --clear --python 3.12 ~/venv; \
python3 -m uv pip install --quiet --python ~/venv/bin/python 'jax[tpu]' gcsfs -r ~/ames_jax/requirements.txt"
}

data() {
  local folder
  folder="$(folder_in_bucket "$DATA")"
  case "$DATA_ROUTE" in
    mount) on_all "set -e; mkdir -p $DATA_DIR; command -v gcsfuse || { \
echo 'deb https://packages.cloud.google.com/apt gcsfuse-jammy main' | sudo tee /etc/apt/sources.list.d/gcsfuse.list; \
curl -fsS https://packages.cloud.google.com/apt/doc/apt-key.gpg | sudo tee /etc/apt/trusted.gpg.d/gcloud.asc > /dev/null; \
sudo apt-get update -qq; sudo apt-get install -yqq gcsfuse; }; mountpoint -q $DATA_DIR || \
gcsfuse --implicit-dirs -o ro ${folder:+--only-dir $folder }$(bucket_of "$DATA") $DATA_DIR; touch ~/ames.ready" ;;
    copy) on_all "mkdir -p $DATA_DIR && gcloud storage rsync --recursive $DATA $DATA_DIR && touch ~/ames.ready" ;;
    *) fail "DATA_ROUTE=$DATA_ROUTE: expected mount or copy" ;;
  esac
}

# True on a host where a training runs; after a restart of the host its number may be that of another program.
alive="pgrep -g \$(cat ~/ames.pid 2> /dev/null || echo 1) -f ames_jax.train > /dev/null"

# What is left of an ended run is ended first: it would hold the chips. The exit code lands in a file, so that a broken SSH
# connection ends nothing.
start() {
  on_all "cd ~/ames_jax || exit 1; for i in \$(seq $GRACE); do $alive || break; sleep 1; done; \
if $alive; then kill -9 -- -\$(cat ~/ames.pid); fi; \
rm -f ~/ames.code ~/ames.stop; echo $WORKDIR > ~/ames.workdir; \
setsid nohup bash -c '~/venv/bin/python -m ames_jax.train $TRAIN --workdir=$WORKDIR; code=\$?; \
if [ \$code = 75 ] && [ -f ~/ames.stop ]; then code=stopped; fi; echo \$code > ~/ames.code' \
> ~/ames.log 2>&1 < /dev/null & echo \$! > ~/ames.pid"
}

# shellcheck disable=SC2016 # for the host's shell
question='if [ ! -f ~/ames.ready ]; then echo bare; elif [ -s ~/ames.code ]; then echo "ended $(cat ~/ames.code) $(cat ~/ames.workdir)"; '
question+="elif $alive; then echo \"running \$(cat ~/ames.workdir)\"; else echo idle; fi"

training() { # on worker 0: bare, idle, running WORKDIR, or ended CODE WORKDIR; nothing where it does not answer
  local answer
  answer="$(gcloud compute tpus tpu-vm ssh "$NAME" "${place[@]}" --worker=0 --command="$question" 2> /dev/null || true)"
  echo "${answer##*$'\n'}" # a login may greet first
}

run_training() {
  local now=""
  if [ -z "$DRY_RUN" ]; then now="$(training)"; fi
  case "$now" in running*) fail "${now#running } is being trained on $NAME: launch/tpu.sh stop ends it" ;; esac
  start
}

stop() {
  on_all "touch ~/ames.stop; pkill -TERM -P \$(cat ~/ames.pid) || echo nothing is running on \$(hostname)"
}

status() {
  run "${describe[@]}"
  on_first "$question; tail -n 1 ~/ames.log"
}

smoke() {
  on_all "cd ~/ames_jax && ~/venv/bin/python -m ames_jax.train $SMOKE --workdir=$SMOKE_FOLDER"
  if [ -z "$DRY_RUN" ]; then echo "every host has run ten steps to the same parameters"; fi
}

watch() { # until the training ends; its exit code, 75 also where the slice was taken away, 3 after `stop`
  local now
  while true; do
    sleep "$POLL"
    now="$(training)"
    case "$now" in
      running*) ;;
      "ended stopped"*) return 3 ;;
      ended*) now="${now#ended }" && echo "training ended with code ${now%% *}" && return "${now%% *}" ;;
      idle | bare) echo "the training on worker 0 is no longer there" && return 1 ;;
      *) case "$(settled)" in
        ACTIVE | UNKNOWN) echo "worker 0 of $NAME does not answer: asking again" ;;
        *) return 75 ;;
      esac ;;
    esac
  done
}

train() { # on a slice that is there: what is missing, then watches; returns as `watch` does
  local now
  now="$(training)"
  case "$now" in
    "running $WORKDIR") echo "watching the training that runs" ;;
    running*) fail "${now#running } is being trained on $NAME: launch/tpu.sh stop ends it" ;;
    "ended 0 $WORKDIR") return 0 ;;
    bare) { setup && data && start; } || return 1 ;;
    ended* | idle) { data && start; } || return 1 ;;
    *) echo "worker 0 of $NAME does not answer: asking again" && sleep "$POLL" && return 75 ;;
  esac
  watch
}

resume() {
  local now code faults=0 known=""
  if [ -n "$DRY_RUN" ]; then
    create && setup && data && start
    echo "# and again from the top, what is missing of it, until ~/ames.code on worker 0 holds 0"
    return
  fi
  while true; do
    now="$(settled)"
    code=75
    case "$now" in
      ACTIVE) code=0 && { train || code=$?; } ;;
      GONE) request || code=1 ;;
      # Without --force Google itself refuses to delete what has machines.
      FAILED | SUSPENDED) run gcloud compute tpus queued-resources delete "$NAME" "${place[@]}" --quiet || code=1 ;;
      UNKNOWN)
        if [ -z "$known" ]; then echo "error: $(< "$complaint")" >&2 && return 1; fi
        echo "gcloud cannot say how $NAME is: asking again" ;;
      *) echo "waiting for $NAME: $now" && sleep "$POLL" ;;
    esac
    if [ "$now" != UNKNOWN ]; then known=1; fi
    case "$code" in
      0) echo "done; launch/tpu.sh delete gives the slice back" && return 0 ;;
      2) echo "error: the command line or the data is wrong; launch/tpu.sh logs shows how" >&2 && return 2 ;;
      3) echo "stopped; resume goes on" && return 75 ;;
      75) if [ "$now" = FAILED ]; then faults=$((faults + 1)); fi ;;
      *) faults=$((faults + 1)) && sleep "$POLL" ;;
    esac
    if [ "$faults" -ge "$FAULTS" ]; then echo "error: failed $faults times, last with $now, code $code" >&2 && return 1; fi
  done
}

case "$ACTION" in
  create | setup | data | smoke | status | stop | run | logs | resume | delete) needs PROJECT WORKDIR DATA TRAIN ;;
esac
case "$ACTION" in
  create | setup | data | smoke | status | stop | resume) "$ACTION" ;;
  run) run_training ;;
  logs) on_first 'tail -n 100 -F ~/ames.log' ;;
  delete) run gcloud compute tpus queued-resources delete "$NAME" "${place[@]}" --quiet --force ;;
  *) usage ;;
esac
