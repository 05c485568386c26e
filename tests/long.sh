#!/usr/bin/env bash
# The tests that take minutes: kills, restarts, several machines. Prints each as it begins and ends, and a summary with
# times; what this machine cannot show is skipped with a reason. Damaged files are tried by the hundred, where a quick
# run of the tests tries a dozen. Half an hour on two idle cores.
#   tests/long.sh [pytest options, such as -k kills]      # PYTHON=... chooses the python
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

python=${PYTHON:-$([ -x .venv/bin/python ] && echo .venv/bin/python || echo python3)}
export FUZZ_EXAMPLES=${FUZZ_EXAMPLES:-200}
exec "$python" -m pytest tests/long tests/faults/test_fuzz.py -m "not gpu" -v -s -rs -o faulthandler_timeout=0 \
  --durations=0 --durations-min=1 "$@"
