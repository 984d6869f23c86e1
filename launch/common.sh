# shellcheck shell=bash disable=SC2034
# Sourced by every script: the settings, and `run`, which prints a command and, without --dry-run, executes it.
set -euo pipefail
launch="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
root="$(dirname "$launch")"

fail() {
  echo "error: $1" >&2
  exit 2
}

settings="${SETTINGS:-$launch/settings.env}"
case "$settings" in */*) ;; *) settings="./$settings" ;; esac # without a slash it would be looked for on PATH
[ -f "$settings" ] || fail "SETTINGS=$settings: no such file"
# shellcheck source=launch/settings.env
. "$settings"

DRY_RUN=""
ARGUMENTS=()
for argument in "$@"; do
  if [ "$argument" = "--dry-run" ]; then DRY_RUN=1; else ARGUMENTS+=("$argument"); fi
done
set -- "${ARGUMENTS[@]}"
ACTION="${1:-help}"

show() { # one write a line: hosts that run at the same time must not mix theirs
  local line
  printf -v line ' %q' "$@"
  printf '%s\n' "${line:1}"
}

run() {
  show "$@"
  if [ -z "$DRY_RUN" ]; then "$@"; fi
}

needs() { # refuses settings that nobody has filled in; a dry run touches nothing and may show them
  local name
  if [ -n "$DRY_RUN" ]; then return; fi
  for name in "$@"; do
    case "${!name}" in
      *YOUR-*) fail "$name=${!name} is a placeholder: copy launch/settings.env, fill it in, and name the copy: SETTINGS=my.env" ;;
    esac
  done
}

bucket_of() { local path="${1#gs://}" && echo "${path%%/*}"; }
folder_in_bucket() { local path="${1#gs://}/" && path="${path#*/}" && echo "${path%/}"; } # empty for the whole bucket

usage() { # the comment at the top of a script
  sed -n '2,/^[^#]/s/^# \{0,1\}//p' "$0"
  exit 2
}

SMOKE="--config=configs/teacher_fp.py --config.optimizer.steps=10 --config.optimizer.warmup=0 --config.validation.every=10"
SMOKE_FOLDER="$WORKDIR-smoke-$(date +%s)"
