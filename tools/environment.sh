#!/usr/bin/env bash
# Make the virtual environment with everything Tiltyard needs but Tiltyard itself. Usage: environment.sh PYTHON VENV
set -euo pipefail
cd "$(dirname "$0")/.."
python=$1 venv=$2

if ! "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))'; then
  echo "$python is older than Python 3.11; name another one: make PYTHON=python3.12" >&2
  exit 1
fi
[ -x "$venv/bin/python" ] || "$python" -m venv "$venv"

# What the extras name, read from pyproject.toml, so that it stands in one place.
"$venv/bin/python" - > "$venv/requirements.txt" <<'PY'
import tomllib
with open("pyproject.toml", "rb") as f:
    project = tomllib.load(f)["project"]
wanted = list(project["dependencies"])
for extra in ("server", "serve", "pandas", "dev"):
    wanted += project["optional-dependencies"][extra]
print("\n".join(wanted))
PY
echo "installing Python packages into $venv ..."
"$venv/bin/python" -m pip install --quiet --disable-pip-version-check -r "$venv/requirements.txt"
