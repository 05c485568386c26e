#!/usr/bin/env bash
# What a machine with a GPU must show, in less than 9 minutes, the most important first: training of the student network
# (ours, with CUDA graphs and without, beside a careful loop and Accelerate) and of the classic one; the tests that need a
# GPU; then, as time allows, our commands from shards to a score, evaluation and prediction, every convolution, the tests
# that compile, and small batches. Each step has a part of the time, and numbers are printed as they come, so that a
# check that is cut short has shown them. Without a GPU it says so and ends with exit code 2.
#   launch/gpu_check.sh [FOLDER]     # summary, JSON and logs: at most 8 small files (default: a new folder)
#     PYTHON=...   python to use; it needs torch and the packages in pyproject.toml, but this package need not be installed
#     WHEELS=DIR   wheels of packages that it lacks, unpacked for this check only; a usual image for PyTorch lacks isal,
#                  simplejpeg, jsonargparse, docstring-parser and typeshed-client
#     LIMIT_S=...  seconds for everything (530)
#     REHEARSE=1   every step at a tiny size, on a CPU too: shows that the check itself works
# On a machine without network: pip download --no-deps -d wheels --only-binary=:all: --python-version 3.12 NAME ...
# elsewhere, then WHEELS=wheels bash launch/gpu_check.sh RESULTS
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

python=${PYTHON:-python3}
rehearse=${REHEARSE:-}
limit_s=${LIMIT_S:-530}
if [ -n "$rehearse" ]; then
  machine=rehearsal
  student=student:48x32:2 classic=student:32x32:2 small=student:32x48:2 precision=fp32 train_precision=no
  student_loops=careful,accelerate,ours-off small_loops=careful,ours-off workers=(1 1)
  measure=(--samples 8 --rounds 1 --seconds 0.01 --check-steps 3)
  limits=(--cases 4,8:32x32 --batch-size 2) evaluation=(--case student:32x32:2 --samples 4 --rounds 1)
  shapes=10 train=(--trainer.max_steps 4 --optim.warmup_steps 0 --model.widths '[4,8]' --data.num_workers 1)
else
  facts='import torch; print(torch.cuda.get_device_name(), "torch", torch.__version__, "cuda", torch.version.cuda)'
  if ! machine=$("$python" -c "$facts" 2>/dev/null); then
    echo "gpu_check: $python has no torch that sees a GPU; nothing was checked" >&2
    exit 2
  fi
  student=student:480x352:32 classic=classic:512x512:32 small=student:480x352:2 precision=bf16 train_precision=bf16
  student_loops=careful,accelerate,ours-no-graphs,ours-graphs small_loops=careful,ours-graphs,ours-no-graphs
  # Few rounds: each loop compiles again in a fresh process, from the compiler's cache.
  measure=(--samples 300 --rounds 2 --seconds 2 --check-steps 200) workers=(12 4)
  limits=() evaluation=(--rounds 2)
  shapes=400 train=()
fi

