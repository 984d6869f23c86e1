#!/usr/bin/env bash
# TPUs on Google Kubernetes Engine through XPK (pip install xpk; a cluster of `xpk cluster create`): launch/gke.sh ACTION [--dry-run]
#   setup    builds launch/Dockerfile and pushes it
#   data     attaches the data's bucket to the cluster as a volume, read-only (once; not with DATA_ROUTE=copy)
#   smoke    ten steps on every host; the job fails unless all end with the same parameters
#   run      creates the workload of $STAGE; Kubernetes starts it again when it is preempted, and the run goes on
#   status   of the workload
#   logs     follows the log of process 0
#   stop     deletes the workload: every process has two minutes to save, and `run` goes on from there
#   delete   stop, and detaches the volume
# --dry-run prints the commands and does nothing. Settings: launch/settings.env.
# shellcheck source=launch/common.sh
. "$(dirname "$0")/common.sh"

where=(--cluster="$CLUSTER" --project="$PROJECT" --zone="$ZONE")
volume="$NAME-data"

workload() { # NAME RESTARTS COMMAND [FLAGS]; 75 is "saved, go on later", which XPK would take for a fault of the program
  run xpk workload create --workload="$1" "${where[@]}" --tpu-type="$ACCELERATOR" --docker-image="$IMAGE" \
    --max-restarts="$2" --restart-on-exit-codes=75 --termination-grace-period-seconds=120 --command="$3" "${@:4}"
}

setup() {
  run docker build --tag "$IMAGE" --file "$launch/Dockerfile" "$root"
  run docker push "$IMAGE"
}

data() {
  local folder
  folder="$(folder_in_bucket "$DATA")"
  run xpk storage attach "$volume" --type=gcsfuse "${where[@]}" --bucket="$(bucket_of "$DATA")" --mount-point="$DATA_DIR" \
    --mount-options="implicit-dirs${folder:+,only-dir=$folder}" --readonly=true --auto-mount=false --size=1000
}

train() { # `exec`: SIGTERM must reach Python
  local command="exec python -m ames_jax.train $TRAIN --workdir=$WORKDIR"
  case "$DATA_ROUTE" in
    mount) workload "$NAME" 100 "$command" --storage="$volume" ;;
    copy) workload "$NAME" 100 "mkdir -p $DATA_DIR && gcloud storage rsync --recursive $DATA $DATA_DIR && $command" ;;
    *) fail "DATA_ROUTE=$DATA_ROUTE: expected mount or copy" ;;
  esac
}

stop() { run xpk workload delete --workload="$NAME" "${where[@]}" --force; }

case "$ACTION" in
  setup | data | smoke | run | status | logs | stop | delete) needs PROJECT CLUSTER IMAGE WORKDIR DATA TRAIN ;;
esac
case "$ACTION" in
  setup | data | stop) "$ACTION" ;;
  smoke) workload "$NAME-smoke" 0 "exec python -m ames_jax.train $SMOKE --workdir=$SMOKE_FOLDER" ;;
  run) train ;;
  status) run xpk workload list "${where[@]}" --filter-by-job="$NAME" ;;
  logs) run kubectl logs --follow --selector="jobset.sigs.k8s.io/jobset-name=$NAME,batch.kubernetes.io/job-completion-index=0" ;;
  delete) stop && if [ "$DATA_ROUTE" = mount ]; then run xpk storage detach "$volume" "${where[@]}"; fi ;;
  *) usage ;;
esac
