#!/usr/bin/env bash
# Loss kernels and whole steps on a GPU, in under nine minutes: what only a GPU can show.
#
#   OUT=results bash perf/run_gpu_kernels.sh
#
# OUT    folder for logs and JSON (default: runs/gpu)
# PYTHON interpreter (default: .venv/bin/python if it is there, else python)
#
# First correctness: nothing is worth timing that is wrong. Then the shapes the goals are about, with the compiled forms;
# whole steps; the other shapes as far as the time goes. Each part has its own limit and leaves what it measured.
set -uo pipefail
cd "$(dirname "$0")/.." || exit 1

OUT=${OUT:-runs/gpu}
if [ -z "${PYTHON:-}" ]; then
  if [ -x .venv/bin/python ]; then PYTHON=.venv/bin/python; else PYTHON=python; fi
fi
mkdir -p "$OUT/logs"

failed=0
part() { # name, seconds, command...
  local name=$1 limit=$2
  shift 2
  timeout "$limit" "$@" > "$OUT/logs/$name.log" 2>&1
  local code=$?
  echo "$name: exit code $code, log $OUT/logs/$name.log"
  if [ "$code" -ne 0 ]; then
    failed=1
    tail -n 20 "$OUT/logs/$name.log"
  fi
}

part correctness 120 "$PYTHON" -m pytest tests/kernels/test_gpu.py tests/strategies/test_steps.py -q -rs
part kernels_goals 110 "$PYTHON" -m perf.bench_kernels --quick --compiled --seconds 80 --out "$OUT/kernels_goals.json"
part steps 150 "$PYTHON" -m perf.bench_steps --seconds 110 --out "$OUT/steps.json"
part kernels 130 "$PYTHON" -m perf.bench_kernels --seconds 100 --out "$OUT/kernels.json"
exit "$failed"
