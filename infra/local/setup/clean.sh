#!/usr/bin/env bash
# Ends every stack of this folder, then removes all that setup, the stacks and the tools made in it.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source=infra/local/setup/lib.sh
source "$here/lib.sh"
cd "$here/../../.."

main() {
    local state_dir
    for state_dir in .mlops/stacks/*/; do
        [ -e "$state_dir/run/lock" ] || continue
        if flock -n "$state_dir/run/lock" true; then continue; fi  # nobody runs it
        [ -x .venv/bin/mlops ] || fail "the stack in $state_dir cannot be ended" "no .venv here" "make setup, then make clean"
        say "ending the stack in $state_dir"
        .venv/bin/mlops local down --state-dir "$state_dir"
    done
    no_mounts_below .mlops
    say "removing .venv, .mlops, dist and the tools' caches"
    rm -rf --one-file-system .venv .mlops dist .pytest_cache .ruff_cache .hypothesis .import_linter_cache
    find . -name __pycache__ -type d -not -path './.git/*' -prune -exec rm -rf {} +
}

# A mount that is still there would be emptied with the folder it is on.
no_mounts_below() {
    local folder held
    [ -d "$1" ] || return 0
    folder=$(cd "$1" && pwd -P)
    held=$(awk -v below="$folder/" 'index($5, below) == 1 { print $5 }' /proc/self/mountinfo)
    [ -z "$held" ] || fail "something is still mounted below $1" "$held" "make down, then make clean"
}

main "$@"
