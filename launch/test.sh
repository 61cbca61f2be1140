#!/usr/bin/env bash
# Installs the requirements, then lints, type-checks and tests: `bash launch/test.sh`, or with arguments of pytest
# (`bash launch/test.sh tests/model`; `bash launch/test.sh -m long` for the tests that take minutes each).
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

# shellcheck source=launch/setup.sh
source launch/setup.sh requirements.txt requirements-dev.txt

bash launch/lint.sh
export CUDA_VISIBLE_DEVICES="" DS_ACCELERATOR=cpu
# Two at a time: many tests start processes of their own, usually two ranks.
exec python -m pytest --numprocesses 2 --dist worksteal --durations=10 "$@"
