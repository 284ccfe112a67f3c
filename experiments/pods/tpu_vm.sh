#!/usr/bin/env bash
# Runs a command on every host of a Cloud TPU slice; the hosts find each other by themselves.
# It runs on when this machine or its connection is gone.
set -euo pipefail

usage() {
  cat <<'TEXT'
usage: tpu_vm.sh --name NAME --zone ZONE [options] -- COMMAND...
       tpu_vm.sh --name NAME --zone ZONE --log | --stop
  --name NAME      of the TPU VM
  --zone ZONE      where it is
  --project P      the Google Cloud project (default: gcloud's own)
  --dir DIR        folder of the code on each host (default gam_jax)
  --restarts N     times that a host starts the command again when it fails (default 3; give it
                   --resume)
  --log            show what each host said last, and whether it runs
  --stop           ask the command to save and leave, on all hosts
  --no-xla-flags   set no LIBTPU_INIT_ARGS (see xla_flags.sh)
  --dry-run        print what would be run and run nothing
TEXT
}

fail() { printf 'error: %s; see --help\n' "$1" >&2; exit 2; }

# shellcheck source=/dev/null
. "$(dirname "${BASH_SOURCE[0]}")/xla_flags.sh"
name="" zone="" project="" dir=gam_jax restarts=3 do=start dry=false
while [ $# -gt 0 ]; do
  case "$1" in
    --help) usage; exit 0 ;;
    --dry-run) dry=true; shift ;;
    --no-xla-flags) TPU_FLAGS=""; shift ;;
    --log | --stop) do=${1#--}; shift ;;
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
[ "$do" != start ] || [ $# -gt 0 ] || fail "give the command to run after --"
[ "$do" = start ] || [ $# = 0 ] || fail "--$do takes no command"

# What follows runs on the hosts. A session of its own, with no terminal, outlives the connection;
# its leader's number is that of the whole group.
# shellcheck disable=SC2016
again='for restart in $(seq 0 "$0"); do
  code=0; "$@" || code=$?
  echo "ended with $code after $restart restarts"
  case $code in 0 | 2) break ;; esac # done or told to stop; or bad input, which stays bad
done
exit $code'
# shellcheck disable=SC2016
runs='[ -f tpu_job.pid ] && kill -0 -- "-$(cat tpu_job.pid)" 2> /dev/null'
case $do in
  start)
    command="GAM_JAX_JOIN=1"
    [ -z "$TPU_FLAGS" ] || command+=" LIBTPU_INIT_ARGS=\"$TPU_FLAGS \${LIBTPU_INIT_ARGS:-}\""
    command+=" nohup setsid bash -c $(printf '%q' "$again") $restarts$(printf ' %q' "$@")"
    remote="if $runs; then echo 'error: a command runs here already: --stop it first' >&2; exit 2; fi
$command > tpu_job.log 2>&1 < /dev/null &
echo \$! > tpu_job.pid; echo \"started on \$(hostname): see --log\"" ;;
  log) remote="tail -n 20 tpu_job.log; if $runs; then echo 'it runs'; else echo 'it has ended'; fi" ;;
  stop) remote="if $runs; then kill -TERM -- \"-\$(cat tpu_job.pid)\"; else echo 'nothing runs'; fi" ;;
esac
remote="cd $(printf '%q' "$dir") || exit 2
$remote"
line=(gcloud compute tpus tpu-vm ssh "$name" "--zone=$zone" --worker=all "--command=$remote")
[ -z "$project" ] || line+=("--project=$project")

if $dry; then
  printf '%q ' "${line[@]}"
  echo
else
  command -v gcloud > /dev/null || fail "there is no gcloud here: install the Google Cloud CLI"
  "${line[@]}"
fi
