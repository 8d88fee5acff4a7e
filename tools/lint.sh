#!/usr/bin/env bash
# Everything that can be checked without running it. Usage: lint.sh VENV
set -euo pipefail
cd "$(dirname "$0")/.."
bin=$(cd "$1/bin" && pwd)
PATH="$bin:$PATH"
code=(services router_ext tests benchmarks examples tools)

failed=()
check() {
  local name=$1 begin=$SECONDS; shift
  if "$@"; then echo "ok      $name ($((SECONDS - begin)) s)"; else failed+=("$name"); echo "FAILED  $name"; fi
}
protos() {
  (cd protos && buf lint && { [ ! -e baseline.binpb ] || buf breaking --against baseline.binpb; })
}
# Each public module of the core against its .pyi, as installed.
stubtest() {
  (cd / && python -c 'import tiltyard_router.core') || return 1
  python -m mypy.stubtest tiltyard_router --concise --allowlist tools/stubtest-allowlist.txt \
    --mypy-config-file pyproject.toml >build/stubtest.log 2>&1 || { cat build/stubtest.log; return 1; }
}

mkdir -p build
check "ruff"              ruff check --quiet "${code[@]}"
check "ruff format"       ruff format --quiet --check "${code[@]}"
check "mypy --strict"     mypy --no-error-summary "${code[@]}"
check "cython-lint"       cython-lint router_ext
check "core rules"        python tools/check_core.py
check "stubs of the core" stubtest
check "buf lint"          protos
check "generated stubs"   env PYTHON="$bin/python" tools/protos.sh --check

if [ "${#failed[@]}" -gt 0 ]; then
  printf 'lint: %d failed:' "${#failed[@]}" >&2
  printf ' [%s]' "${failed[@]}" >&2
  echo >&2
  exit 1
fi
