#!/usr/bin/env bash
# Run the SDK's tests with the lowest and the newest grpcio and protobuf that pyproject.toml allows, in environments
# that hold nothing else. Usage: sdk_versions.sh PYTHON
set -euo pipefail
cd "$(dirname "$0")/.."
python=$1
lowest=$("$python" - <<'PY'
import re, tomllib
with open("pyproject.toml", "rb") as f:
    deps = tomllib.load(f)["project"]["dependencies"]
print(" ".join(re.sub(r">=([^,]+).*", r"==\1", d) for d in deps if d.startswith(("grpcio>", "protobuf>"))))
PY
)
wheel=build/wheels
rm -rf "$wheel"
.venv/bin/python -m pip wheel --quiet --disable-pip-version-check --no-deps --no-build-isolation -w "$wheel" \
  -Csetup-args=-Drouter=disabled . > build/wheel.log 2>&1 || { cat build/wheel.log >&2; exit 1; }
for which in lowest newest; do
  venv=build/sdk-$which
  [ -x "$venv/bin/python" ] || "$python" -m venv "$venv"
  pins=""; [ "$which" = newest ] || pins=$lowest
  # shellcheck disable=SC2086
  "$venv/bin/python" -m pip install --quiet --disable-pip-version-check --upgrade --upgrade-strategy eager \
    --force-reinstall --no-deps "$wheel"/tiltyard-*.whl
  "$venv/bin/python" -m pip install --quiet --disable-pip-version-check --upgrade --upgrade-strategy eager \
    "$wheel"/tiltyard-*.whl $pins 'pytest>=8.2,<10' 'pytest-asyncio>=0.24,<2' 'pytest-timeout>=2.3,<3' 'hypothesis>=6.100,<7'
  echo "SDK tests, $which: $("$venv/bin/python" -c 'import grpc, google.protobuf as p; print("grpcio", grpc.__version__, "protobuf", p.__version__)')"
  "$venv/bin/python" -m pytest -p no:cacheprovider -q tests/unit/test_client_*.py
done
