"""What a lease does on a host of the fixed pool, over SSH with the deployment's key: look, let in, clean.

The account is one that only leases use: cleaning ends every process of it that was not there before the lease, puts
its authorized keys back as they were, and removes the lease's folders and what it left among temporary files. What an
account could hide elsewhere (a crontab of its own, a file that its shell reads) stays; the page on resources says so.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from mlops_sdk.capacity.providers.static_claim import Before
from mlops_sdk.config import Settings, StaticHost
from mlops_sdk.remote.pool import pool_host
from mlops_sdk.remote.ssh import run_once

_LOGIN_S = 5.0
_LOOK_S = 10.0
_CLEAN_S = 60.0

# A process is told by its number and its start time: numbers are used again.
_FUNCTIONS = r"""
set -u
export LC_ALL=C
me=$(id -u)
keys=$HOME/.ssh/authorized_keys
started() {
    stat=$(cat "/proc/$1/stat" 2>/dev/null) || return 1
    set -- ${stat##*) }
    [ "$1" != Z ] || return 1
    echo "${20}"
}
parent() {
    stat=$(cat "/proc/$1/stat" 2>/dev/null) || return 1
    set -- ${stat##*) }
    echo "$2"
}
processes() {
    for folder in /proc/[0-9]*; do
        [ "$(stat -c %u "$folder" 2>/dev/null)" = "$me" ] || continue
        pid=${folder#/proc/}
        start=$(started "$pid") && echo "$pid:$start"
    done
}
temporary() {
    for place in /tmp /var/tmp /dev/shm; do
        [ ! -d "$place" ] || find "$place" -mindepth 1 -maxdepth 1 -user "$me" "$@" || return 1
    done
}
"""

_LOOK = (
    _FUNCTIONS
    + r"""
if [ "$me" = 0 ] && [ "$(cat /proc/1/comm)" = systemd ]; then
    echo "root of a host whose services systemd starts: cleaning could not tell them from a lease's processes" >&2
    exit 3
fi
if grep -qs ' mlops-lease ' "$keys"; then
    echo "it lets another lease in: $(grep -o 'mlops-lease .*' "$keys" | sort -u | tr '\n' ' ')" >&2
    exit 4
fi
echo image "$( (. /etc/os-release && echo "$PRETTY_NAME") 2>/dev/null)"
processes | sed 's/^/process /'
temporary | sed 's/^/file /'
[ ! -f "$keys" ] || sed 's/^/key /' "$keys"
"""
)

# standard input: the whole file from now on
_LET_IN = r"""
set -eu
umask 077
keys=$HOME/.ssh/authorized_keys
mkdir -p "$HOME/.ssh"
cat > "$keys.mlops"
mv -f "$keys.mlops" "$keys"
"""

# standard input: "process pid:start", "file path" and "key line", what there was before; $1: the claim; the rest: what
# to remove
_CLEAN = (
    _FUNCTIONS
    + r"""
umask 077
claim=$1
shift
newline='
'
if grep -s ' mlops-lease ' "$keys" | grep -qv " mlops-lease $claim\$"; then
    echo "it is leased to somebody else meanwhile; nothing was touched" >&2
    exit 9
fi
before="$(cat)$newline"
mkdir -p "$HOME/.ssh"
printf '%s' "$before" | sed -n 's/^key //p' > "$keys.mlops" && mv -f "$keys.mlops" "$keys" || exit 4
kept=" "
pid=$$
while [ "${pid:-0}" -gt 0 ]; do
    kept="$kept$pid "
    pid=$(parent "$pid") || break
done
foreign() {
    processes | while IFS=: read -r pid start; do
        case "$kept" in *" $pid "*) continue ;; esac
        case "$before" in *"process $pid:$start$newline"*) continue ;; esac
        [ "$(parent "$pid")" != "$$" ] || continue
        echo "$pid"
    done
}
ended=0
for round in 1 2 3 4 5 6 7 8 9 10; do
    live=""
    for pid in $(foreign); do
        kill -STOP "$pid" 2>/dev/null && live="$live $pid"
    done
    [ -n "$live" ] || break
    kill -KILL $live 2>/dev/null
    ended=$((ended + $(set -- $live; echo $#)))
    sleep 0.2
done
for pid in $(foreign); do
    kill -0 "$pid" 2>/dev/null || continue
    echo "process $pid does not end: $(tr '\0' ' ' < "/proc/$pid/cmdline" 2>/dev/null)" >&2
    exit 5
done
rm -rf "$@" || exit 6
temporary -exec sh -c '
    before=$1
    shift
    for path; do
        case "$before" in *"
file $path
"*) continue ;; esac
        rm -rf "$path" || exit 6
    done
' sh "$newline$before" {} + || exit 6
if command -v nvidia-smi > /dev/null; then
    users=$(nvidia-smi --query-compute-apps=pid --format=csv,noheader) || { echo "nvidia-smi failed" >&2; exit 7; }
    [ -z "$users" ] || { echo "accelerators are in use by: $users" >&2; exit 7; }
fi
echo "$ended processes ended, keys as before, $# folders removed"
"""
)


class HostShell(Protocol):
    """What is done on a host. Each call may be made again. All raise `MlopsError` when the host fails."""

    def look(self, host: StaticHost) -> Before:
        """What it is like now."""
        ...

    def let_in(self, host: StaticHost, before: Before, public_keys: Sequence[str], claim_id: str) -> None:
        """Let these keys in, besides those that were let in before; noted on the host as this claim's."""
        ...

    def clean(self, host: StaticHost, before: Before, run_key: str, claim_id: str) -> str:
        """Bring it back to what it was before this claim's lease; what was done, in words.

        Raises:
            RemoteCommandError: it is not clean, and why; or it lets another claim's lease in, and nothing was touched.
        """
        ...


class SshShell(HostShell):
    """`HostShell` over SSH.

    Args:
        settings: Hold the deployment's key for the pool, or name its file.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._login_s = min(_LOGIN_S, settings.lease.ssh_timeout_s)

    def look(self, host: StaticHost) -> Before:
        """See `HostShell.look`."""
        lines = run_once(
            pool_host(self._settings, host), ["sh", "-c", _LOOK], login_s=self._login_s, timeout_s=_LOOK_S
        ).splitlines()
        found = [line.partition(" ")[::2] for line in lines]
        keys = [value for kind, value in found if kind == "key"]
        return Before(
            authorized_keys="".join(f"{key}\n" for key in keys),
            processes=tuple(value for kind, value in found if kind == "process"),
            files=tuple(value for kind, value in found if kind == "file"),
            image=next((value for kind, value in found if kind == "image"), ""),
        )

    def let_in(self, host: StaticHost, before: Before, public_keys: Sequence[str], claim_id: str) -> None:
        """See `HostShell.let_in`."""
        keys = before.authorized_keys + "".join(f"{key.strip()} mlops-lease {claim_id}\n" for key in public_keys)
        run_once(
            pool_host(self._settings, host),
            ["sh", "-c", _LET_IN],
            stdin=keys.encode(),
            login_s=self._login_s,
            timeout_s=_LOOK_S,
        )

    def clean(self, host: StaticHost, before: Before, run_key: str, claim_id: str) -> str:
        """See `HostShell.clean`."""
        lines = [f"process {item}" for item in before.processes]
        lines += [f"file {path}" for path in before.files]
        lines += [f"key {line}" for line in before.authorized_keys.splitlines()]
        ours = [f"/scratch/{run_key}", f"/run/mlops/{run_key}", f"/run/mlops/{run_key}.lock"]
        argv = ["sh", "-c", _CLEAN, "clean", claim_id, *ours]
        stdin = "".join(f"{line}\n" for line in lines) or "\n"
        return run_once(
            pool_host(self._settings, host), argv, stdin=stdin.encode(), login_s=self._login_s, timeout_s=_CLEAN_S
        ).strip()
