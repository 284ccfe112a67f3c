#!/usr/bin/env bash
# Starts a command as an Indexed Job on Kubernetes: one pod a process, joined by a headless service.
set -euo pipefail

usage() {
  cat <<'TEXT'
usage: kubernetes.sh --image IMAGE --processes N [options] -- COMMAND...
  --image IMAGE    container with this project installed
  --processes N    pods, one process in each
  --gpus N         GPUs of each pod (default 8; 0 for none)
  --name NAME      of the job (default gam-jax)
  --restarts N     times that all pods may be started again (default 3; give --resume)
  --claim NAME     PersistentVolumeClaim that all pods can write, mounted at /runs
  --dry-run        print the manifest and start nothing
TEXT
}

fail() { printf 'error: %s; see --help\n' "$1" >&2; exit 2; }

image="" processes="" gpus=8 name=gam-jax claim="" restarts=3 dry=false
while [ $# -gt 0 ]; do
  case "$1" in
    --help) usage; exit 0 ;;
    --dry-run) dry=true; shift ;;
    --) shift; break ;;
    --image | --processes | --gpus | --name | --claim | --restarts)
      [ $# -ge 2 ] || fail "$1 needs a value"
      case "$1" in
        --image) image=$2 ;; --processes) processes=$2 ;; --gpus) gpus=$2 ;;
        --name) name=$2 ;; --claim) claim=$2 ;;
        --restarts) restarts=$2 ;;
      esac
      shift 2 ;;
    *) fail "unknown argument '$1'" ;;
  esac
done
[ -n "$image" ] || fail "give --image"
[[ $processes =~ ^[1-9][0-9]*$ ]] || fail "--processes='$processes' should be a number of at least 1"
[[ $gpus =~ ^[0-9]+$ ]] || fail "--gpus='$gpus' should be a number"
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
  template:
    spec:
      subdomain: $name
      restartPolicy: Never
      terminationGracePeriodSeconds: 120
      containers:
        - name: train
          image: $(quoted "$image")
          env:
            - name: JAX_COORDINATOR_ADDRESS
              value: "$name-0.$name:8476"
            - name: JAX_NUM_PROCESSES
              value: "$processes"
            - name: JAX_PROCESS_ID
              valueFrom:
                fieldRef:
                  fieldPath: metadata.annotations['batch.kubernetes.io/job-completion-index']
          command:
TEXT
  for word in "$@"; do
    printf '            - %s\n' "$(quoted "$word")"
  done
  if [ "$gpus" != 0 ]; then
    cat <<TEXT
          resources:
            limits:
              nvidia.com/gpu: $gpus
TEXT
  fi
  if [ -n "$claim" ]; then
    cat <<TEXT
          volumeMounts:
            - name: runs
              mountPath: /runs
      volumes:
        - name: runs
          persistentVolumeClaim:
            claimName: $claim
TEXT
  fi
}

if $dry; then
  manifest "$@"
else
  command -v kubectl > /dev/null || fail "there is no kubectl here: install it"
  manifest "$@" | kubectl apply -f -
fi
