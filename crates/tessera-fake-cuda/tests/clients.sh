#!/bin/sh
# Makes the environment with the unmodified clients and runs them.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
venv=${TESSERA_CACHE:-$HOME/.cache/tessera}/venv-clients
if [ ! -x "$venv/bin/nvitop" ]; then
    python3 -m venv "$venv"
    "$venv/bin/pip" install --quiet nvidia-ml-py nvitop cuda-bindings cuda-core
fi
cd "$here/.."
exec cargo test -p tessera-fake-cuda --test clients -- --nocapture
