#!/usr/bin/env bash
# Trains the runs of docs/figure.svg: exact, bf16, top-k and SAGE with the current defaults, three seeds each.
#
#   SAGE_DATA_DIR=<folder with cifar10/> benchmarks/figure.sh [FOLDER FOR THE RUNS]
#   python benchmarks/figure.py runs/figure --output docs/figure.svg
#
# ResNet-20 on CIFAR-10, two ranks, batches of 32 per rank, evaluated on a fifth of the test set. EPOCHS=0.6 (the
# default) takes about 40 CPU minutes; EPOCHS=4, on the whole test set, takes about five hours. Finished runs are
# reused: rerun the script to continue after an interruption.
set -euo pipefail
runs=${1:-runs/figure}
sage=${SAGE:-sage}
epochs=${EPOCHS:-0.6}
test_images=(--data.limit-test 2000)
[ "$epochs" = 0.6 ] || test_images=()

for seed in 0 1 2; do
  for reducer in exact bf16 topk sage; do
    density=(--density 0.01)
    case $reducer in exact | bf16) density=() ;; esac
    $sage run resnet20-cifar10 --reducer "$reducer" "${density[@]}" --seed "$seed" \
      --batch-size 32 --epochs "$epochs" --warmup-epochs 0 --schedule cosine \
      --eval-every "$(awk "BEGIN { print $epochs / 4 }")" "${test_images[@]}" --runs "$runs"
  done
done
