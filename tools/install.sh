#!/usr/bin/env bash
# Build Tiltyard and install it into the environment as a wheel. Usage: install.sh VENV
set -euo pipefail
cd "$(dirname "$0")/.."
bin=$(cd "$1/bin" && pwd)
export PATH="$bin:$PATH"  # meson finds ninja, cython and itself by it
build=build/wheel-$(basename "$1")
mkdir -p build
echo "building Tiltyard ..."
build_wheel() {
  # The long option: Debian 12's pip has no short one.
  "$bin/python" -m pip install --disable-pip-version-check --verbose --no-deps --no-build-isolation \
    --force-reinstall --config-settings=build-dir="$build" . > build/install.log 2>&1
}
# A build folder remembers the compiler and libraries it found; after those changed it may not build any more.
if ! build_wheel; then
  rm -rf "$build"
  build_wheel || { cat build/install.log >&2; exit 1; }
fi
if ! failure=$(cd / && "$bin/python" -c 'import tiltyard_router.core' 2>&1); then
  why=$(grep -m 1 -o 'building without tiltyard_router.*' build/install.log || printf '%s\n' "$failure")
  echo "warning: no compiled router: $why" >&2
fi
