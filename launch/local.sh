#!/usr/bin/env bash
# Trains in several processes on this machine, as a pod does on its hosts.
set -euo pipefail

usage() {
  cat <<'TEXT'
launch/local.sh N [--devices=D] [--dry-run] -- ARGS

Runs `python -m lenext.train ARGS` in N processes that train together, on this machine's CPU:

  launch/local.sh 2 -- --config=configs/quickstart.py --workdir=runs/two

  --devices=D   virtual CPU devices in each process (default: 1)
  --dry-run     prints the commands and runs nothing
  --help        prints this

PYTHON names the interpreter (default: .venv/bin/python). Process 0 writes to the terminal; of the
others only what they say of an error. The exit code is 75 for a run that was stopped (SIGTERM is
handed on) and goes on when it is started again, and 130 for one stopped by Ctrl-C, of which a second
one ends at once; for a process that failed, its own.

LENEXT_HEARTBEAT_SECONDS says how long a process may be silent until it is lost (default: 30).
TEXT
}

fail() {
  echo "error: $*" >&2
  exit 2
}

processes='' devices=1 dry_run=false
while [[ $# -gt 0 && $1 != -- ]]; do
  case $1 in
    -h | --help) usage; exit 0 ;;
    --dry-run) dry_run=true ;;
    --devices=*) devices=${1#*=} ;;
    -*) fail "option $1: choose from --devices=D, --dry-run, --help" ;;
    *) [[ -z $processes ]] || fail "argument $1: arguments of lenext.train come after --"
       processes=$1 ;;
  esac
  shift
done
[[ $processes =~ ^[1-9][0-9]*$ ]] || fail "N: should be the number of processes, not '$processes'"
[[ $devices =~ ^[1-9][0-9]*$ ]] || fail "--devices=$devices: should be a number from 1"
[[ ${1:-} == -- ]] || fail "should end with -- and the arguments of lenext.train"
shift

python=${PYTHON:-.venv/bin/python}
port=${LENEXT_PORT:-}
while [[ -z $port ]]; do
  port=$((20000 + RANDOM % 12000))  # from 32768 on they are of whoever calls others
  # Somebody answers there: taken.
  if (: <"/dev/tcp/127.0.0.1/$port") 2>/dev/null; then port=''; fi
done

export JAX_PLATFORMS=cpu JAX_NUM_PROCESSES=$processes JAX_COORDINATOR_ADDRESS=127.0.0.1:$port
export XLA_FLAGS="${XLA_FLAGS:-} --xla_force_host_platform_device_count=$devices"
command=("$python" -m lenext.train --distributed "$@")

if $dry_run; then
  for ((i = 0; i < processes; i++)); do
    printf 'JAX_PLATFORMS=%s JAX_COORDINATOR_ADDRESS=%s JAX_NUM_PROCESSES=%s JAX_PROCESS_ID=%s XLA_FLAGS=%q' \
      "$JAX_PLATFORMS" "$JAX_COORDINATOR_ADDRESS" "$JAX_NUM_PROCESSES" "$i" "$XLA_FLAGS"
    printf ' %q' "${command[@]}"
    echo
  done
  exit 0
fi

# A signal may come at any time: to a process that has just started, it goes once more.
pids=() signal=''
hand_on() {
  signal=$1
  [[ ${#pids[@]} == 0 ]] || kill "-$1" "${pids[@]}" 2>/dev/null || true
}
trap 'hand_on TERM' TERM
interrupted=false
interrupt() {  # what a script starts by & ignores SIGINT
  if $interrupted; then hand_on KILL; else interrupted=true; hand_on TERM; fi
}
trap interrupt INT
logs=$(mktemp -d)
trap 'rm -rf "$logs"' EXIT
for ((i = 0; i < processes; i++)); do
  [[ -z $signal ]] || break
  if [[ $i == 0 ]]; then
    JAX_PROCESS_ID=$i "${command[@]}" &
  else
    JAX_PROCESS_ID=$i "${command[@]}" >/dev/null 2>"$logs/$i" &
  fi
  pids+=($!)
done
[[ -z $signal ]] || hand_on "$signal"
[[ ${#pids[@]} -gt 0 ]] || exit 143

# Ends when all have ended. After a failure the others get some seconds to end by themselves, which
# they do as soon as they miss the heartbeat of the one that is lost.
grace=$((${LENEXT_HEARTBEAT_SECONDS:-30} + 15))
code=0 deadline=0
left=("${!pids[@]}")
while [[ ${#left[@]} -gt 0 ]]; do
  still=()
  for i in "${left[@]}"; do
    if kill -0 "${pids[i]}" 2>/dev/null; then
      still+=("$i")
      continue
    fi
    ended=0
    wait "${pids[i]}" || ended=$?
    [[ $ended != 0 ]] || continue
    [[ $code != 0 ]] || deadline=$((SECONDS + grace))
    # 75 says that another was lost, or all were told to stop: any other code says more.
    if [[ $code == 0 || $code == 75 ]]; then code=$ended; fi
    echo "process $i of $processes ended with code $ended" >&2
    [[ $i == 0 ]] || sed "s/^/process $i: /" "$logs/$i" >&2
  done
  left=("${still[@]}")
  if [[ ${#left[@]} -gt 0 ]]; then
    if [[ $code != 0 && $SECONDS -ge $deadline ]]; then
      for i in "${left[@]}"; do kill -KILL "${pids[i]}" 2>/dev/null || true; done
    fi
    sleep 0.2
  fi
done
if $interrupted && [[ $code == 75 ]]; then code=130; fi
exit "$code"
