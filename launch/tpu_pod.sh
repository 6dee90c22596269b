#!/usr/bin/env bash
# Trains on slices of Cloud TPU VMs: queues for them, ships the code, runs, goes on after preemption.
set -euo pipefail

usage() {
  cat <<'TEXT'
launch/tpu_pod.sh NAME --zone=ZONE [OPTIONS] -- ARGS
launch/tpu_pod.sh NAME --zone=ZONE --delete

Runs `python -m lenext.train --distributed ARGS` on all workers of the TPU VM slice NAME. If it is
not there, it is queued for (as NAME-queue) and waited for; the committed code (HEAD) and what
requirements.txt pins are installed on each worker. Logs come to this terminal. A run that was
preempted is started again, on a slice that is queued for anew if need be. All workers write
checkpoints into --workdir, which has to outlive the slice: --workdir=gs://BUCKET/FOLDER.

  --type=TYPE         accelerator type of a new slice (default: v5litepod-16)
  --image=VERSION     its software version (default: the one for its type)
  --slices=N          so many slices, NAME-0 and so on, with one mesh over them (default: 1, NAME)
  --spot              a new slice may be preempted, for less money
  --wait=TIME         in the queue at the most, as 90m or 6h (default: 6h)
  --project=PROJECT   of Google Cloud (default: gcloud's own)
  --attempts=N        starts at most so often (default: 20)
  --delete            deletes slices and queue at the end; without -- ARGS at once
  --dry-run           prints the commands for a slice that is not there yet, and runs nothing
  --help              prints this

Ends with the training's exit code; 75 where it was preempted too often; 1 where no slice was to be
had. What stays behind costs money: a line says what that is.
TEXT
}

fail() {
  echo "error: $*" >&2
  exit 2
}

name='' zone='' type='' image='' spot=false project=''
slices=1 wait=6h attempts=20 delete=false dry_run=false train=false
while [[ $# -gt 0 ]]; do
  case $1 in
    --) train=true; shift; break ;;
    -h | --help) usage; exit 0 ;;
    --zone=*) zone=${1#*=} ;;
    --type=*) type=${1#*=} ;;
    --image=*) image=${1#*=} ;;
    --slices=*) slices=${1#*=} ;;
    --wait=*) wait=${1#*=} ;;
    --project=*) project=${1#*=} ;;
    --attempts=*) attempts=${1#*=} ;;
    --spot) spot=true ;;
    --delete) delete=true ;;
    --dry-run) dry_run=true ;;
    -*) fail "option $1: --help lists those that there are" ;;
    *) [[ -z $name ]] || fail "argument $1: arguments of lenext.train come after --"
       name=$1 ;;
  esac
  shift
done
[[ -n $name ]] || fail "NAME: should be given, the slice's"
[[ -n $zone ]] || fail "--zone=ZONE: should be given, such as --zone=us-west4-a"
[[ $attempts =~ ^[1-9][0-9]*$ ]] || fail "--attempts=$attempts: should be a number from 1"
[[ $slices =~ ^[1-9][0-9]*$ ]] || fail "--slices=$slices: should be a number from 1"
[[ $wait =~ ^([1-9][0-9]*)([smh])$ ]] || fail "--wait=$wait: should be a time, as 90m or 6h"
case ${BASH_REMATCH[2]} in s) unit=1 ;; m) unit=60 ;; h) unit=3600 ;; esac
seconds=$((BASH_REMATCH[1] * unit))
if [[ -z $image ]]; then
  case ${type:-v5litepod-16} in
    v5litepod-*) image=v2-alpha-tpuv5-lite ;;
    v5p-*) image=v2-alpha-tpuv5 ;;
    v6e-*) image=v2-alpha-tpuv6e ;;
    v2-* | v3-* | v4-*) image=tpu-ubuntu2204-base ;;
    *) fail "--image=VERSION: should be given, none is known for --type=$type" ;;
  esac
fi
$train || $delete || fail "should end with -- and the arguments of lenext.train"
for command in gcloud git; do
  $dry_run || command -v "$command" >/dev/null || fail "$command: should be installed"
done

where=("--zone=$zone")
[[ -z $project ]] || where+=("--project=$project")
nodes=("$name")
if [[ $slices != 1 ]]; then
  nodes=()
  for ((i = 0; i < slices; i++)); do nodes+=("$name-$i"); done
fi
queue=$name-queue

# Prints a command, or runs it.
run() {
  if $dry_run; then
    printf '%q ' "$@" | sed 's/ $//'
    echo
  else
    "$@"
  fi
}

vm() {
  local verb=$1
  shift
  run gcloud compute tpus tpu-vm "$verb" "$@" "${where[@]}"
}

queued() {
  local verb=$1
  shift
  run gcloud compute tpus queued-resources "$verb" "$@" "${where[@]}"
}

# A command on every worker of every slice, all at once.
everywhere() {
  local node pid pids=() failed=0
  if $dry_run; then
    for node in "${nodes[@]}"; do vm ssh "$node" --worker=all "--command=$1"; done
    return
  fi
  for node in "${nodes[@]}"; do
    vm ssh "$node" --worker=all "--command=$1" &
    pids+=($!)
  done
  for pid in "${pids[@]}"; do wait "$pid" || failed=1; done
  return $failed
}