out=$(realpath -m "${1:-$(mktemp -d)}")
work=$(mktemp -d)
mkdir -p "$out" "$work/logs"
trap 'pkill -P $$ || true; tar -czf "$out/logs.tar.gz" -C "$work" logs; rm -rf "$work"' EXIT
: >"$out/summary.txt"
export PYTHONUNBUFFERED=1 PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}"
if [ -n "${WHEELS:-}" ]; then
  "$python" -m pip install -q --no-index --no-deps --no-compile --target "$work/site" "$WHEELS"/*.whl
  PYTHONPATH="$work/site:$PYTHONPATH"
fi
failed=0

# Lines for the terminal and the summary.
note() { if [ -n "$1" ]; then printf '%s\n' "$1" | tee -a "$out/summary.txt"; fi; }

# Run a command for at most a given percentage of the time, and keep what it prints. A step that fails or is cut short
# does not end the check.
step() {
  local name=$1 share=$2 began=$SECONDS result=ok code=0
  shift 2
  local left=$((limit_s - SECONDS)) cap=$((limit_s * share / 100))
  if ((left <= limit_s / 50)); then
    note "$name: no time left"
    return
  fi
  ((cap = cap < left ? cap : left, cap = cap > 0 ? cap : 1))
  echo "== $name, at most $cap s: $*"
  timeout --signal=INT --kill-after=10 "$cap" "$@" > >(tee "$work/logs/$name.log") 2>&1 || code=$?
  if ((code == 124 || code == 137)); then
    result="cut short after $cap s" failed=1
  elif ((code)); then
    result="FAILED ($code), see logs.tar.gz" failed=1
  fi
  note "$(printf '%-14s %4d s  %s' "$name" $((SECONDS - began)) "$result")"
}

# First step and images/s of each loop; a loop that did not reach its rounds has the images/s of its check.
loops='
import json, sys
for case in json.load(open(sys.argv[1]))["cases"]:
    for row in case["rows"]:
        rate, alone = row.get("images_per_s", {}).get("median"), row.get("alone_images_per_s")
        words = ["first step {first_step_s:.1f} s".format(**row)] if "first_step_s" in row else []
        if row["void"]:
            words = ["void: " + row["void"]]
        elif rate:
            ratio = row.get("ours_is_faster_by", {}).get("median", 1)
            words.append("%.4g images/s, ours %.2f x, %.2f of the limit" % (rate, ratio, rate / row["limit_images_per_s"]))
        elif alone:
            words.append("%.4g images/s, measured alone" % alone)
        print("  %s %-22s" % (case["case"], row["name"]), ", ".join(words) or "not reached")
'
train_loops() {
  local name=$1 share=$2 case=$3 workers=$4 against=$5
  step "$name" "$share" "$python" -m tests.benchmarks train --cases "$case" --precision "$precision" --workers "$workers" \
    "${measure[@]}" --against "$against" --work "$work/data" --out "$work/$name"
  collect "$name" train
  note "$("$python" -c "$loops" "$out/$name.json" 2>/dev/null || echo "  no numbers of $name")"
  local size=${case#*:}
  note "$(cd "$work/data/train/${size%:*}/logs" 2>/dev/null && grep -Ho "performance: .*" ours*.log | sed 's/^/  /')"
}

# Keep the JSON that a benchmark wrote.
collect() { if [ -f "$work/$1/$2.json" ]; then cp "$work/$1/$2.json" "$out/$1.json"; fi; }

# Median speed after the first half, and the score, of a run.
numbers='
import json, statistics, sys
lines = [json.loads(line) for line in open(f"{sys.argv[1]}/metrics.jsonl")]
speed = [line["time/images_per_s"] for line in lines if "time/images_per_s" in line]
miou = json.load(open(f"{sys.argv[1]}/scores.json"))["miou"]
print(f"  {statistics.median(speed[len(speed) // 2 :]):.0f} images/s, mIoU {miou:.3f}")
'
launch=("$python" -m accelerate.commands.launch --config_file configs/accelerate/one_gpu.yaml)
compiling="compiled or graphs"

note "$machine, commit $(git rev-parse --short HEAD 2>/dev/null || echo unknown)"
train_loops student 49 "$student" "${workers[0]}" "$student_loops"
train_loops classic 25 "$classic" "${workers[1]}" careful
step tests 17 "$python" -m pytest -m gpu tests/gpu -k "not ($compiling)" --durations=5 -p no:cacheprovider
step shards 10 "$python" launch/shard_dataset.py --shapes "$shapes" --val-fraction 0.2 --out "$work/shards"
step train 20 "${launch[@]}" launch/train.py --config configs/shapes.yaml --name run --runs_dir "$work" --data.train \
  "$work/shards/train" --data.val "$work/shards/val" --trainer.mixed_precision "$train_precision" \
  --tracking.tracker none "${train[@]}"
step evaluate 10 "${launch[@]}" launch/evaluate.py --model "$work/run/best" --data "$work/shards/val" \
  --mixed-precision "$train_precision" --json "$work/run/scores.json"
collect run scores
note "$("$python" -c "$numbers" "$work/run" 2>/dev/null || echo "  no numbers of the run")"
step evaluation 20 "$python" -m tests.benchmarks eval "${evaluation[@]}" --work "$work/data" --out "$work/evaluation"
collect evaluation eval
step limits 20 "$python" -m tests.benchmarks limits "${limits[@]}" --out "$work/limits"
collect limits limits
step compiling 30 "$python" -m pytest -m gpu tests/gpu -k "$compiling" -p no:cacheprovider
train_loops small_batches 40 "$small" "${workers[0]}" "$small_loops"

printf '%s\n' "" "== summary" "$(<"$out/summary.txt")" "files: $out"
exit "$failed"
