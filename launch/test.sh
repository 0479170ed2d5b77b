#!/bin/sh
# Makes .venv, installs the test extra, and runs the tests: sh launch/test.sh [--all] [options of pytest]
# --all runs the long proofs too (the marker `slow`).
set -eu
CDPATH='' cd -- "$(dirname -- "$0")/.."
. launch/environment.sh

all=''
set -- -m 'not slow' "$@"
for argument do
    shift
    case $argument in
    --all) all=yes ;;
    *) set -- "$@" "$argument" ;;
    esac
done
[ -z "$all" ] || shift 2

prepare launch/test.sh test 5000
exec .venv/bin/python -m pytest "$@"
