# shellcheck shell=bash disable=SC2034
# Sourced by every script: the settings, and `run`, which prints a command and, without --dry-run, executes it.
set -euo pipefail
launch="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
root="$(dirname "$launch")"
# shellcheck source=launch/settings.env
. "${SETTINGS:-$launch/settings.env}"

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

usage() { # the comment at the top of a script
  sed -n '2,/^[^#]/s/^# \{0,1\}//p' "$0"
  exit 2
}
