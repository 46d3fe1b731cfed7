#!/usr/bin/env bash
# Creates .venv with everything the tests need, then runs the linter and the test suite.
# --slow adds tests that take minutes. PYTHON chooses the interpreter (default python3.11). Other
# arguments go to pytest.
set -euo pipefail
cd "$(dirname "$0")/.."
source scripts/environment.sh test
.venv/bin/ruff check .
.venv/bin/ruff format --check .
selection=(-m "not slow")
arguments=()
for argument in "$@"; do
  if [ "$argument" = --slow ]; then selection=(); else arguments+=("$argument"); fi
done
exec .venv/bin/python -m pytest -q -n 2 --dist=worksteal ${selection[@]+"${selection[@]}"} \
  ${arguments[@]+"${arguments[@]}"}
