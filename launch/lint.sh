#!/usr/bin/env bash
# All checks that run no test, on the whole tree: the one list of them. launch/test.sh, the pre-commit hook and CI call it.
#
#   bash launch/lint.sh
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

# shellcheck disable=SC1091
[ ! -f .venv/bin/activate ] || source .venv/bin/activate
ruff check .
ruff format --check .
mypy
shellcheck -x launch/*.sh .ci/run
hadolint Dockerfile
codespell
