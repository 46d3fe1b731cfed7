#!/usr/bin/env bash
# The test command: makes .venv with everything the tests need, then runs the linter and the whole suite.
# PYTHON chooses the interpreter (default python3.11); arguments go to pytest.
set -euo pipefail
cd "$(dirname "$0")/.."
source scripts/environment.sh test
.venv/bin/ruff check .
.venv/bin/ruff format --check .
exec .venv/bin/python -m pytest -q -n 2 --dist=worksteal "$@"
