# Shared by the setup scripts; sourced, never run.

say() { printf '[setup] %s\n' "$*"; }

# fail WHAT SEEN NEXT: one clear error in the same form as the library's exceptions, then exit 1.
fail() {
    printf '[setup] error: %s; seen: %s; next: %s\n' "$1" "$2" "$3" >&2
    exit 1
}

# The interpreter that all environments are made from: $PYTHON, else python3.11, else python3; 3.11 or later.
find_python() {
    local candidate
    for candidate in ${PYTHON:+"$PYTHON"} python3.11 python3; do
        if "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
            "$candidate" -c 'import sys; print(sys.executable)'
            return
        fi
        [ "$candidate" != "${PYTHON:-}" ] || break
    done
    fail "no Python 3.11 or later" "$(python3 --version 2>&1 || true)" "install python3 (3.11+), or set PYTHON=/path/to/python"
}

# quietly COMMAND...: silent when it works, its whole output when it does not.
quietly() {
    local output
    if ! output=$("$@" 2>&1); then
        printf '%s\n' "$output" >&2
        fail "a setup step failed: $*" "its output above" \
            "check this machine's network, apt sources and pip settings (PIP_INDEX_URL, PIP_FIND_LINKS, PIP_CERT), then run again"
    fi
}
