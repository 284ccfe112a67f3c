#!/usr/bin/env bash
# Runs a command on every host of a Cloud TPU slice; the hosts find each other by themselves.
set -euo pipefail

usage() {
  cat <<'TEXT'
usage: tpu_vm.sh --name NAME --zone ZONE [options] -- COMMAND...
  --name NAME      of the TPU VM
  --zone ZONE      where it is
  --project P      the Google Cloud project (default: gcloud's own)
  --dir DIR        folder of the code on each host (default gam_jax)
  --dry-run        print what would be run and run nothing
TEXT
}

fail() { printf 'error: %s; see --help\n' "$1" >&2; exit 2; }

name="" zone="" project="" dir=gam_jax restarts=3 dry=false
while [ $# -gt 0 ]; do
  case "$1" in
    --help) usage; exit 0 ;;
    --dry-run) dry=true; shift ;;
    --) shift; break ;;
    --name | --zone | --project | --dir | --restarts)
      [ $# -ge 2 ] || fail "$1 needs a value"
      case "$1" in
        --name) name=$2 ;; --zone) zone=$2 ;; --project) project=$2 ;; --dir) dir=$2 ;;
        --restarts) restarts=$2 ;;
      esac
      shift 2 ;;
    *) fail "unknown argument '$1'" ;;
  esac
done
[ -n "$name" ] || fail "give --name"
[ -n "$zone" ] || fail "give --zone"
[[ $restarts =~ ^[0-9]+$ ]] || fail "--restarts='$restarts' should be a number"
[ $# -gt 0 ] || fail "give the command to run after --"

remote="cd $(printf '%q' "$dir") && GAM_JAX_JOIN=1$(printf ' %q' "$@")"
line=(gcloud compute tpus tpu-vm ssh "$name" "--zone=$zone" --worker=all "--command=$remote")
[ -z "$project" ] || line+=("--project=$project")

if $dry; then
  printf '%q ' "${line[@]}"
  echo
else
  command -v gcloud > /dev/null || fail "there is no gcloud here: install the Google Cloud CLI"
  for ((restart = 0; restart <= restarts; restart++)); do
    code=0
    "${line[@]}" || code=$?
    case $code in 0 | 2) break ;; esac # done or told to stop; or bad input, which stays bad
    echo "ended with $code after $restart restarts" >&2
  done
  exit "$code"
fi
