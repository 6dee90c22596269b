#!/usr/bin/env bash
# Trains on a slice of Cloud TPU VMs: creates it, ships the code, runs, goes on after preemption.
set -euo pipefail

usage() {
  cat <<'TEXT'
launch/tpu_pod.sh NAME --zone=ZONE [OPTIONS] -- ARGS
launch/tpu_pod.sh NAME --zone=ZONE --delete

Runs `python -m lenext.train --distributed ARGS` on all workers of the TPU VM slice NAME, which is
created if it is not there; the committed code (HEAD) and what requirements.txt pins are installed
on each. Logs come to this terminal. A run that was preempted is started again, on a new slice if
need be.

  --type=TYPE         accelerator type of a new slice (default: v5litepod-16)
  --image=VERSION     its software version (default: v2-alpha-tpuv5-lite)
  --spot              a new slice may be preempted, for less money
  --project=PROJECT   of Google Cloud (default: gcloud's own)
  --bucket=BUCKET     Cloud Storage bucket to mount as runs/ on every worker (by gcsfuse). All workers
                      write checkpoints into --workdir, so it has to lie on a disk that they share
                      and that outlives the slice: runs/… with this option
  --attempts=N        starts at most so often (default: 20)
  --delete            deletes the slice at the end; without -- ARGS at once
  --dry-run           prints the commands for a slice that is not there yet, and runs nothing
  --help              prints this
TEXT
}

fail() {
  echo "error: $*" >&2
  exit 2
}

name='' zone='' type=v5litepod-16 image=v2-alpha-tpuv5-lite spot=false project='' bucket=''
attempts=20 delete=false dry_run=false train=false
while [[ $# -gt 0 ]]; do
  case $1 in
    --) train=true; shift; break ;;
    -h | --help) usage; exit 0 ;;
    --zone=*) zone=${1#*=} ;;
    --type=*) type=${1#*=} ;;
    --image=*) image=${1#*=} ;;
    --project=*) project=${1#*=} ;;
    --bucket=*) bucket=${1#*=} ;;
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
$train || $delete || fail "should end with -- and the arguments of lenext.train"
for command in gcloud git; do
  $dry_run || command -v "$command" >/dev/null || fail "$command: should be installed"
done

where=("--zone=$zone")
[[ -z $project ]] || where+=("--project=$project")

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

everywhere() {
  vm ssh "$name" --worker=all "--command=$1"
}

state() {
  gcloud compute tpus tpu-vm describe "$name" "${where[@]}" '--format=value(state)' 2>/dev/null || true
}

remove() {
  vm delete "$name" --quiet
}

# Leaves a slice that is ready; one that was preempted makes room.
create() {
  local found=''
  $dry_run || found=$(state)
  [[ $found != READY ]] || return 0
  [[ -z $found ]] || remove
  local options=("--accelerator-type=$type" "--version=$image")
  ! $spot || options+=(--spot)
  vm create "$name" "${options[@]}"
}

# TPU VMs come with an older Python than this project's; uv brings one.
ship() {
  local archive=$1
  run git archive --format=tar.gz "--output=$archive" HEAD
  vm scp "$archive" "$name:lenext.tar.gz" --worker=all
  local steps=(
    'mkdir -p lenext && tar -xzf lenext.tar.gz -C lenext && cd lenext'
    'python3 -m pip install --quiet --user uv'
    '(test -d .venv || python3 -m uv venv --quiet --seed --python 3.11 .venv)'
    '.venv/bin/python -m pip install --quiet -r requirements.txt'
    '.venv/bin/python -m pip install --quiet -c requirements.txt "jax[tpu]"'
  )
  if [[ -n $bucket ]]; then
    steps+=("mkdir -p runs && (mountpoint -q runs || gcsfuse --implicit-dirs $(printf %q "$bucket") runs)")
  fi
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
code=1
for ((attempt = 1; attempt <= attempts; attempt++)); do
  create
  ship "$work/lenext.tar.gz"
  if everywhere "$training"; then
    code=0
    break
  fi
  code=$(gcloud compute tpus tpu-vm ssh "$name" --worker=0 '--command=cat lenext/exit_code' "${where[@]}" 2>/dev/null || echo lost)
  if [[ $code != 75 && $code != lost && $(state) == READY ]]; then break; fi
  echo "attempt $attempt of $attempts: stopped or preempted; starting again" >&2
  code=75
done
$dry_run || [[ $code == 0 ]] || echo "error: training ended with code $code" >&2
! $delete || remove
exit "$code"
