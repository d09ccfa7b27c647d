#!/usr/bin/env bash
# Loss kernels and whole steps on a GPU, in under nine minutes: what only a GPU can show.
#
#   OUT=results bash perf/run_gpu_kernels.sh                # all parts
#   OUT=results bash perf/run_gpu_kernels.sh kernels_rest   # some of them
#   OUT=results bash perf/run_gpu_kernels.sh sanitizer      # compute-sanitizer over two cases, where it is installed
#
# OUT    folder for logs and JSON (default: runs/gpu); kernels_*.json and steps.json go to perf/data, where docs read them
# REST   seconds for the rest of the grid (default: 120, for which there is room in nine minutes; 450 when run alone)
# PYTHON interpreter (default: .venv/bin/python if it is there, else python)
#
# First correctness: nothing is worth timing that is wrong. Then the shapes the goals are about, with the compiled forms;
# whole steps; the rest of the grid as far as the time goes. Each part stops starting rows when its time is over, leaves
# what it measured and names what it left out. liger-kernel competes where it is installed.
set -uo pipefail
cd "$(dirname "$0")/.." || exit 1

OUT=${OUT:-runs/gpu}
if [ -z "${PYTHON:-}" ]; then
  if [ -x .venv/bin/python ]; then PYTHON=.venv/bin/python; else PYTHON=python; fi
fi
mkdir -p "$OUT/logs"

if [ "$*" = kernels_rest ]; then REST=${REST:-450}; else REST=${REST:-120}; fi
failed=0
wanted=" $* "
part() { # name, seconds, command...
  local name=$1 limit=$2
  shift 2
  case "$wanted" in "  " | *" $name "*) ;; *) return ;; esac
  timeout "$limit" "$@" > "$OUT/logs/$name.log" 2>&1
  local code=$?
  echo "$name: exit code $code, log $OUT/logs/$name.log"
  if [ "$code" -ne 0 ]; then
    failed=1
    tail -n 20 "$OUT/logs/$name.log"
  fi
}

part correctness 110 "$PYTHON" -m pytest tests/kernels/test_gpu.py tests/strategies/test_steps.py -q -rs -k "not sanitizer"
part kernels_goals 130 "$PYTHON" -m perf.bench_kernels --shapes goals --seconds 100 --out "$OUT/kernels_goals.json"
part steps 130 "$PYTHON" -m perf.bench_steps --seconds 90 --out "$OUT/steps.json"
part kernels_rest "$((REST + 40))" "$PYTHON" -m perf.bench_kernels --shapes rest --seconds "$REST" --out "$OUT/kernels_rest.json"
case "$wanted" in # slow, and it needs the CUDA toolkit: only when named
  *" sanitizer "*) part sanitizer 590 "$PYTHON" -m pytest tests/kernels/test_gpu.py -q -rs -k sanitizer --timeout 580 ;;
esac
exit "$failed"
