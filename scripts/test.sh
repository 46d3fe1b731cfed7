#!/usr/bin/env bash
# Creates .venv with everything the tests need, then runs the linter and the test suite.
# --slow adds tests that take minutes. PYTHON chooses the interpreter (default python3.11).
# JAX=lowest|newest tests the oldest or the newest jax, in .venv-lowest or .venv-newest.
# Other arguments go to pytest.
set -euo pipefail
cd "$(dirname "$0")/.."
extras=test
selection=(-m "not slow")
arguments=()
for argument in "$@"; do
  if [ "$argument" = --slow ]; then
    selection=() extras=test,test-slow
  else
    arguments+=("$argument")
  fi
done
source scripts/environment.sh "$extras"
"$venv/bin/python" -c 'import jax, sys; print("Python", sys.version.split()[0], "jax", jax.__version__)'
"$venv/bin/ruff" check .
"$venv/bin/ruff" format --check .
exec "$venv/bin/python" -m pytest -q -n 2 --dist=worksteal ${selection[@]+"${selection[@]}"} \
  ${arguments[@]+"${arguments[@]}"}
