#!/usr/bin/env bash
# Build Tiltyard and install it into the environment as a wheel. Usage: install.sh VENV
set -euo pipefail
cd "$(dirname "$0")/.."
venv=$1
echo "building Tiltyard ..."
mkdir -p build
if ! "$venv/bin/python" -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation \
     --force-reinstall -Cbuild-dir="build/wheel-$(basename "$venv")" . > build/install.log 2>&1; then
  cat build/install.log >&2
  exit 1
fi
bin=$(cd "$venv/bin" && pwd)
if ! (cd / && "$bin/python" -c 'import tiltyard_router.core' 2>/dev/null); then
  echo "warning: built without the compiled router (tiltyard_router); build/install.log says why" >&2
fi
