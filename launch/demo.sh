#!/bin/sh
# Makes .venv, installs, and runs the whole road on the digits: sh launch/demo.sh [options of imagen_ft.demo]
# --imagenet=standin (or =PATH of its images) runs ImageNet's road instead, with tiny networks.
set -eu
CDPATH='' cd -- "$(dirname -- "$0")/.."
. launch/environment.sh
prepare launch/demo.sh base 3000
exec .venv/bin/python -m imagen_ft.demo "$@"
