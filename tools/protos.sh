#!/usr/bin/env bash
# Make the Python stubs under services/tiltyard/api/ from protos/, or with --check fail when they are out of date.
# Needs grpcio-tools and mypy-protobuf in $PYTHON's environment (default: .venv, else the python3 on PATH).
set -euo pipefail
cd "$(dirname "$0")/.."

check=no
case "${1:-}" in
  "") ;;
  --check) check=yes ;;
  *) echo "usage: tools/protos.sh [--check]" >&2; exit 2 ;;
esac

if [ -z "${PYTHON:-}" ]; then
  if [ -n "${VIRTUAL_ENV:-}" ]; then PYTHON=$VIRTUAL_ENV/bin/python
  elif [ -x .venv/bin/python ]; then PYTHON=$PWD/.venv/bin/python
  else PYTHON=$(command -v python3)
  fi
fi
# protoc finds the mypy plugins on PATH: take the ones that belong to this Python.
PATH="$("$PYTHON" -c 'import sysconfig; print(sysconfig.get_path("scripts"))'):$PATH"

fresh=$(mktemp -d)
trap 'rm -rf "$fresh"' EXIT
mapfile -t all < <(find protos/tiltyard -name '*.proto' | LC_ALL=C sort)
mapfile -t with_services < <(grep -lE '^service ' "${all[@]}")

"$PYTHON" -m grpc_tools.protoc -Iprotos --python_out="$fresh" --mypy_out=quiet:"$fresh" "${all[@]}"
if [ "${#with_services[@]}" -gt 0 ]; then
  "$PYTHON" -m grpc_tools.protoc -Iprotos --grpc_python_out="$fresh" --mypy_grpc_out=quiet:"$fresh" "${with_services[@]}"
fi
find "$fresh/tiltyard/api" -type d -exec touch {}/__init__.py \;

made=$fresh/tiltyard/api
kept=services/tiltyard/api
if [ "$check" = yes ]; then
  if ! diff -r --brief --exclude=__pycache__ "$made" "$kept" >&2; then
    echo "services/tiltyard/api is out of date: run tools/protos.sh and commit the result" >&2
    exit 1
  fi
  exit 0
fi

# Only what differs is touched, so that a running editor or test sees no gap.
mkdir -p "$kept"
(cd "$kept" && find . -type f -not -path '*/__pycache__/*') | while read -r path; do
  [ -e "$made/$path" ] || rm -f "$kept/$path"
done
(cd "$made" && find . -type f) | while read -r path; do
  if ! cmp -s "$made/$path" "$kept/$path"; then
    mkdir -p "$(dirname "$kept/$path")"
    cp "$made/$path" "$kept/$path"
    chmod 644 "$kept/$path"
  fi
done
find "$kept" -type d -empty -delete
