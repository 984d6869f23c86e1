#!/usr/bin/env bash
# A Cloud TPU slice, from nothing to a finished run: launch/tpu.sh ACTION [--dry-run]
#   create   asks for the slice (queued resource: $CAPACITY) and waits until it is there
#   setup    code, virtual environment and requirements on every host
#   data     mounts ($DATA_ROUTE=mount) or copies the data on every host
#   smoke    ten steps on every host; fails unless all end with the same parameters
#   run      starts the training in the background on every host
#   logs     follows the log of process 0
#   resume   create, setup, data, run, and all of it again whenever the slice is taken away, until the training is done
#   delete   gives the slice back
# --dry-run prints the commands and does nothing. Settings: launch/settings.env.
# shellcheck source=launch/common.sh
. "$(dirname "$0")/common.sh"

place=(--project="$PROJECT" --zone="$ZONE")
POLL="${POLL:-60}" # seconds between looks

on_all() { run gcloud compute tpus tpu-vm ssh "$NAME" "${place[@]}" --worker=all --command="$1"; }
on_first() { run gcloud compute tpus tpu-vm ssh "$NAME" "${place[@]}" --worker=0 --command="$1"; }

state() {
  gcloud compute tpus queued-resources describe "$NAME" "${place[@]}" --format='value(state.state)' 2>/dev/null || echo NONE
}

create() {
  local options=()
  case "$CAPACITY" in
    spot) options=(--spot) ;;
    reserved) options=(--reserved) ;;
    on-demand) ;;
    *) echo "error: CAPACITY=$CAPACITY: expected spot, reserved or on-demand" >&2; exit 2 ;;
  esac
  run gcloud compute tpus queued-resources create "$NAME" --node-id="$NAME" "${place[@]}" \
    --accelerator-type="$ACCELERATOR" --runtime-version="$RUNTIME" "${options[@]}"
  show gcloud compute tpus queued-resources describe "$NAME" "${place[@]}" '--format=value(state.state)'
  if [ -n "$DRY_RUN" ]; then return; fi
  local now
  while now="$(state)"; [ "$now" != ACTIVE ]; do
    case "$now" in FAILED | SUSPENDED) echo "error: the request for $NAME is $now" >&2; return 1 ;; esac
    echo "waiting for $NAME: $now"
    sleep "$POLL"
  done
}

setup() {
  local archive
  archive="/tmp/ames_jax-$NAME.tar.gz"
  run tar -C "$root" --exclude=.git --exclude=runs -czf "$archive" .
  run gcloud compute tpus tpu-vm scp "$archive" "$NAME:/tmp/ames_jax.tar.gz" "${place[@]}" --worker=all
  on_all "set -e; mkdir -p ~/ames_jax; tar -C ~/ames_jax -xzf /tmp/ames_jax.tar.gz; \
python3 -m pip install --user --quiet uv; python3 -m uv venv --quiet --clear --python 3.12 ~/venv; \
python3 -m uv pip install --quiet --python ~/venv/bin/python 'jax[tpu]' gcsfs -r ~/ames_jax/requirements.txt"
}

data() {
  case "$DATA_ROUTE" in
    mount) on_all "set -e; mkdir -p $DATA_DIR; command -v gcsfuse || { \
echo 'deb https://packages.cloud.google.com/apt gcsfuse-jammy main' | sudo tee /etc/apt/sources.list.d/gcsfuse.list; \
curl -fsS https://packages.cloud.google.com/apt/doc/apt-key.gpg | sudo tee /etc/apt/trusted.gpg.d/gcloud.asc > /dev/null; \
sudo apt-get update -qq; sudo apt-get install -yqq gcsfuse; }; mountpoint -q $DATA_DIR || \
gcsfuse --implicit-dirs -o ro --only-dir $(in_bucket "$DATA") $(bucket_of "$DATA") $DATA_DIR" ;;
    copy) on_all "mkdir -p $DATA_DIR && gcloud storage rsync --recursive $DATA $DATA_DIR" ;;
    *) echo "error: DATA_ROUTE=$DATA_ROUTE: expected mount or copy" >&2; exit 2 ;;
  esac
}

bucket_of() { local path="${1#gs://}"; echo "${path%%/*}"; }
in_bucket() { local path="${1#gs://}"; echo "${path#*/}"; }

# The exit code lands in a file, so that a broken SSH connection ends nothing.
run_training() {
  on_all "cd ~/ames_jax; rm -f ~/ames.code; setsid nohup bash -c '~/venv/bin/python -m ames_jax.train $TRAIN \
--workdir=$WORKDIR; echo \$? > ~/ames.code' > ~/ames.log 2>&1 < /dev/null &"
}

smoke() {
  on_all "cd ~/ames_jax && ~/venv/bin/python -m ames_jax.train --config=configs/teacher_fp.py \
--config.optimizer.steps=10 --config.optimizer.warmup=0 --config.validation.every=10 --workdir=$WORKDIR-smoke-$(date +%s)"
  if [ -z "$DRY_RUN" ]; then echo "every host has run ten steps to the same parameters"; fi
}

wait_for_end() { # 0: done, 75: go on; what else ends a run is the user's to mend
  local code
  while [ "$(state)" = ACTIVE ]; do
    sleep "$POLL"
    code="$(gcloud compute tpus tpu-vm ssh "$NAME" "${place[@]}" --worker=0 --command='cat ~/ames.code' 2>/dev/null || true)"
    case "$code" in "") ;; *) echo "training ended with code $code"; return "$code" ;; esac
  done
  return 75
}

resume() {
  local code tries=0
  while true; do
    if [ -n "$DRY_RUN" ] || [ "$(state)" != ACTIVE ]; then
      run gcloud compute tpus queued-resources delete "$NAME" "${place[@]}" --quiet --force || true
      create || { sleep "$POLL"; continue; }
      setup
      data
    fi
    run_training
    if [ -n "$DRY_RUN" ]; then echo "# and again from the top until ~/ames.code on worker 0 holds 0"; return; fi
    code=0
    wait_for_end || code=$?
    case "$code" in
      0) echo "done"; return 0 ;;
      2) echo "error: the command line or the data is wrong; launch/tpu.sh logs shows how" >&2; return 2 ;;
    esac
    # A fault of ours would come back for ever; being taken away (75) may happen as often as it likes.
    if [ "$code" != 75 ]; then tries=$((tries + 1)); fi
    if [ "$tries" -ge 5 ]; then echo "error: failed $tries times, last with code $code" >&2; return 1; fi
  done
}

case "$ACTION" in
  create | setup | data | smoke | resume) "$ACTION" ;;
  run) run_training ;;
  logs) on_first 'tail -n 100 -F ~/ames.log' ;;
  delete) run gcloud compute tpus queued-resources delete "$NAME" "${place[@]}" --quiet --force ;;
  *) usage ;;
esac
