#!/usr/bin/env bash
# Mutation testing of the decisions: changes each line of them a little, and says which changes no test notices.
#
#   tests/mutation/run.sh [ARGUMENTS OF mutmut run]       such as: --max-children 2 'mlops_sdk.capacity.owned*'
#
# Works on a copy of the tracked files in .mlops/mutation; there `mutmut show NAME` prints a change. The last lines are
# what survived and the share that was killed; fails below 90 %.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
cd "$root"
tools=$root/.mlops/envs/mutation
work=$root/.mlops/mutation

infra/local/setup/python_environments.sh uv
if ! cmp -s requirements/mutation.txt "$tools/made-from.txt"; then
    rm -rf "$tools"
    .mlops/tools/uv/bin/uv pip install -q -p .venv/bin/python --target "$tools" --no-deps --require-hashes -r requirements/mutation.txt
    cp requirements/mutation.txt "$tools/made-from.txt"
fi
rm -rf "$work"
mkdir -p "$work"
git ls-files -z -- mlops_sdk benchmarks dags hooks operators pipelines tests pyproject.toml | xargs -0 cp --parents -t "$work"
cat tests/mutation/mutmut.toml >>"$work/pyproject.toml"
cd "$work"
export PYTHONPATH=$tools
# this one compares with the Ironic that is installed, which the copy does not have
export PYTEST_ADDOPTS=--deselect=tests/unit/capacity/test_ironic_states.py::test_the_table_has_exactly_the_states_and_faults_of_the_installed_ironic
"$root/.venv/bin/python" -m mutmut run "$@"
"$root/.venv/bin/python" "$root/tests/mutation/score.py" mutants "$root/tests/mutation/equivalent.txt"
