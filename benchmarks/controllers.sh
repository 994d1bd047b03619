#!/usr/bin/env bash
# Training under the published controller of the density and under ours. About half an hour on two cores.
#
#   SAGE_DATA_DIR=<folder with cifar10/> benchmarks/controllers.sh [FOLDER FOR THE RUNS]
#
# ResNet-20 on CIFAR-10, two ranks, 469 small batches, a fifth of the test set: what two CPU cores can give.
# benchmarks/real_data/controllers holds the records of these runs, and their report.
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
