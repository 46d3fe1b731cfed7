# Sourced by demo.sh and test.sh: creates $venv and installs the project; reinstalls if setup.py changed.
# Usage: source scripts/environment.sh [extras]
# PYTHON chooses the interpreter. JAX=lowest installs the oldest jax that setup.py allows into
# .venv-lowest. JAX=newest installs the newest release of everything into .venv-newest, in every run.
extras=${1:-}
python=${PYTHON:-}
case ${JAX:-} in
  "") candidates="python3.11 python3.12 python3.13 python3" ;;
  lowest) candidates="python3.11 python3.12" ;;
  newest) candidates="python3.13 python3.12" ;; # jax 0.11 and later need Python 3.12
  *) echo "JAX=$JAX: choose lowest or newest, or leave it unset" >&2; exit 1 ;;
esac
venv=.venv${JAX:+-$JAX}
if [ -z "$python" ]; then
  for candidate in $candidates; do
    if command -v "$candidate" >/dev/null 2>&1 &&
      "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; then
      python=$candidate
      break
    fi
  done
fi
if [ -z "$python" ]; then
  echo "none of $candidates found; set PYTHON=/path/to/python" >&2
  exit 1
fi
stamp="$venv/installed${extras:+-$extras}"
wanted=$(cksum setup.py pyproject.toml)
if [ "${JAX:-}" = newest ] || [ ! -f "$stamp" ] || [ "$(cat "$stamp")" != "$wanted" ]; then
  echo "installing into $venv with $("$python" --version 2>&1) ..."
  [ -x "$venv/bin/python" ] || "$python" -m venv "$venv"
  requested=(--editable ".${extras:+[$extras]}")
  case ${JAX:-} in
    lowest) requested+=("jax==$(sed -n 's/.*"jax>=\([0-9.]*\),.*/\1/p' setup.py)") ;;
    newest) requested+=(--upgrade --upgrade-strategy=eager) ;;
  esac
  "$venv/bin/python" -m pip install --quiet --disable-pip-version-check "${requested[@]}"
  echo "$wanted" >"$stamp"
fi
