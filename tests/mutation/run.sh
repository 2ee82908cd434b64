#!/usr/bin/env bash
# Mutation testing of the decisions: changes each line of them a little, and says which changes no test notices.
#
#   tests/mutation/run.sh [ARGUMENTS OF mutmut run]       such as: --max-children 2 'mlops_sdk.capacity.owned*'
#
# Works on a copy of the tracked files in .mlops/mutation. A run that is cut off goes on where it was, and a later one
# tests again what survived or has changed; remove the folder to begin anew. What it prints at the end is each change
# that survived and, per module, the share that was noticed; fails below 90 %.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
cd "$root"
tools=$root/.mlops/envs/mutation
work=$root/.mlops/mutation

infra/local/setup/python_environments.sh uv
if ! cmp -s requirements/mutation.txt "$tools/made-from.txt"; then
    rm -rf "$tools" "$work"
    .mlops/tools/uv/bin/uv pip install -q -p .venv/bin/python --target "$tools" --no-deps --require-hashes -r requirements/mutation.txt
    cp requirements/mutation.txt "$tools/made-from.txt"
fi
mkdir -p "$work"
find "$work" -mindepth 1 -maxdepth 1 ! -name mutants -exec rm -rf {} +
git ls-files -z -- mlops_sdk benchmarks dags docs hooks operators pipelines tests pyproject.toml |
    xargs -0 cp --parents --preserve=timestamps -t "$work"
cat tests/mutation/mutmut.toml >>"$work/pyproject.toml"
cd "$work"
export PYTHONPATH=$tools
"$root/.venv/bin/python" "$root/tests/mutation/score.py" again
"$root/.venv/bin/python" -m mutmut run "$@"
"$root/.venv/bin/python" "$root/tests/mutation/score.py" tell "$root/tests/mutation/equivalent.txt"
