#!/usr/bin/env bash
# Everything that can be checked without running. Usage: lint.sh VENV
set -euo pipefail
cd "$(dirname "$0")/.."
bin=$(cd "$1/bin" && pwd)
PATH="$bin:$PATH"
python=(services router_ext tests benchmarks examples tools)

echo "ruff";         ruff check --quiet "${python[@]}"; ruff format --quiet --check "${python[@]}"
echo "mypy";         mypy services router_ext tests benchmarks examples tools
echo "cython-lint";  cython-lint router_ext
echo "core";         python tools/check_core.py
echo "buf";          (cd protos && buf lint && if [ -e baseline.binpb ]; then buf breaking --against baseline.binpb; fi)
echo "stubs";        PYTHON="$bin/python" tools/protos.sh --check
