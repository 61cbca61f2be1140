#!/usr/bin/env bash
# Sets up, then lints, type-checks and tests: `bash launch/test.sh`, or with pytest's own arguments
# (`bash launch/test.sh tests/model`, `bash launch/test.sh -m long` for the checks that take minutes each).
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

# shellcheck source=launch/setup.sh
source launch/setup.sh requirements.txt requirements-dev.txt

bash launch/lint.sh
export CUDA_VISIBLE_DEVICES="" DS_ACCELERATOR=cpu
# Two at a time: many tests wait for processes of their own, which have two ranks as a rule.
exec python -m pytest --numprocesses 2 --dist worksteal --durations=10 "$@"
