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

name="" zone="" project="" dir=gam_jax dry=false
while [ $# -gt 0 ]; do
  case "$1" in
    --help) usage; exit 0 ;;
    --dry-run) dry=true; shift ;;
    --) shift; break ;;
    --name | --zone | --project | --dir)
      [ $# -ge 2 ] || fail "$1 needs a value"
      case "$1" in
        --name) name=$2 ;; --zone) zone=$2 ;; --project) project=$2 ;; --dir) dir=$2 ;;
      esac
      shift 2 ;;
    *) fail "unknown argument '$1'" ;;
  esac
done
[ -n "$name" ] || fail "give --name"
[ -n "$zone" ] || fail "give --zone"
[ $# -gt 0 ] || fail "give the command to run after --"

remote="cd $(printf '%q' "$dir") && GAM_JAX_JOIN=1$(printf ' %q' "$@")"
line=(gcloud compute tpus tpu-vm ssh "$name" "--zone=$zone" --worker=all "--command=$remote")
[ -z "$project" ] || line+=("--project=$project")

if $dry; then
  printf '%q ' "${line[@]}"
  echo
else
  command -v gcloud > /dev/null || fail "there is no gcloud here: install the Google Cloud CLI"
  "${line[@]}"
fi
