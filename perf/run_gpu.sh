#!/usr/bin/env bash
# Full-length runs of the six protocols, three seeds each, with wall times: what only a GPU can measure.
#
#   OUT=results bash perf/run_gpu.sh [experiment ...]
#
# OUT    folder for runs/, logs/ and times.csv (default: runs/gpu)
# SEEDS  seeds, in quotes (default: "0 1 2")
# ARGS   overrides, such as "training.epochs=30"
# PYTHON interpreter (default: .venv/bin/python if it is there, else python)
#
# Experiments are named by the last part of their file: 10tasks means experiments/cifar100lt_10tasks.yaml.
# incrlt.run skips finished runs and goes on with interrupted ones: the script can be started again.
set -uo pipefail
cd "$(dirname "$0")/.." || exit 1

OUT=${OUT:-runs/gpu}
SEEDS=${SEEDS:-0 1 2}
if [ -z "${PYTHON:-}" ]; then
  if [ -x .venv/bin/python ]; then PYTHON=.venv/bin/python; else PYTHON=python; fi
fi
experiments=("$@")
if [ ${#experiments[@]} -eq 0 ]; then
  experiments=(10tasks 5tasks ordered10 ordered5 lfs10 lfs20)
fi

mkdir -p "$OUT/logs"
times="$OUT/times.csv"
[ -f "$times" ] || echo "experiment,seed,seconds,exit_code,started" > "$times"

failed=0
for seed in $SEEDS; do # one seed of everything first: a cut-off leaves a whole table
  for experiment in "${experiments[@]}"; do
    yaml="experiments/cifar100lt_$experiment.yaml"
    log="$OUT/logs/$experiment-s$seed.log"
    started=$(date -u +%Y-%m-%dT%H:%M:%SZ)
    begin=$(date +%s.%N)
    # ARGS is a list of words on purpose
    # shellcheck disable=SC2086
    "$PYTHON" -m incrlt.run "$yaml" ${ARGS:-} --seed "$seed" --out "$OUT/runs" > "$log" 2>&1
    code=$?
    seconds=$(awk -v a="$begin" -v b="$(date +%s.%N)" 'BEGIN { printf "%.1f", b - a }')
    echo "$experiment,$seed,$seconds,$code,$started" >> "$times"
    echo "$experiment seed $seed: $seconds s, exit code $code, log $log"
    if [ "$code" -ne 0 ]; then
      failed=1
      tail -n 5 "$log"
    fi
  done
done
exit "$failed"
