#!/bin/sh
# Make .venv with the package, its extras and the tools, at the versions of constraints.txt. Does nothing when it is made.
#
#   PYTHON=python3.12 ./setup.sh                      another interpreter (3.11 or newer)
#   PIP_FLAGS="--extra-index-url URL" ./setup.sh      another index, for a CPU or a GPU build of torch
set -eu
cd "$(dirname "$0")"
stamp=.venv/.installed
if [ -e "$stamp" ] && [ "$stamp" -nt pyproject.toml ] && [ "$stamp" -nt constraints.txt ]; then
    exit 0
fi
python=${PYTHON:-python3}
if ! "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))'; then
    echo "error: $python is not Python 3.11 or newer; name one with PYTHON=..." >&2
    exit 2
fi
"$python" -m venv .venv
# shellcheck disable=SC2086
.venv/bin/python -m pip install --quiet --disable-pip-version-check ${PIP_FLAGS:-} -c constraints.txt -e '.[dev]'
touch "$stamp"
