#!/bin/sh
# Creates .venv, installs the test extra, and runs the tests:
#   sh launch/test.sh [--all | --slice=K/6] [options of pytest]
# --all adds the long tests (marked `slow`); --slice=K/6 adds the K-th sixth of them.
set -eu
CDPATH='' cd -- "$(dirname -- "$0")/.."
. launch/environment.sh
script=launch/test.sh

fast_only=yes
set -- -m 'not slow' "$@"
for argument do
    shift
    case $argument in
    --all) fast_only='' ;;
    --slice=[1-6]/6) fast_only='' && set -- "$@" "$argument" ;;
    --slice*) fail "--slice=K/6 with K from 1 to 6 is needed, got $argument" ;;
    *) set -- "$@" "$argument" ;;
    esac
done
[ -n "$fast_only" ] || shift 2

prepare launch/test.sh test 5000
exec .venv/bin/python -m pytest "$@"
