#!/usr/bin/env bash
# Creates .venv with pinned requirements: `source launch/setup.sh requirements.txt [requirements-dev.txt …]`.
# Installs only lists that changed since the last time. The current folder must be the project's; the virtual environment
# is active afterwards. A Python that has the requirements already, as in the project's image, is used as it is.

# Whether a Python has everything that the lists of requirements name, in these versions.
has_requirements() {
  "$@" 2>/dev/null <<'PYTHON'
import re, sys
from importlib.metadata import version
from pathlib import Path
for file in sys.argv[1:]:
    for name, pin in re.findall(r"^([A-Za-z0-9._-]+)==(\S+)", Path(file).read_text(encoding="utf-8"), re.MULTILINE):
        assert version(name).partition("+")[0] == pin
PYTHON
}

setup_environment() {
  local python=${PYTHON:-python3} installed=.venv/.installed list output changed=()
  if ! "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
    echo "error: $python is missing or older than Python 3.11; set PYTHON=/path/to/python3.11" >&2
    return 2
  fi
  if [ ! -e .venv ] && has_requirements "$python" - "$@"; then
    return 0
  fi
  if [ ! -x .venv/bin/python ] && ! output=$("$python" -m venv .venv 2>&1); then
    rm -rf .venv
    if [ ! -w . ]; then
      echo "error: no permission to create .venv in $PWD: use a checkout of your own, or a Python that has $*" >&2
    elif [[ $output == *ensurepip* ]]; then
      local sudo=sudo
      [ "$(id -u)" -ne 0 ] || sudo='' # as in most containers
      echo "error: $python has no venv module; on Debian and Ubuntu: ${sudo:+sudo }apt-get install python3-venv" >&2
    else
      echo "error: $python cannot create a virtual environment in $PWD/.venv: ${output##*$'\n'}" >&2
    fi
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
