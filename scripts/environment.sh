# Sourced by demo.sh and test.sh: creates .venv and installs the project; reinstalls if setup.py changed.
# Usage: source scripts/environment.sh [extra]
extra=${1:-}
python=${PYTHON:-}
if [ -z "$python" ]; then
  for candidate in python3.11 python3.12 python3; do
    if command -v "$candidate" >/dev/null 2>&1 &&
      "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; then
      python=$candidate
      break
    fi
  done
fi
if [ -z "$python" ]; then
  echo "no Python 3.11 or newer found; set PYTHON=/path/to/python3.11" >&2
  exit 1
fi
stamp=".venv/installed${extra:+-$extra}"
wanted=$(cksum setup.py pyproject.toml)
if [ ! -f "$stamp" ] || [ "$(cat "$stamp")" != "$wanted" ]; then
  echo "installing into .venv with $("$python" --version 2>&1) ..."
  [ -x .venv/bin/python ] || "$python" -m venv .venv
  .venv/bin/python -m pip install --quiet --disable-pip-version-check --editable ".${extra:+[$extra]}"
  echo "$wanted" >"$stamp"
fi
