#!/usr/bin/env bash
# Run unit, property and wire tests against a core built with AddressSanitizer and UndefinedBehaviorSanitizer, routers
# that the tests start included. Usage: asan.sh VENV [pytest arguments]
set -euo pipefail
cd "$(dirname "$0")/.."
bin=$(cd "$1/bin" && pwd); shift
export PATH="$bin:$PATH"
begin=$SECONDS
build=build/asan
root=$PWD/build/asan-root
reports=$PWD/build/asan-reports
mkdir -p build
rm -rf "$root" "$reports"
mkdir "$reports"

# Any warning of the compiler ends it, here and not where somebody builds with another one.
# The linker may not insist on resolving the sanitizers' symbols: their libraries are preloaded (b_lundef).
configure() {
  meson setup "$build" -Dbuildtype=debug -Dc_args="-g1 -Werror" -Db_sanitize=address,undefined -Db_lundef=false \
    -Drouter=enabled > build/asan-setup.log 2>&1
}
if [ ! -e "$build/build.ninja" ]; then configure || { cat build/asan-setup.log >&2; exit 1; }; fi
ninja -C "$build" > build/asan-ninja.log || { tail -n 40 build/asan-ninja.log >&2; exit 1; }
DESTDIR="$root" meson install -C "$build" --no-rebuild --quiet
site=$(dirname "$(find "$root" -type d -name tiltyard_router)")
echo "built with sanitizers in $((SECONDS - begin)) s"

# CPython and TensorFlow never free some things; leaks of the core are found by its own counters and tests.
# A report goes to a file as well, so that one of a process that nobody waits for is not overlooked.
export ASAN_OPTIONS=detect_leaks=0:abort_on_error=1:allocator_may_return_null=1:handle_segv=0:log_path=$reports/asan
export UBSAN_OPTIONS=halt_on_error=1:abort_on_error=1:print_stacktrace=1:log_path=$reports/ubsan
export PYTHONMALLOC=malloc
export PYTHONPATH=$site
export TILTYARD_SANITIZED=1
unset TILTYARD_INSTALLED
libraries="$(gcc -print-file-name=libasan.so) $(gcc -print-file-name=libubsan.so)"

LD_PRELOAD=$libraries python tools/sanitized.py "$root"
[ $# -gt 0 ] || set -- tests/unit tests/property tests/wire
status=0
LD_PRELOAD=$libraries python -m pytest -p no:cacheprovider -m "not serve" --timeout 300 "$@" || status=$?
if [ -n "$(ls -A "$reports")" ]; then
  tail -n +1 "$reports"/* >&2
  echo "the sanitizers have reported something" >&2
  exit 1
fi
exit "$status"
