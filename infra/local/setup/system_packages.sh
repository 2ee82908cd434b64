#!/usr/bin/env bash
# Installs the distribution's packages that the embedded stack needs, and nothing when all are there.
#
#   infra/local/setup/system_packages.sh [python|stack|compute|postgres]...     default: the first two groups
#
# Lists what is missing and why, asks on a terminal (YES=1, or no terminal: proceeds), and keeps the packages' own
# services from starting, now and at the next boot: the embedded stack starts its own copies, on its own addresses.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source=infra/local/setup/lib.sh
source "$here/lib.sh"

policy=/usr/sbin/policy-rc.d
saved_policy=$policy.saved-by-mlops-setup
marker="# written by infra/local/setup/system_packages.sh of openinfra-mlops; removed when it ends"

# group | package | why
catalogue() {
    cat <<'LIST'
python|ca-certificates|certificates, to download Python packages over HTTPS
stack|ceph-mon|Ceph monitor: the embedded object store keeps its map here
stack|ceph-osd|Ceph OSD: holds the objects, on a sparse file
stack|radosgw|Ceph RGW: the S3 endpoint for checkpoints, models and the journal
stack|ceph-common|ceph and radosgw-admin, to make the S3 user and bucket
stack|openssh-server|every machine of the embedded stack runs its own sshd
stack|haproxy|the front of the serving host: which vLLM gets a request, and which is drained
stack|openmpi-bin|mpirun, the second launcher
stack|iproute2|ip and ss: network namespaces, bridges, who holds a port
stack|nftables|what a machine may reach, and who may reach it
stack|procps|process listings, for status and sweeping
stack|util-linux|unshare, nsenter and flock: namespaces and locks
stack|mount|mounts of a machine: its image, home and scratch
compute|erlang-base|what RabbitMQ runs on; its port mapper, epmd
compute|rabbitmq-server|the message broker between the processes of Nova, Neutron and Cinder
postgres|postgresql|a server of its own for Airflow's tables: `python -m benchmarks waits`, and a test
LIST
}

main() {
    local groups=("$@")
    [ ${#groups[@]} -gt 0 ] || groups=(python stack)
    mapfile -t missing < <(missing_packages "${groups[@]}")
    if [ ${#missing[@]} -eq 0 ]; then
        say "system packages: all there"
        return
    fi
    command -v apt-get >/dev/null || fail "system packages are missing: ${missing[*]%%|*}" \
        "no apt-get on this machine" "use Debian 12 or later (or a container of it), or install them by hand"
    say "system packages that are missing and will be installed with apt-get:"
    local line
    for line in "${missing[@]}"; do printf '[setup]   %-18s %s\n' "${line%%|*}" "${line#*|}"; done
    [ "$(id -u)" -eq 0 ] || fail "system packages cannot be installed" "running as $(id -un), not root" \
        "run the same command as root (the embedded stack makes namespaces and bridges: it needs root too)"
    confirm
    install_packages "${missing[@]%%|*}"
}

# One line per missing package: name|why.
missing_packages() {
    local group package why
    while IFS='|' read -r group package why; do
        [[ " $* " == *" $group "* ]] || continue
        installed "$package" || printf '%s|%s\n' "$package" "$why"
    done < <(catalogue)
    if [[ " $* " == *" python "* ]] && ! "$(find_python)" -c 'import ensurepip, venv' 2>/dev/null; then
        printf 'python3-venv|to make virtual environments: this python3 comes without ensurepip\n'
    fi
}

installed() { [ "$(dpkg-query -W -f='${db:Status-Status}' "$1" 2>/dev/null)" = installed ]; }

confirm() {
    if [ "${YES:-}" = 1 ] || ! [ -t 0 ]; then return; fi
    local answer
    read -r -p "[setup] Install them? Their services will not be started. [Y/n] " answer
    case "$answer" in '' | [Yy]*) ;; *) fail "system packages are missing" "you answered ${answer@Q}" "install them by hand, or run again" ;; esac
}

install_packages() {
    exec 8>/run/lock/openinfra-mlops-packages
    flock 8  # two setups at once: the second waits, then finds everything there
    trap restore_policy EXIT
    trap 'exit 130' INT
    trap 'exit 143' TERM
    refuse_service_starts
    local apt=(apt-get -qq -o DPkg::Lock::Timeout=300 -o Acquire::Retries=3)
    say "apt-get update"
    quietly "${apt[@]}" update
    say "apt-get install (a minute or so)"
    quietly env DEBIAN_FRONTEND=noninteractive "${apt[@]}" install -y --no-install-recommends "$@"
    local package
    for package in "$@"; do keep_from_booting "$package"; done
    restore_policy
    say "system packages: installed"
}

# A package's maintainer script asks policy-rc.d before it starts a service; 101 means: not allowed.
refuse_service_starts() {
    restore_policy  # of a run that was killed
    if [ -e "$policy" ] || [ -L "$policy" ]; then mv "$policy" "$saved_policy"; fi
    printf '#!/bin/sh\n%s\nexit 101\n' "$marker" >"$policy"
    chmod 755 "$policy"
}

restore_policy() {
    if [ -f "$policy" ] && grep -qF "$marker" "$policy"; then rm -f "$policy"; fi
    if [ -e "$saved_policy" ] || [ -L "$saved_policy" ]; then mv "$saved_policy" "$policy"; fi
}

# Only packages that were missing a moment ago come here, so a service that you run yourself is never switched off.
keep_from_booting() {
    command -v systemctl >/dev/null || return 0
    local unit
    while read -r unit; do
        systemctl disable --quiet "$unit" 2>/dev/null || true  # static units have nothing to disable
    done < <(dpkg -L "$1" | sed -nE 's#^(/usr)?/lib/systemd/system/([^/@]+\.(service|socket|target|timer))$#\2#p')
}

main "$@"
