#!/usr/bin/env bash
# Run the SDK's tests with the lowest and the newest grpcio and protobuf that pyproject.toml allows, in environments
# that hold the base package and pytest alone: no compiled router, no server. Usage: sdk_versions.sh PYTHON VENV
set -euo pipefail
cd "$(dirname "$0")/.."
python=$1
builder=$(cd "$2/bin" && pwd)
PATH="$builder:$PATH"

# "grpcio==1.76 protobuf==6.31.1", and the ranges of the test tools, both read where they are declared.
lowest=$("$builder/python" - <<'PY'
import re, tomllib
with open("pyproject.toml", "rb") as f:
    project = tomllib.load(f)["project"]
print(*(re.sub(r">=([^,]+).*", r"==\1", d) for d in project["dependencies"] if d.startswith(("grpcio>", "protobuf>"))))
PY
)
mapfile -t tools < <("$builder/python" - <<'PY'
import tomllib
with open("pyproject.toml", "rb") as f:
    dev = tomllib.load(f)["project"]["optional-dependencies"]["dev"]
print(*(d for d in dev if d.startswith(("pytest", "hypothesis"))), sep="\n")
PY
)

wheels=build/wheels
rm -rf "$wheels"
mkdir -p build
"$builder/python" -m pip wheel --quiet --disable-pip-version-check --no-deps --no-build-isolation -w "$wheels" \
  --config-settings=setup-args=-Drouter=disabled . > build/wheel.log 2>&1 || { cat build/wheel.log >&2; exit 1; }

for which in lowest newest; do
  venv=build/sdk-$which
  [ -x "$venv/bin/python" ] || "$python" -m venv "$venv"
  pins=()
  [ "$which" = newest ] || read -ra pins <<< "$lowest"
  pip=("$venv/bin/python" -m pip install --quiet --disable-pip-version-check)
  "${pip[@]}" --force-reinstall --no-deps "$wheels"/tiltyard-*.whl
  "${pip[@]}" --upgrade --upgrade-strategy eager "$wheels"/tiltyard-*.whl "${pins[@]}" "${tools[@]}"
  echo "SDK tests, $which: $("$venv/bin/python" -c \
    'import grpc, google.protobuf as p; print("grpcio", grpc.__version__, "protobuf", p.__version__)')"
  env -u PYTHONPATH "$venv/bin/python" -m pytest -p no:cacheprovider -q tests/unit/test_client_*.py
done
