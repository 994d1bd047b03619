#!/usr/bin/env bash
# Trains every model family on real data with two ranks, with and without compression. Takes about an hour on two cores.
#
#   SAGE_DATA_DIR=<folder with cifar10/ ptb/ wikitext-2/ ml-100k/> benchmarks/real_data.sh [FOLDER FOR THE RUNS]
#
# The settings are those of the workloads, reduced for two CPU cores: fewer epochs, smaller batches, narrower LSTMs.
# benchmarks/real_data/ contains the report of these runs.
set -euo pipefail
runs=${1:-runs/real_data}
sage=${SAGE:-sage}

for reducer in exact sage topk threshold; do
  density=(--density 0.01)
  [ "$reducer" != exact ] || density=()
  $sage run resnet20-cifar10 --reducer "$reducer" "${density[@]}" \
    --batch-size 128 --epochs 4 --warmup-epochs 0 --schedule cosine --eval-every 0.5 --runs "$runs"
done
for reducer in exact sage; do
  density=(--density 0.01)
  [ "$reducer" != exact ] || density=()
  $sage run ncf-ml100k --reducer "$reducer" --epochs 10 --runs "$runs"
  $sage run lstm-ptb --reducer "$reducer" "${density[@]}" --steps 400 --eval-every 0.06 --lr 10 \
    --model.embedding 300 --model.hidden 300 --model.dropout 0.2 --data.limit-test 20000 --runs "$runs"
  $sage run lstm-wikitext2 --reducer "$reducer" "${density[@]}" --steps 400 --eval-every 0.06 --batch-size 20 \
    --lr 10 --lr-scale 0 --warmup-epochs 0 --clip-local 0.4 \
    --model.embedding 200 --model.hidden 200 --model.dropout 0.2 --data.limit-test 20000 --runs "$runs"
done
$sage report "$runs" --output "$runs"
