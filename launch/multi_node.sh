#!/usr/bin/env bash
# Trains on several hosts with the deepspeed launcher. Run it on one of them.
#
#   cp launch/hostfile.example launch/hostfile   # then name your hosts in it
#   bash launch/multi_node.sh launch/hostfile --config configs/small.yaml [--resume] [key=value …]
#
# Every host needs the same checkout, virtual environment and data at the same paths, and passwordless ssh from this
# host. `training.output_dir` must be on a file system that all hosts share. See docs/cluster.md.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

if [ $# -lt 2 ] || [ ! -f "$1" ]; then
  echo "usage: bash launch/multi_node.sh HOSTFILE --config FILE [--resume] [key=value …]; see launch/hostfile.example" >&2
  exit 2
fi
hostfile=$1
shift
first_host=$(awk 'NF && $1 !~ /^#/ {print $1; exit}' "$hostfile")

# shellcheck disable=SC1091
[ ! -f .venv/bin/activate ] || source .venv/bin/activate
exec deepspeed --quiet --hostfile "$hostfile" --master_addr "${MASTER_ADDR:-$first_host}" \
  --master_port "${MASTER_PORT:-29500}" train.py "$@"
