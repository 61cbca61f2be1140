#!/usr/bin/env bash
# Runs a training command, and restarts it from its newest checkpoint until the run is done.
#
#   bash launch/run_until_done.sh [--max-restarts N] [--backoff SECONDS] [--crash-loop N] \
#     deepspeed --num_gpus 8 train.py --config configs/small.yaml [key=value …]
#
# --max-restarts N   give up after N restarts (100)
# --backoff SECONDS  wait before the first restart; doubles with each failure in a row, up to 300 s (5)
# --crash-loop N     give up after N failures in a row, each within 60 s of its start (5)
#
# It exits with the command's exit code. It does not restart after 0 (done), 75 (stopped on request), 2 (a mistake of
# the user) and 3 (the guard gave up): the last two would recur. SIGTERM, SIGINT and SIGUSR1 to this script ask the ranks
# of this host to stop: they write a checkpoint and exit with 75.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

max_restarts=100 backoff=5 crash_loop=5
early_seconds=60 longest_backoff=300
while [ $# -gt 0 ]; do
  case $1 in
    --max-restarts) max_restarts=$2 && shift 2 ;;
    --backoff) backoff=$2 && shift 2 ;;
    --crash-loop) crash_loop=$2 && shift 2 ;;
    -h | --help) sed -n '2,/^set /{/^#/s/^# \{0,1\}//p}' "$0" && exit 0 ;;
    --) shift && break ;;
    -*) echo "error: unknown option $1; see bash launch/run_until_done.sh --help" >&2 && exit 2 ;;
    *) break ;;
  esac
done
if [ $# -eq 0 ]; then
  echo "usage: bash launch/run_until_done.sh [--max-restarts N] [--backoff SECONDS] [--crash-loop N] COMMAND…" >&2
  exit 2
fi

# shellcheck disable=SC1091
[ ! -f .venv/bin/activate ] || source .venv/bin/activate

child='' asked=''

# Prints the process id of a process and those of its descendants.
family() {
  local pid=$1 task
  echo "$pid"
  for task in "/proc/$pid/task/"*/children; do
    [ -r "$task" ] || continue
    for pid in $(<"$task"); do family "$pid"; done
  done
}

# Signals the ranks themselves: SIGUSR1 would kill the launcher, and on SIGTERM it kills its ranks after 30 s.
ask_to_stop() {
  local pid ranks=()
  asked=yes
  [ -n "$child" ] || return 0
  for pid in $(family "$child"); do
    if tr '\0' '\n' <"/proc/$pid/cmdline" 2>/dev/null | grep -q '^--local_rank='; then
      ranks+=("$pid")
    fi
  done
  # SIGTERM ends a launcher that has not started its ranks; without a launcher, the command is the rank.
  kill -s "$([ ${#ranks[@]} -gt 0 ] && echo USR1 || echo TERM)" "${ranks[@]:-$child}" 2>/dev/null || true
}
trap ask_to_stop TERM INT USR1

# `deepspeed` also exits with 0 when its launcher was killed, so ask train.py, if the command runs it.
is_done() {
  while [ $# -gt 0 ] && [ "$(basename -- "$1")" != train.py ]; do shift; done
  [ $# -eq 0 ] || python "$@" --is-done
}

restarts=0 early=0 wait_seconds=$backoff
while true; do
  began=$SECONDS code=0
  # In a process group of its own, so that Ctrl-C in a terminal reaches this script alone.
  set -m
  "$@" --restart &
  child=$!
  set +m
  # A trapped signal interrupts `wait` while the child still runs.
  while kill -0 "$child" 2>/dev/null; do wait "$child" && code=0 || code=$?; done
  child=
  if [ "$code" -eq 0 ] && ! is_done "$@"; then
    code=137
  fi
  case $code in
    0 | 2 | 3 | 75) exit "$code" ;;
  esac
  if [ -n "$asked" ]; then
    exit "$code"
  fi
  if [ $((SECONDS - began)) -lt "$early_seconds" ]; then
    early=$((early + 1))
  else
    early=0 wait_seconds=$backoff
  fi
  if [ "$early" -ge "$crash_loop" ]; then
    echo "run_until_done: exit code $code; $early failures in a row within $early_seconds s of the start: giving up" >&2
    exit "$code"
  fi
  if [ "$restarts" -ge "$max_restarts" ]; then
    echo "run_until_done: exit code $code after $restarts restarts: giving up" >&2
    exit "$code"
  fi
  restarts=$((restarts + 1))
  echo "run_until_done: exit code $code; restart $restarts of $max_restarts in $wait_seconds s" >&2
  sleep "$wait_seconds" &
  wait $! || true
  [ -z "$asked" ] || exit 75
  wait_seconds=$((wait_seconds * 2 > longest_backoff ? longest_backoff : wait_seconds * 2))
done
