#!/usr/bin/env bash
# Trains ResNet-50 on photographs, DeepSpeech on AN4 and BERT tiny on AG News with two ranks, with and without
# compression. Takes about an hour and a half on two cores.
#
#   SAGE_DATA_DIR=<folder with caltech101-imagefolder/ an4/ ag_news_csv/> benchmarks/images_speech_text.sh [FOLDER FOR THE RUNS]
#
# The settings are those of the workloads, reduced for two CPU cores; the learning rates are tuned for no method.
# `--data.excerpt` accepts a part of AG News's train.csv; the manifest says how many rows it has.
# benchmarks/real_data/images_speech_text/ contains the report of these runs.
set -euo pipefail
runs=${1:-runs/images_speech_text}
sage=${SAGE:-sage}

for reducer in exact sage powersgd; do
  $sage run resnet50-caltech101 --reducer "$reducer" --data.size 64 --batch-size 8 --lr 0.005 --steps 600 \
    --warmup-epochs 1 --eval-every 5 --runs "$runs"
  $sage run bert-tiny-ag-news --data.excerpt --reducer "$reducer" --epochs 6 --runs "$runs"
done
$sage run bert-tiny-ag-news --data.excerpt --reducer powersgd --rank 4 --epochs 6 --runs "$runs"
for reducer in exact sage powersgd; do
  epochs=12
  [ "$reducer" != powersgd ] || epochs=20
  $sage run deepspeech-cpu-an4 --reducer "$reducer" --epochs "$epochs" --eval-every 2 --runs "$runs"
done
$sage report "$runs" --output "$runs"
