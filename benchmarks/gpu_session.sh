#!/bin/sh
# Starts gpu_session.py from a checkout that need not be installed: NumPy, the engine and its libraries are enough.
# PYTHON names another Python than the one of .venv, or python3 where there is none.
set -eu
root=$(cd "$(dirname "$0")/.." && pwd)
python=${PYTHON:-"$root/.venv/bin/python"}
[ -n "${PYTHON:-}" ] || [ -x "$python" ] || python=python3
export PYTHONPATH="$root/devices:$root/runtime:$root/train:$root/export${PYTHONPATH:+:$PYTHONPATH}"
# CUDA's libraries as pip installs them, beside PyTorch for one: an engine that lies in another folder finds them so.
for folder in $("$python" -c 'import glob, site; print(*(f for s in site.getsitepackages() for f in sorted(glob.glob(s + "/nvidia/*/lib"))))'); do
    LD_LIBRARY_PATH="${LD_LIBRARY_PATH:+$LD_LIBRARY_PATH:}$folder"
done
export LD_LIBRARY_PATH="${LD_LIBRARY_PATH:-}"
exec "$python" "$root/benchmarks/gpu_session.py" "$@"
