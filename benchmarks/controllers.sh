#!/usr/bin/env bash
# Trains with the density controllers `sage` (published), `feedback` and `quantile`. About half an hour on two cores.
#
#   SAGE_DATA_DIR=<folder with cifar10/> benchmarks/controllers.sh [FOLDER FOR THE RUNS]
#
# ResNet-20 on CIFAR-10, two ranks, 469 small batches, a fifth of the test set: sized for two CPU cores.
# benchmarks/real_data/controllers contains the records of these runs and their report.
set -euo pipefail
runs=${1:-runs/controllers}
sage=${SAGE:-sage}

train() {
  $sage run resnet20-cifar10 "$@" \
    --batch-size 32 --epochs 0.6 --warmup-epochs 0 --schedule cosine \
    --eval-every 0.15 --data.limit-test 2000 --runs "$runs"
}
train --reducer exact
for density in 0.01 0.001; do
  for controller in sage feedback quantile; do
    train --reducer sage --controller "$controller" --density "$density"
  done
done
$sage report "$runs" --output "$runs"
