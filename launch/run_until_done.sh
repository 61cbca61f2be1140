#!/usr/bin/env bash
# Runs a training command, and restarts it from its newest checkpoint until the run is done.
#
#   bash launch/run_until_done.sh [--max-restarts N] [--backoff SECONDS] [--crash-loop N] \
#     deepspeed --quiet --num_gpus 8 train.py --config configs/small.yaml [key=value …]
#
# --max-restarts N   give up after N restarts (100)
# --backoff SECONDS  wait before the first restart; doubles with each failure in a row, up to 300 s (5)
# --crash-loop N     give up after N failures in a row, each within 60 s of its start (5)
#
# Paths are relative to the current folder; train.py and launch/multi_node.sh are found from any folder.
#
# It exits with the command's exit code. It does not restart after 0 (done), 75 (stopped on request), 3 (the guard gave
# up), 2 (a mistake of the user), 64, 77 and 78 (wrong usage, no permission, wrong configuration), 126 and 127 (the
# command cannot be run): those would recur. At the end it repeats the reason of the first failure. SIGTERM, SIGINT and
# SIGUSR1 to this script ask the ranks of this host to stop: they write a checkpoint and exit with 75.
set -euo pipefail
project=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)

max_restarts=100 backoff=5 crash_loop=5
early_seconds=60 longest_backoff=300

# Prints a usage error.
refuse() {
  echo "error: $1; see bash launch/run_until_done.sh --help" >&2
  exit 2
}

while [ $# -gt 0 ]; do
  case $1 in
    --max-restarts | --backoff | --crash-loop)
      [[ ${2-} =~ ^[0-9]+$ ]] || refuse "$1 needs a whole number, not '${2-}'"
      case $1 in
        --max-restarts) max_restarts=$2 ;;
        --backoff) backoff=$2 ;;
        --crash-loop) crash_loop=$2 ;;
      esac
      shift 2
      ;;
    -h | --help) sed -n '2,/^set /{/^#/s/^# \{0,1\}//p}' "$0" && exit 0 ;;
    --) shift && break ;;
    -*) refuse "unknown option $1" ;;
    *) break ;;
  esac
done
if [ $# -eq 0 ]; then
  echo "usage: bash launch/run_until_done.sh [--max-restarts N] [--backoff SECONDS] [--crash-loop N] COMMAND…" >&2
  exit 2
fi

# The project's own programs are found from any folder; every other word is as it was typed.
command=()
for word in "$@"; do
  case $word in
    train.py | ./train.py | launch/multi_node.sh)
      [ -e "$word" ] || word=$project/${word#./}
      ;;
  esac
  command+=("$word")
done

# shellcheck disable=SC1091
[ ! -f "$project/.venv/bin/activate" ] || source "$project/.venv/bin/activate"

child='' asked=''
errors=$(mktemp)
trap 'rm -f "$errors"' EXIT

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
  while [ $# -gt 0 ]; do
    case $(basename -- "$1") in
      train.py) shift && break ;;
      multi_node.sh) shift 2 && break ;;
    esac
    shift
  done
  [ $# -eq 0 ] || python "$project/train.py" "$@" --is-done
}

# Prints the line of the command's error output that says best why it failed: an error of this project, the exception
# that ended a program, or the last line.
reason() {
  grep -m 1 -E '(^|: )error: ' "$errors" || grep -E '^([^ ]*: )?[A-Za-z_.]*(Error|Exception|Interrupt)\b' "$errors" | tail -n 1 |
    grep . || grep . "$errors" | tail -n 1
}

# Ends with an exit code, and says first what went wrong at first: the last failure may only follow from it.
finish() {
  [ -z "$first" ] || [ "$restarts" -eq 0 ] || echo "run_until_done: the first failure: $first" >&2
  exit "$1"
}

restarts=0 early=0 wait_seconds=$backoff first=''
while true; do
  began=$SECONDS code=0
  # In a process group of its own, so that Ctrl-C in a terminal reaches this script alone.
  set -m
  if [ -t 2 ]; then # a progress bar needs the terminal
    copier=''
    "${command[@]}" --restart &
    child=$!
  else
    exec {copy}> >(trap '' INT TERM USR1 && exec tee "$errors" >&2)
    copier=$!
    "${command[@]}" --restart 2>&"$copy" {copy}>&- &
    child=$!
    exec {copy}>&-
  fi
  set +m
  # A trapped signal interrupts `wait` while the child still runs. bash remembers the status of one that has ended.
  while kill -0 "$child" 2>/dev/null; do wait "$child" || true; done
  wait "$child" || code=$?
  child=
  if [ "$code" -eq 0 ] && ! is_done "${command[@]}"; then
    code=137
  fi
  # Wait for the end of its output, though not for processes that it left behind.
  [ -z "$copier" ] || timeout 2 tail --pid="$copier" --sleep-interval 0.05 --follow /dev/null || true
  if [ "$code" -ne 0 ] && [ -z "$first" ]; then
    why=$(reason || true)
    first="exit code $code${why:+: $why}"
  fi
  case $code in
    0) exit 0 ;;
    2 | 3 | 64 | 75 | 77 | 78 | 126 | 127) finish "$code" ;;
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
    finish "$code"
  fi
  if [ "$restarts" -ge "$max_restarts" ]; then
    echo "run_until_done: exit code $code after $restarts restarts: giving up" >&2
    finish "$code"
  fi
  restarts=$((restarts + 1))
  echo "run_until_done: exit code $code; restart $restarts of $max_restarts in $wait_seconds s" >&2
  sleep "$wait_seconds" &
  wait $! || true
  [ -z "$asked" ] || exit 75
  wait_seconds=$((wait_seconds * 2 > longest_backoff ? longest_backoff : wait_seconds * 2))
done
