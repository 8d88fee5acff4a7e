#!/usr/bin/env bash
# Install the Debian packages that are missing, where that is allowed; else print the command and stop.
set -euo pipefail

packages=(
  python3 python3-venv python3-dev gcc libc6-dev pkg-config
  libuv1-dev libnghttp2-dev libssl-dev libxxhash-dev zlib1g-dev
  nghttp2-server nghttp2-proxy            # peers of the benchmark and of some tests
)

if ! command -v dpkg-query >/dev/null; then
  echo "no Debian packages here: make sure that a C compiler, pkg-config, libuv, libnghttp2, OpenSSL, xxHash and" >&2
  echo "zlib with their headers, and Python 3.11 or later, are installed" >&2
  exit 0
fi

missing=()
for package in "${packages[@]}"; do
  [ "$(dpkg-query -W -f '${db:Status-Status}' "$package" 2>/dev/null || true)" = installed ] || missing+=("$package")
done
[ "${#missing[@]}" -gt 0 ] || exit 0

as_root=()
if [ "$(id -u)" != 0 ]; then
  if command -v sudo >/dev/null && sudo -n true 2>/dev/null; then
    as_root=(sudo)
  else
    echo "some packages are missing. Run this, then make again:" >&2
    echo "    sudo apt-get install -y ${missing[*]}" >&2
    exit 1
  fi
fi
echo "installing Debian packages: ${missing[*]}"
export DEBIAN_FRONTEND=noninteractive
"${as_root[@]}" apt-get update -qq
"${as_root[@]}" apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