# READY where all slices are; else the state of the first that is not; nothing where that is none.
state() {
  local node found=''
  for node in "${nodes[@]}"; do
    found=$(gcloud compute tpus tpu-vm describe "$node" "${where[@]}" '--format=value(state)' 2>/dev/null || true)
    [[ $found == READY ]] || break
  done
  echo "$found"
}

queue_state() {
  gcloud compute tpus queued-resources describe "$queue" "${where[@]}" '--format=value(state.state)' 2>/dev/null || true
}

# Slices that were queued for go with their request; others by themselves.
remove() {
  local node
  if $dry_run || [[ -n $(queue_state) ]]; then
    queued delete "$queue" --force --quiet
    return
  fi
  for node in "${nodes[@]}"; do
    [[ -z $(gcloud compute tpus tpu-vm describe "$node" "${where[@]}" '--format=value(state)' 2>/dev/null || true) ]] ||
      vm delete "$node" --quiet
  done
}

request() {
  local options=("--accelerator-type=${type:-v5litepod-16}" "--runtime-version=$image")
  if [[ $slices == 1 ]]; then
    options+=("--node-id=$name")
  else
    options+=("--node-count=$slices" "--node-prefix=$name")
  fi
  ! $spot || options+=(--spot)
  queued create "$queue" "${options[@]}" || give_up "no slice was queued for"
}

left_behind() {
  echo "what may still be there costs money: launch/tpu_pod.sh $name ${where[*]} --slices=$slices --delete" >&2
}

give_up() {
  echo "error: $*" >&2
  left_behind
  exit 1
}

same_type() {
  local found
  [[ -n $type ]] || return 0
  found=$(gcloud compute tpus tpu-vm describe "${nodes[0]}" "${where[@]}" '--format=value(acceleratorType)')
  [[ ${found##*/} == "$type" ]] || fail "${nodes[0]}: is a ${found##*/}, not a $type: another NAME, or --delete it"
}

# Leaves slices that are ready: those that are there, or those that are queued for.
create() {
  local found slice told='' start=$SECONDS
  if $dry_run; then
    request
    return
  fi
  while true; do
    if [[ $(state) == READY ]]; then
      same_type
      return
    fi
    found=$(queue_state)
    case $found in
      '' | ACTIVE | SUSPENDED | FAILED)
        # Asked again: meanwhile a request may have become ACTIVE, and its slices ready.
        slice=$(state)
        if [[ $slice == READY ]]; then
          continue
        elif [[ $slice =~ ^(CREATING|STARTING|RESTARTING|REPAIRING)$ ]]; then
          found=$slice
        elif [[ $found == FAILED && -n $told ]]; then
          give_up "$queue: FAILED; gcloud compute tpus queued-resources describe $queue ${where[*]} says why"
        elif [[ $found != ACTIVE || -n $slice ]]; then # else its slices are still to appear
          [[ -z $found && -z $slice ]] || remove
          request
          found=REQUESTED
        fi
        ;;
    esac
    [[ $found == "$told" ]] || echo "$queue: $found" >&2
    told=$found
    ((SECONDS - start < seconds)) || give_up "$queue: still $found after $wait"
    sleep "${LENEXT_POLL_SECONDS:-30}"
  done
}

# TPU VMs come with an older Python than this project's; uv brings one.
ship() {
  local archive=$1 node
  run git archive --format=tar.gz "--output=$archive" HEAD || return
  for node in "${nodes[@]}"; do
    vm scp "$archive" "$node:lenext.tar.gz" --worker=all || return
  done
  local steps=(
    'mkdir -p lenext && tar -xzf lenext.tar.gz -C lenext && cd lenext && rm -f exit_code'
    'python3 -m pip install --quiet --user uv'
    '(test -d .venv || python3 -m uv venv --quiet --seed --python 3.11 .venv)'
    '.venv/bin/python -m pip install --quiet -r requirements.txt'
    '.venv/bin/python -m pip install --quiet -c requirements.txt "jax[tpu]" gcsfs google-cloud-storage'
  )
  local all
  all=$(printf ' && %s' "${steps[@]}")
  everywhere "${all# && }"
}

if ! $train; then
  remove
  exit
fi

words=''
[[ $# -eq 0 ]] || words=$(printf ' %q' "$@")
# Workers end each with a code of their own, which gcloud does not hand on: worker 0 keeps its.
training="cd lenext && { .venv/bin/python -m lenext.train --distributed$words; code=\$?; echo \$code > exit_code; exit \$code; }"
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
trap 'left_behind; exit 130' INT
trap 'left_behind; exit 143' TERM
code=1
for ((attempt = 1; attempt <= attempts; attempt++)); do
  create
  if ship "$work/lenext.tar.gz" && everywhere "$training"; then
    code=0
    break
  fi
  code=$(gcloud compute tpus tpu-vm ssh "${nodes[0]}" --worker=0 '--command=cat lenext/exit_code' "${where[@]}" 2>/dev/null || echo lost)
  if [[ $code != 75 && $code != lost && $(state) == READY ]]; then break; fi
  echo "attempt $attempt of $attempts: stopped or preempted; starting again" >&2
  code=75
done
$dry_run || [[ $code == 0 ]] || echo "error: training ended with code $code" >&2
if $delete; then
  remove
else
  $dry_run || left_behind
fi
exit "$code"
