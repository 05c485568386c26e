#!/usr/bin/env bash
# The tests that take minutes: kills, restarts, several machines. Prints each as it begins and ends, and a summary with
# times; what this machine cannot show is skipped with a reason. Half an hour on two idle cores.
#   tests/long.sh [pytest options, such as -k kills]      # PYTHON=... chooses the python
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

python=${PYTHON:-$([ -x .venv/bin/python ] && echo .venv/bin/python || echo python3)}
exec "$python" -m pytest tests/long -m long -v -s -rs --durations=0 --durations-min=1 "$@"
