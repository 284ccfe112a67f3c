#!/usr/bin/env bash
# Starts a command as an Indexed Job on Kubernetes: one pod a process, joined by a headless service.
set -euo pipefail

usage() {
  cat <<'TEXT'
usage: kubernetes.sh --image IMAGE --processes N [options] -- COMMAND...
  --image IMAGE    container with this project installed
  --processes N    pods, one process in each
  --gpus N         GPUs of each pod (default 8; 0 for none)
  --tpus N         TPU chips of each pod, in place of GPUs, on GKE; needs the two below:
  --tpu-type T       accelerator of the node pool, as tpu-v5-lite-podslice
  --topology T       of its slice, as 4x8; its hosts are the pods
  --shm SIZE       /dev/shm of each pod (default 16Gi; a container's own is 64 MiB)
  --name NAME      of the job (default gam-jax)
  --restarts N     times that all pods may be started again (default 3; give --resume)
  --claim NAME     PersistentVolumeClaim that all pods can write, mounted at /runs
  --no-xla-flags   set no XLA_FLAGS or LIBTPU_INIT_ARGS (see xla_flags.sh)
  --dry-run        print the manifest and start nothing
TEXT
}

fail() { printf 'error: %s; see --help\n' "$1" >&2; exit 2; }

# shellcheck source=/dev/null
. "$(dirname "${BASH_SOURCE[0]}")/xla_flags.sh"
image="" processes="" gpus="" tpus=0 type="" topology="" shm=16Gi
name=gam-jax claim="" restarts=3 dry=false
while [ $# -gt 0 ]; do
  case "$1" in
    --help) usage; exit 0 ;;
    --dry-run) dry=true; shift ;;
    --no-xla-flags) GPU_FLAGS="" TPU_FLAGS=""; shift ;;
    --) shift; break ;;
    --image | --processes | --gpus | --tpus | --tpu-type | --topology | --shm | --name | --claim | \
      --restarts)
      [ $# -ge 2 ] || fail "$1 needs a value"
      case "$1" in
        --image) image=$2 ;; --processes) processes=$2 ;; --gpus) gpus=$2 ;;
        --tpus) tpus=$2 ;; --tpu-type) type=$2 ;; --topology) topology=$2 ;; --shm) shm=$2 ;;
        --name) name=$2 ;; --claim) claim=$2 ;;
        --restarts) restarts=$2 ;;
      esac
      shift 2 ;;
    *) fail "unknown argument '$1'" ;;
  esac
done
[ -n "$image" ] || fail "give --image"
[[ $processes =~ ^[1-9][0-9]*$ ]] || fail "--processes='$processes' should be a number of at least 1"
[[ $tpus =~ ^[0-9]+$ ]] || fail "--tpus='$tpus' should be a number"
if [ "$tpus" != 0 ]; then
  [ "${gpus:-0}" = 0 ] || fail "give --gpus or --tpus, not both"
  [[ $type =~ ^[a-z0-9-]+$ ]] || fail "--tpu-type='$type' should be as tpu-v5-lite-podslice"
  [[ $topology =~ ^[0-9]+(x[0-9]+){1,2}$ ]] || fail "--topology='$topology' should be as 4x8"
  gpus=0
elif [ -n "$type$topology" ]; then
  fail "--tpu-type and --topology need --tpus"
fi
gpus=${gpus:-8}
[[ $gpus =~ ^[0-9]+$ ]] || fail "--gpus='$gpus' should be a number"
[[ $shm =~ ^[1-9][0-9]*(Mi|Gi)$ ]] || fail "--shm='$shm' should be as 16Gi"
[[ $name =~ ^[a-z]([a-z0-9-]*[a-z0-9])?$ ]] || fail "--name='$name' should be small letters, digits, -"
[[ $restarts =~ ^[0-9]+$ ]] || fail "--restarts='$restarts' should be a number"
[ $# -gt 0 ] || fail "give the command to run after --"

quoted() { # a JSON string is a YAML string
  local text=${1//\\/\\\\}
  printf '"%s"' "${text//\"/\\\"}"
}

manifest() {
  cat <<TEXT
apiVersion: v1
kind: Service
metadata:
  name: $name
spec:
  clusterIP: None
  selector:
    job-name: $name
---
apiVersion: batch/v1
kind: Job
metadata:
  name: $name
spec:
  completionMode: Indexed
  completions: $processes
  parallelism: $processes
  backoffLimit: $((restarts * processes))
  podFailurePolicy:
    rules:
      - action: FailJob # bad input stays bad
        onExitCodes:
          containerName: train
          operator: In
          values: [2]
      - action: Ignore # stopped before its end (--unfinished-code=75): goes on
        onExitCodes:
          containerName: train
          operator: In
          values: [75]
      - action: Ignore # evicted, or its node is drained
        onPodConditions:
          - type: DisruptionTarget
  template:
    spec:
      subdomain: $name
      restartPolicy: Never
      terminationGracePeriodSeconds: 120
TEXT
  [ "$tpus" = 0 ] || cat <<TEXT
      nodeSelector:
        cloud.google.com/gke-tpu-accelerator: $type
        cloud.google.com/gke-tpu-topology: $topology
TEXT
  cat <<TEXT
      containers:
        - name: train
          image: $(quoted "$image")
          env:
TEXT
  environment
  cat <<TEXT
          command:
TEXT
  for word in "$@"; do
    printf '            - %s\n' "$(quoted "$word")"
  done
  resources nvidia.com/gpu "$gpus"
  resources google.com/tpu "$tpus"
  cat <<TEXT
          volumeMounts:
            - name: shm
              mountPath: /dev/shm
TEXT
  [ -z "$claim" ] || cat <<TEXT
            - name: runs
              mountPath: /runs
TEXT
  cat <<TEXT
      volumes:
        - name: shm
          emptyDir:
            medium: Memory
            sizeLimit: $shm
TEXT
  [ -z "$claim" ] || cat <<TEXT
        - name: runs
          persistentVolumeClaim:
            claimName: $claim
TEXT
}

environment() { # TPU hosts are told of each other by GKE, and JAX looks there
  if [ "$tpus" != 0 ]; then
    variable GAM_JAX_JOIN 1
    [ -z "$TPU_FLAGS" ] || variable LIBTPU_INIT_ARGS "$TPU_FLAGS"
    return
  fi
  [ "$gpus" = 0 ] || [ -z "$GPU_FLAGS" ] || variable XLA_FLAGS "$GPU_FLAGS"
  cat <<TEXT
            - name: JAX_COORDINATOR_ADDRESS
              value: "$name-0.$name:8476"
            - name: JAX_NUM_PROCESSES
              value: "$processes"
            - name: JAX_PROCESS_ID
              valueFrom:
                fieldRef:
                  fieldPath: metadata.annotations['batch.kubernetes.io/job-completion-index']
TEXT
}

variable() { printf '            - name: %s\n              value: %s\n' "$1" "$(quoted "$2")"; }

resources() { # what a pod needs of a device plugin: requests and limits are alike
  [ "$2" = 0 ] || cat <<TEXT
          resources:
            requests:
              $1: $2
            limits:
              $1: $2
TEXT
}

if $dry; then
  manifest "$@"
else
  command -v kubectl > /dev/null || fail "there is no kubectl here: install it"
  manifest "$@" | kubectl apply -f -
fi
