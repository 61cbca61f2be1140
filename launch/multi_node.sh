#!/usr/bin/env bash
# Trains on several hosts with the deepspeed launcher. Run it on one of them.
#
#   cp launch/hostfile.example launch/hostfile   # then name your hosts in it
#   bash launch/multi_node.sh launch/hostfile --config configs/small.yaml [--resume] [key=value …]
#
# Every host needs the same checkout, virtual environment and data at the same paths, and passwordless ssh from this
# host. `training.output_dir` must be on a file system that all hosts share. Paths are relative to the current folder,
# which every host needs, too. See docs/cluster.md.
set -euo pipefail
project=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)

if [ $# -lt 2 ]; then
  echo "usage: bash launch/multi_node.sh HOSTFILE --config FILE [--resume] [key=value …]; see launch/hostfile.example" >&2
  exit 2
fi
hostfile=$1
shift

# shellcheck disable=SC1091
[ ! -f "$project/.venv/bin/activate" ] || source "$project/.venv/bin/activate"
hosts=$(PYTHONPATH=$project${PYTHONPATH:+:$PYTHONPATH} python -P -m common.hosts "$hostfile") || exit $?
first_host=${hosts%% *}

# The launcher reads the file in its own way: give it what was read here, in a file that needs no removal.
read_hosts=$(mktemp)
printf '%s\n' "$hosts" >"$read_hosts"
exec 9<"$read_hosts"
rm "$read_hosts"

# Lets ssh notice within a minute that a host is gone: it would wait for ever, and pdsh and deepspeed with it.
export PDSH_SSH_ARGS_APPEND="-o BatchMode=yes -o ConnectTimeout=30 -o ServerAliveInterval=15 -o ServerAliveCountMax=4\
 ${PDSH_SSH_ARGS_APPEND:-}"
# Checked here, since deepspeed would answer with a stack trace, and would start a single remote host's ranks here.
remote=(--force_multi)
case "$hosts" in
  *$'\n'*) ;;
  "localhost slots="* | "127.0.0.1 slots="* | "$(hostname) slots="*) remote=() ;;
esac
if [ ${#remote[@]} -gt 0 ]; then
  for program in ssh pdsh; do
    if ! command -v "$program" >/dev/null; then
      echo "error: $program is not installed here; on Debian and Ubuntu: apt-get install openssh-client pdsh" >&2
      exit 2
    fi
  done
  # shellcheck disable=SC2086
  if ! answer=$(ssh $PDSH_SSH_ARGS_APPEND "$first_host" true 2>&1); then
    echo "error: ssh does not reach $first_host of $hostfile without a password: ${answer##*$'\n'}" >&2
    exit 1 # a host may come back
  fi
fi
exec deepspeed --quiet --no_ssh_check "${remote[@]}" --hostfile /proc/self/fd/9 --master_addr "${MASTER_ADDR:-${first_host##*@}}" \
  --master_port "${MASTER_PORT:-29500}" "$project/train.py" "$@"
