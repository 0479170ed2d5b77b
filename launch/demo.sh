#!/bin/sh
# Creates .venv, installs, and runs every step on the digits: sh launch/demo.sh [options of imagen_ft.demo]
# --imagenet=standin (or =PATH of its images) runs the steps for ImageNet instead, with tiny networks.
set -eu
CDPATH='' cd -- "$(dirname -- "$0")/.."
. launch/environment.sh
prepare launch/demo.sh base 3000
exec .venv/bin/python -m imagen_ft.demo "$@"
