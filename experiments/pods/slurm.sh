#!/usr/bin/env bash
# Submits a command to SLURM: one process on each node, each with all the GPUs of its node.
set -euo pipefail

usage() {
  cat <<'TEXT'
usage: slurm.sh --nodes N [options] -- COMMAND...
  --nodes N        nodes, one process on each
  --gpus N         GPUs of each node (default 8; 0 for none)
  --cpus N         cores of each process (default 16)
  --time T         time limit (default 04:00:00)
  --partition P    partition
  --restarts N     times to start the command again when it fails (default 3; give it --resume)
  --requeues N     times to queue the job again when it stopped unfinished, as at its time limit
                   (default 0; give the command --resume and --unfinished-code=75)
  --name NAME      name of the job (default gam_jax)
  --no-xla-flags   set no XLA_FLAGS (see xla_flags.sh)
  --dry-run        print the batch script and submit nothing
TEXT
}

fail() { printf 'error: %s; see --help\n' "$1" >&2; exit 2; }

# shellcheck source=/dev/null
. "$(dirname "${BASH_SOURCE[0]}")/xla_flags.sh"
nodes="" gpus=8 cpus=16 time=04:00:00 partition="" name=gam_jax restarts=3 requeues=0 dry=false
while [ $# -gt 0 ]; do
  case "$1" in
    --help) usage; exit 0 ;;
    --dry-run) dry=true; shift ;;
    --no-xla-flags) GPU_FLAGS=""; shift ;;
    --) shift; break ;;
    --nodes | --gpus | --cpus | --time | --partition | --name | --restarts | --requeues)
      [ $# -ge 2 ] || fail "$1 needs a value"
      case "$1" in
        --nodes) nodes=$2 ;; --gpus) gpus=$2 ;; --cpus) cpus=$2 ;;
        --time) time=$2 ;; --partition) partition=$2 ;; --name) name=$2 ;;
        --restarts) restarts=$2 ;; --requeues) requeues=$2 ;;
      esac
      shift 2 ;;
    *) fail "unknown argument '$1'" ;;
  esac
done
[[ $nodes =~ ^[1-9][0-9]*$ ]] || fail "--nodes='$nodes' should be a number of at least 1"
[[ $gpus =~ ^[0-9]+$ ]] || fail "--gpus='$gpus' should be a number"
[[ $cpus =~ ^[1-9][0-9]*$ ]] || fail "--cpus='$cpus' should be a number of at least 1"
[[ $restarts =~ ^[0-9]+$ ]] || fail "--restarts='$restarts' should be a number"
[[ $requeues =~ ^[0-9]+$ ]] || fail "--requeues='$requeues' should be a number"
[ $# -gt 0 ] || fail "give the command to run after --"
[ "$requeues" = 0 ] || [[ " $* " =~ \ --unfinished[-_]code=75\  ]] ||
  fail "--requeues goes by exit code 75: give the command --unfinished-code=75"

script() {
  echo '#!/usr/bin/env bash'
  echo "#SBATCH --job-name=$name"
  echo "#SBATCH --nodes=$nodes"
  echo "#SBATCH --ntasks=$nodes"
  echo "#SBATCH --ntasks-per-node=1"
  echo "#SBATCH --cpus-per-task=$cpus"
  [ "$gpus" = 0 ] || echo "#SBATCH --gpus-per-node=$gpus"
  [ -z "$partition" ] || echo "#SBATCH --partition=$partition"
  echo "#SBATCH --time=$time"
  echo "#SBATCH --signal=TERM@120  # the training command saves and leaves"
  echo "#SBATCH --output=%x-%j.log"
  echo "#SBATCH --requeue  # when a node is lost, and by scontrol below"
  echo "#SBATCH --open-mode=append"
  echo 'set -euo pipefail'
  if [ "$gpus" != 0 ] && [ -n "$GPU_FLAGS" ]; then
    # shellcheck disable=SC2016 # the node's own variables
    printf 'export XLA_FLAGS="%s ${XLA_FLAGS:-}"\necho "XLA_FLAGS=$XLA_FLAGS"\n' "$GPU_FLAGS"
  fi
  echo "for restart in {0..$restarts}; do"
  echo '  code=0'
  # Since SLURM 22.05 srun does not take --cpus-per-task over from the job. Code 75 is a bad exit to
  # SLURM, which would kill the processes that end last: they have a minute.
  local ends=--kill-on-bad-exit=1
  [ "$requeues" = 0 ] || ends="--kill-on-bad-exit=0 --wait=60"
  printf '  srun --label %s --cpus-per-task=%s' "$ends" "$cpus"
  printf ' %q' "$@"
  cat <<'TEXT'
 || code=$?
  case $code in 0 | 2 | 75) break ;; esac # done; bad input, which stays bad; or told to stop
  echo "ended with $code after $restart restarts" >&2
done
TEXT
  cat <<TEXT
if [ "\$code" = 75 ] && [ "\${SLURM_RESTART_COUNT:-0}" -lt $requeues ]; then
  echo "stopped before its end: queued again (\${SLURM_RESTART_COUNT:-0} times before)" >&2
  scontrol requeue "\$SLURM_JOB_ID"
fi
exit "\$code"
TEXT
}

if $dry; then
  script "$@"
else
  command -v sbatch > /dev/null || fail "there is no sbatch here: run this on a login node"
  script "$@" | sbatch
fi
