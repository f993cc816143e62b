#!/bin/bash
# A training run on a TPU pod slice of Google Cloud, from a machine with gcloud:
#
#   PROJECT=… ZONE=us-east5-a TYPE=v5p-128 VERSION=v2-alpha-tpuv5 BUCKET=gs://… \
#     launch/tpu_pod.sh NAME --config=configs/7b.py --workdir=/runs/7b
#
# Asks for the slice as a queued resource (it waits for capacity), copies this checkout to all hosts,
# installs it and starts the same command on each: JAX finds the processes itself. SPOT=1 takes a
# spot slice: when it is taken away, the run saves; run this again with the same NAME to go on. After
# a failure it starts again, until three restarts made no progress that is seen here as a status 75.
# The workdir must be a folder that all hosts share (a mounted bucket or Filestore): SETUP is a line
# of shell that mounts it on each host. DRY_RUN=1 prints the commands.
set -euo pipefail

name="${1:?usage: launch/tpu_pod.sh NAME --config=FILE --workdir=DIR [--config.key=value …]}"
shift
: "${PROJECT:?name the project}" "${ZONE:?name the zone}" "${TYPE:?the accelerator type, v5p-128}"
: "${VERSION:?the runtime version, v2-alpha-tpuv5}"
max_restarts="${MAX_RESTARTS:-3}"
where=(--project="$PROJECT" --zone="$ZONE")
root="$(cd "$(dirname "$0")/.." && pwd)"

call() {
  if [[ -n "${DRY_RUN:-}" ]]; then
    printf '%q ' "$@"
    echo
  else
    "$@"
  fi
}

everywhere() { # a line of shell, on all hosts
  call gcloud compute tpus tpu-vm ssh "$name" "${where[@]}" --worker=all --command="$1"
}

state() {
  gcloud compute tpus queued-resources describe "$name" "${where[@]}" \
    --format='value(state.state)' 2>/dev/null || true
}

found="$([[ -n "${DRY_RUN:-}" ]] || state)"
if [[ "$found" == SUSPENDED || "$found" == FAILED ]]; then # a spot slice that was taken away
  call gcloud compute tpus queued-resources delete "$name" "${where[@]}" --force --quiet
  found=
fi
if [[ -z "$found" ]]; then
  call gcloud compute tpus queued-resources create "$name" "${where[@]}" --node-id="$name" \
    --accelerator-type="$TYPE" --runtime-version="$VERSION" ${SPOT:+--spot}
fi
if [[ -z "${DRY_RUN:-}" ]]; then
  while found="$(state)"; [[ "$found" != ACTIVE ]]; do
    case "$found" in
      FAILED | SUSPENDED | SUSPENDING) echo "launch: $name is $found" >&2; exit 1 ;;
    esac
    echo "launch: $name is ${found:-unknown}: waiting"
    sleep 30
  done
fi

archive="$(mktemp)"
trap 'rm -f "$archive"' EXIT
# Status 1: a file changed while it was read (a test's cache, an editor's), which is no failure.
tar --exclude='./.*' --exclude=__pycache__ --exclude=./runs --exclude=./data -C "$root" \
  -czf "$archive" . || [[ $? == 1 ]]
call gcloud compute tpus tpu-vm scp "$archive" "$name:jaxlm.tar.gz" "${where[@]}" --worker=all
everywhere "mkdir -p jaxlm && tar -xzf jaxlm.tar.gz -C jaxlm && cd jaxlm && ${SETUP:-true} && \
python3 -m venv .venv && .venv/bin/pip install --quiet -e . 'jax[tpu]'"

printf -v arguments ' %q' "$@"
vain=0
while true; do
  status=0
  everywhere "cd jaxlm && JAXLM_DISTRIBUTED=auto .venv/bin/python -m jaxlm.train$arguments" ||
    status=$?
  case "$status" in
    0 | 2) exit "$status" ;;
    75) vain=0 ;; # it saved
    *) vain=$((vain + 1)) ;;
  esac
  if ((vain > max_restarts)); then
    echo "launch: status $status; $max_restarts restarts did not help: giving up" >&2
    exit "$status"
  fi
  [[ "$(state)" == ACTIVE ]] || { echo "launch: $name was taken away; run this again" >&2; exit 75; }
  echo "launch: status $status: starting again"
done
