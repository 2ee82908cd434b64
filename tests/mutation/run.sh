#!/usr/bin/env bash
# Mutation testing of the decisions: changes each line of them a little, and says which changes no test notices.
#
#   tests/mutation/run.sh [GROUP]...       default: all groups of groups.toml
#
# Works on copies of the tracked files in .mlops/mutation. A run that is cut off goes on where it was, and a later one
# tests again what survived or has changed; remove the folder to begin anew. It prints each change that survived and, by
# module, the share that was noticed, and fails below 90 %.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
cd "$root"
tools=$root/.mlops/envs/mutation

infra/local/setup/python_environments.sh uv
if ! cmp -s requirements/mutation.txt "$tools/made-from.txt"; then
    rm -rf "$tools"
    .mlops/tools/uv/bin/uv pip install -q -p .venv/bin/python --target "$tools" --no-deps --require-hashes -r requirements/mutation.txt
    cp requirements/mutation.txt "$tools/made-from.txt"
fi
# mutmut signals the numbers of processes that may have ended long ago: it must see none but its own
PYTHONPATH=$tools exec unshare --pid --fork --mount-proc --kill-child .venv/bin/python tests/mutation/mutate.py "$@"
