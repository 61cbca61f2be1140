#!/usr/bin/env bash
# Creates .venv with pinned requirements: `source launch/setup.sh requirements.txt [requirements-dev.txt …]`.
# Installs only lists that changed since the last time. The current folder must be the project's; the virtual environment
# is active afterwards.

setup_environment() {
  local python=${PYTHON:-python3} installed=.venv/.installed list changed=()
  if ! "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
    echo "error: $python is missing or older than Python 3.11; set PYTHON=/path/to/python3.11" >&2
    return 2
  fi
  if [ ! -x .venv/bin/python ] && ! "$python" -m venv .venv; then
    rm -rf .venv
    echo "error: $python cannot create a virtual environment; on Debian and Ubuntu: sudo apt-get install python3-venv" >&2
    return 2
  fi
  # shellcheck disable=SC1091
  source .venv/bin/activate
  for list in "$@"; do
    cmp --silent "$list" "$installed/$list" || changed+=("$list")
  done
  if [ ${#changed[@]} -eq 0 ]; then
    return 0
  fi
  echo "installing ${changed[*]} into .venv (a few minutes the first time)"
  # torch first, by itself: other packages ask for it without a version
  pip install --quiet --disable-pip-version-check "$(grep '^torch==' requirements.txt)" || return 2
  pip install --quiet --disable-pip-version-check "${changed[@]/#/-r}" || return 2
  mkdir -p "$installed"
  cp "${changed[@]}" "$installed"
}

setup_environment "$@"
