#!/usr/bin/env bash
# What a machine with a GPU must show: the tests that need one pass; every layer beside what the device could do; our
# training loop beside what people would write; the built-in shapes, sharded, are learnt in float32 and in bf16 and
# scored. Prints a summary with times; under 9 minutes, as what is left then is cut short. Without a GPU: says so, exit
# code 2.
#   launch/gpu_check.sh [FOLDER]      # logs, JSON, shards and runs go there (default: a new one); PYTHON=... chooses the
#                                     # python, PEERS_PYTHON=... that of Lightning, LIMIT_S=... the seconds (530)
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

python=${PYTHON:-python3}
facts='import torch; print(torch.cuda.get_device_name(), "torch", torch.__version__, "cuda", torch.version.cuda)'
if ! machine=$("$python" -c "$facts" 2>/dev/null); then
  echo "gpu_check: $python has no torch that sees a GPU; nothing was checked" >&2
  exit 2
fi
out=$(realpath -m "${1:-$(mktemp -d)}")
mkdir -p "$out"
limit_s=${LIMIT_S:-530}
summary=()
failed=0

# Run a command with its output in a log; its time goes to the summary, and a failure does not end the check. What takes
# longer than is left fails with 124.
step() {
  local name=$1 began=$SECONDS result=ok
  shift
  echo "$name: $*"
  timeout --kill-after=10 "$((limit_s > SECONDS ? limit_s - SECONDS : 1))" "$@" >"$out/$name.log" 2>&1 || { result="FAILED ($?), see $out/$name.log"; failed=1; tail -n 20 "$out/$name.log"; }
  summary+=("$(printf '%-14s %4d s  %s' "$name" $((SECONDS - began)) "$result")")
}

# Median speed after the first half, and the score, of a run.
numbers='
import json, statistics, sys
lines = [json.loads(line) for line in open(f"{sys.argv[1]}/metrics.jsonl")]
speed = [line["time/images_per_s"] for line in lines if "time/images_per_s" in line]
miou = json.load(open(f"{sys.argv[1]}/scores.json"))["miou"]
print(f"{statistics.median(speed[len(speed) // 2 :]):.0f} images/s, mIoU {miou:.3f}")
'
launch=("$python" -m accelerate.commands.launch --config_file configs/accelerate/one_gpu.yaml)

# Median images/s of each loop, and how many times as fast ours is.
loops='
import json, sys
for case in json.load(open(sys.argv[1]))["cases"]:
    for row in case["rows"]:
        rate = row.get("images_per_s", {}).get("median")
        ratio = row.get("ours_is_faster_by", {}).get("median")
        name = case["case"] + " " + row["name"]
        text = f"void: {row['void']}" if rate is None else f"{rate:.0f} images/s, ours {ratio:.2f} x" if ratio else f"{rate:.0f} images/s"
        print(f"  {name:40s} {text}" + (f", {row['share_of_limit']:.2f} of the limit" if rate else ""))
'
train_loops() {
  local name=$1 case=$2 workers=$3
  step "$name" "$python" launch/benchmark.py train --cases "$case" --precisions bf16 --workers "$workers" --samples 600 \
    --against ours-off,accelerate,lightning,nnunet,careful --rounds 4 --seconds 0.5 \
    --peers-python "${PEERS_PYTHON:-$python}" --work "$out/work" --out "$out/$name"
  summary+=("$("$python" -c "$loops" "$out/$name/train.json" 2>/dev/null || echo "no numbers of $name")")
}

step tests "$python" -m pytest -m gpu
step layers "$python" launch/benchmark.py layers --out "$out/layers"
train_loops loops_student student:480x352:32 12
train_loops loops_classic classic:512x512:32 4
step validation "$python" launch/benchmark.py eval --rounds 3 --work "$out/work" --out "$out/validation"
step shards "$python" launch/shard_dataset.py --shapes 400 --val-fraction 0.2 --out "$out/shards"
for precision in no bf16; do
  run="$out/runs/$precision"
  step "train_$precision" "${launch[@]}" launch/train.py --config configs/shapes.yaml --name "$precision" \
    --runs_dir "$out/runs" --data.train "$out/shards/train" --data.val "$out/shards/val" \
    --trainer.mixed_precision "$precision" --tracking.tracker none
  step "evaluate_$precision" "${launch[@]}" launch/evaluate.py --model "$run/best" --data "$out/shards/val" \
    --mixed-precision "$precision" --json "$run/scores.json"
  summary+=("$("$python" -c "$numbers" "$run" 2>/dev/null || echo "no numbers of $run")")
done
# The least important comes last, and only where there is time for it.
if ((limit_s - SECONDS > 150)); then
  train_loops loops_batch_2 student:480x352:2 12
else
  summary+=("loops_batch_2: no time left")
fi

printf '%s\n' "" "$machine, commit $(git rev-parse --short HEAD 2>/dev/null || echo unknown)" "${summary[@]}" "all files: $out"
exit "$failed"
