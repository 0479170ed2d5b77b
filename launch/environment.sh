# Sourced by demo.sh and test.sh from the repository root: creates .venv and installs into it, once.

# .venv/ready is written last and removed before pip runs, so that an interrupted installation starts
# again. Its first line is the folder that was installed, the others "EXTRA CHECKSUM-OF-setup.py".
log=.cache/install.log
probe='import sys
version = "%d.%d.%d" % sys.version_info[:3]
try:
    import ensurepip, venv
    kind = "good"
except ImportError:
    kind = "bare"
print(("old" if sys.version_info < (3, 11) else kind) + " " + version)'

say() {
    printf '%s: %s\n' "$script" "$1"
}

fail() {
    say "$1" >&2
    exit 2
}

# find_python: sets $python and $found ("good VERSION") to the first Python that will do.
find_python() {
    if [ -n "${PYTHON:-}" ]; then
        set -- "$PYTHON"
    else
        set -- python3.13 python3.12 python3.11 python3
    fi
    old="$* cannot be run" bare=''
    for python do
        found=$("$python" -c "$probe" 2>/dev/null) || continue
        case $found in
        good\ *) return ;;
        bare\ *) bare=${bare:-$python} ;;
        old\ *) old="$python is ${found#old }" ;;
        esac
    done
    hint="or name another one: PYTHON=/path/to/python sh $script"
    [ -z "$bare" ] ||
        fail "$bare lacks its venv module; install it (Debian: apt install python3-venv), $hint"
    fail "Python 3.11 or newer is needed, but $old; install it, $hint"
}

# need_space MIB
need_space() {
    free=$(df -Pk . | awk 'NR == 2 { print int($4 / 1024) }')
    [ "${free:-0}" -ge "$1" ] ||
        fail "the disk is too full: $PWD has ${free:-0} MiB free, $1 MiB are needed; make room"
}

# installed: whether .venv was completed in this folder, with the Python that PYTHON asks for.
installed() {
    [ "$(sed -n 1p .venv/ready 2>/dev/null)" = "$PWD" ] || return 1
    current=$(.venv/bin/python -c "$probe" 2>/dev/null) || return 1
    [ -z "${PYTHON:-}" ] || [ "$current" = "$found" ]
}

# run_logged WHAT COMMAND...: if the command fails, ends with one line from its log.
run_logged() {
    what=$1
    shift
    "$@" >"$log" 2>&1 && return
    reason=$(grep -i '^ *error' "$log" | tail -n 1)
    fail "$what failed: ${reason:-$(tail -n 1 "$log")} (log: $PWD/$log)"
}

# prepare SCRIPT EXTRA MIB: makes a .venv with EXTRA ("base": none), or ends with one line and code 2.
prepare() {
    script=$1 extra=$2
    trap 'say "interrupted; the same command starts again" >&2; exit 130' INT
    trap 'exit 143' TERM
    unset PYTHONHOME PYTHONPATH PYTHONSTARTUP PYTHONUSERBASE PIP_PREFIX PIP_ROOT PIP_TARGET PIP_USER
    export PYTHONNOUSERSITE=1
    # XLA's CPU programs take their memory anew for each run, and large pages make that cheap.
    export GLIBC_TUNABLES="glibc.malloc.hugetlb=1${GLIBC_TUNABLES:+:$GLIBC_TUNABLES}"

    [ -z "${PYTHON:-}" ] || find_python
    mark="$extra $(cksum <setup.py)"
    if installed && grep -qxF "$mark" .venv/ready; then
        need_space 200
        return
    fi
    need_space "$3"
    { mkdir -p "${log%/*}" && true >"$log"; } 2>/dev/null ||
        fail "cannot write $PWD/$log; clone to a folder of your own"
    if ! installed; then
        find_python
        say "making .venv with $python (${found#good })"
        run_logged "$python -m venv" "$python" -m venv --clear .venv
    fi
    install
}

install() {
    say "installing into .venv, which takes some minutes (log: $log)"
    rm -f .venv/ready
    target=.
    [ "$extra" = base ] || target=".[$extra]"
    run_logged "installation" .venv/bin/python -m pip install --disable-pip-version-check --no-input \
        --progress-bar off --editable "$target"
    {
        printf '%s\nbase %s\n' "$PWD" "${mark#* }"
        [ "$extra" = base ] || printf '%s\n' "$mark"
    } >.venv/ready.tmp
    mv .venv/ready.tmp .venv/ready
}
