#!/usr/bin/env bash
# Run unit, property and wire tests against a core built with AddressSanitizer and UBSan.
# Usage: asan.sh VENV [pytest arguments]
set -euo pipefail
cd "$(dirname "$0")/.."
bin=$(cd "$1/bin" && pwd); shift
PATH="$bin:$PATH"
build=build/asan
# The linker may not insist on resolving the sanitizers' symbols: their libraries are preloaded (b_lundef).
[ -e "$build/build.ninja" ] || meson setup "$build" -Dbuildtype=debugoptimized -Db_sanitize=address,undefined \
  -Db_lundef=false -Drouter=enabled > "build/asan-setup.log"
ninja -C "$build" > build/asan-ninja.log || { tail -n 40 build/asan-ninja.log >&2; exit 1; }
DESTDIR="$PWD/build/asan-root" meson install -C "$build" --no-rebuild --quiet
site=$(dirname "$(find build/asan-root -type d -name tiltyard_router)")

export LD_PRELOAD="$(gcc -print-file-name=libasan.so) $(gcc -print-file-name=libubsan.so)"
# CPython and TensorFlow never free some things; leaks of the core are found by its own counters and tests.
export ASAN_OPTIONS=detect_leaks=0:abort_on_error=1:allocator_may_return_null=1:handle_segv=0
export UBSAN_OPTIONS=halt_on_error=1:print_stacktrace=1
export PYTHONMALLOC=malloc
export PYTHONPATH="$PWD/$site${PYTHONPATH:+:$PYTHONPATH}"
export TILTYARD_SANITIZED=1
python -c 'import tiltyard_router.core as m; assert "asan-root" in m.__file__, m.__file__'
[ $# -gt 0 ] || set -- tests/unit tests/property tests/wire
python -m pytest -p no:cacheprovider -m "not serve" --timeout 300 "$@"
