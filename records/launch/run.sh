#!/usr/bin/env bash
# From nothing to a verified record, on any machine: data, preflight, one run per seed, pack, verify.
#
#   RECORD_NAME="Longer context" RECORD_AUTHOR="..." RECORD_GITHUB_ID=... bash records/launch/run.sh
#
# The trainer takes its settings from the environment, as always. What is done is not done again: after a failure start
# the same command again, in the same folder; a run goes on from its last checkpoint. The answer of `verify` is kept as
# runs/verify.txt. Exit code: that of `verify`, or 0 where it misses nothing but your words in the record's README.md.
set -euo pipefail

: "${RECORD_NAME:?is not set: the title of the record}" "${RECORD_AUTHOR:?is not set: your name}"
: "${RECORD_GITHUB_ID:?is not set: your GitHub user name}"
root=$(cd "$(dirname "$0")/../.." && pwd)
seeds=${RECORD_SEEDS:-1 2 3}
track=${RECORD_TRACK:-10min}             # or non-record
records=${RECORD_DIR:-$root/records}     # the folder that holds the tracks
trainer=$root/${TRAINER:-train_gpt.py}
python=$root/.venv/bin/python
[[ -x $python ]] || python=python3
python=${PYTHON:-$python}
export DATA_PATH=${DATA_PATH:-data/fineweb10B_sp1024} PYTHONPATH=$root

# LAUNCH stands before torchrun and starts it on every node; TORCHRUN: its flags, by default for one node
gpus=${GPUS:-$("$python" -c 'import torch; print(torch.cuda.device_count())')}
read -ra launch <<< "${LAUNCH:-}"
read -ra flags <<< "${TORCHRUN:---standalone --local-addr 127.0.0.1}"
train=("$python" "$trainer")
if ((gpus > 1)) || [[ -n ${TORCHRUN:-} ]]; then
  flags+=("--nproc_per_node=$gpus")
  train=(${launch[@]+"${launch[@]}"} "$python" -m torch.distributed.run "${flags[@]}" "$trainer")
fi

[[ -f $DATA_PATH/manifest.json ]] || "$python" -m common.data fineweb --out "$DATA_PATH"
"${train[@]}" --preflight

slug=$(tr '[:upper:]' '[:lower:]' <<< "$RECORD_NAME" | tr -cs 'a-z0-9' _ | sed 's/^_//; s/_$//' | cut -c1-60)
mkdir -p runs
runs=()
for seed in $seeds; do
  run=${slug}_$seed
  runs+=("runs/$run")
  grep -qsE '"status": "(finished|capped)"' "runs/$run/status.json" && continue
  SEED=$seed RUN_ID=$run RESUME=auto "${train[@]}"
done

record() { find "$records" -path "*/track_*/????-??-??_$slug" -prune 2> /dev/null || true; }
if [[ -z $(record) ]]; then
  "$python" -m records pack "${runs[@]}" --records "$records" --track "$track" --name "$RECORD_NAME" \
    --author "$RECORD_AUTHOR" --github-id "$RECORD_GITHUB_ID" > runs/pack.txt || [[ -n $(record) ]]
fi
code=0
"$python" -m records verify --smoke --data "$DATA_PATH" "$(record)" > runs/verify.txt || code=$?
cat runs/verify.txt
grep -q "^FAILS by the strict rules: layout$" runs/verify.txt && grep -q "say TO BE WRITTEN" runs/verify.txt && code=0
exit "$code"
