#!/usr/bin/env bash
# Resolves requirements/*.txt anew from pyproject.toml and requirements/*.in: exact versions with hashes, no index host.
#
#   infra/local/setup/lock.sh [--upgrade]     without --upgrade, versions that still fit stay as they are
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source=infra/local/setup/lib.sh
source "$here/lib.sh"
cd "$here/../../.."

main() {
    "$here/python_environments.sh" uv
    # One resolution for Linux and every Python from 3.11; torch is taken out of it (requirements/torch.txt says why).
    local compile=(.mlops/tools/uv/bin/uv pip compile -q --universal --python-version 3.11 --generate-hashes
        --no-emit-index-url --no-emit-find-links --override requirements/without-torch.txt
        --custom-compile-command "make lock" "$@")
    say "main: everything that our code imports on the control side, plus the MLflow server and developer tools"
    "${compile[@]}" pyproject.toml --all-extras requirements/main.in -o requirements/main.txt
    say "base: what the wheel needs without any extra, at the versions of main"
    "${compile[@]}" pyproject.toml --constraint requirements/main.txt -o requirements/base.txt
    say "image: what a node needs, at the versions of main"
    "${compile[@]}" pyproject.toml --extra train --constraint requirements/main.txt requirements/torch-needs.in -o requirements/image.txt
    say "openstack: the services of the embedded stack that cannot share an environment with Airflow"
    "${compile[@]}" requirements/openstack.in -o requirements/openstack.txt
    say "compute: Nova and what it needs, for the profile of that name"
    "${compile[@]}" requirements/compute.in -o requirements/compute.txt
    say "vllm: what the serving host needs"
    "${compile[@]}" --override requirements/without-vision.txt requirements/vllm.in -o requirements/vllm.txt
    say "mutation: what tests/mutation/run.sh adds to main"
    "${compile[@]}" --no-deps requirements/mutation.in -o requirements/mutation.txt
    say "uv: the installer"
    "${compile[@]}" requirements/uv.in -o requirements/uv.txt
}

main "$@"
