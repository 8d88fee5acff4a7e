#!/usr/bin/env bash
# Say what is going to be downloaded, before it is. Usage: say.sh VENV
set -euo pipefail
[ -e "$1/bin/.environment" ] && exit 0
cat <<EOF
Tiltyard needs an environment of its own in $1 (about 2.5 GB, nearly all of it TensorFlow, from PyPI)
and a few Debian packages (a C compiler, libuv, nghttp2, OpenSSL, xxHash). This happens once.
EOF
