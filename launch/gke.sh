#!/usr/bin/env bash
# TPUs on Google Kubernetes Engine through XPK (pip install xpk; a cluster of `xpk cluster create`): launch/gke.sh ACTION [--dry-run]
#   setup    builds launch/Dockerfile and pushes it
#   smoke    ten steps on every host; the job fails unless all end with the same parameters
#   run      creates the workload; Kubernetes starts it again when it is preempted, and the run goes on
#   logs     follows the log of process 0
#   delete   deletes the workload
# --dry-run prints the commands and does nothing. Settings: launch/settings.env.
# shellcheck source=launch/common.sh
. "$(dirname "$0")/common.sh"

where=(--cluster="$CLUSTER" --project="$PROJECT" --zone="$ZONE")
copy="mkdir -p $DATA_DIR && gcloud storage rsync --recursive $DATA $DATA_DIR"

workload() {
  run xpk workload create --workload="$1" "${where[@]}" --tpu-type="$ACCELERATOR" --docker-image="$IMAGE" \
    --max-restarts="$2" --command="$3"
}

setup() {
  run docker build --tag "$IMAGE" --file "$launch/Dockerfile" "$root"
  run docker push "$IMAGE"
}

case "$ACTION" in
  setup) setup ;;
  smoke) workload "$NAME-smoke" 0 "python -m ames_jax.train --config=configs/teacher_fp.py --config.optimizer.steps=10 \
--config.optimizer.warmup=0 --config.validation.every=10 --workdir=$WORKDIR-smoke-$(date +%s)" ;;
  run) workload "$NAME" 100 "$copy && python -m ames_jax.train $TRAIN --workdir=$WORKDIR" ;;
  logs) run kubectl logs --follow --selector="jobset.sigs.k8s.io/jobset-name=$NAME,batch.kubernetes.io/job-completion-index=0" ;;
  delete) run xpk workload delete --workload="$NAME" "${where[@]}" ;;
  *) usage ;;
esac
