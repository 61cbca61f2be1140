#!/usr/bin/env bash
# Makes .venv with the pinned requirements, once: `source launch/setup.sh requirements.txt [requirements-dev.txt …]`.
# Leaves the virtual environment active. The current folder must be the project's.

setup_environment() {
  local python=${PYTHON:-python3} stamp=.venv/.requirements wanted
  if ! "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
    echo "error: $python is missing or older than Python 3.11; set PYTHON=/path/to/python3.11" >&2
    return 2
  fi
  if [ ! -x .venv/bin/python ] && ! "$python" -m venv .venv; then
    rm -rf .venv
    echo "error: $python cannot make a virtual environment; on Debian and Ubuntu: sudo apt-get install python3-venv" >&2
    return 2
  fi
  # shellcheck disable=SC1091
  source .venv/bin/activate
  wanted=$(cat "$@")
  if [ "$(cat "$stamp" 2>/dev/null)" = "$wanted" ]; then
    return 0
  fi
  echo "installing $* into .venv (first time: a few minutes)"
  # torch first, by itself: other packages ask for it without a version
  pip install --quiet --disable-pip-version-check "$(grep '^torch==' requirements.txt)" || return 2
  pip install --quiet --disable-pip-version-check "${@/#/-r}" || return 2
  printf '%s\n' "$wanted" >"$stamp"
}

setup_environment "$@"
