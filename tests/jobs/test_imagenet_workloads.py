"""Tests that the workloads of ImageNet have the published settings, by `sage run --print-config`."""

import json
from pathlib import Path
from typing import Any

import pytest
from printed_config import printed_config

from sage.cli.main import main

COLUMNS = (
    *("batch_size", "epochs", "lr", "lr_scale", "warmup_epochs", "warmup_from", "schedule", "milestones"),
    *("lr_factor", "momentum", "momentum_kind", "weight_decay", "decay_norms"),
)

# SIDCo's exp_configs state batch size, epochs and learning rate; the rest is in dl_trainer.py and run8.sh.
SIDCO_COURSE: tuple[Any, ...] = (0, 5, 0, "step", [30, 60, 80], 0.1)
SIDCO_SGD: tuple[Any, ...] = (0.9, "none", 6.1035e-5, False)
UTILITY: tuple[Any, ...] = (64, 1, 0.1, 0, 0, None, "constant", [], 0.1, 0.9, "heavy-ball", 0, False)

# BytePS: guide of gradient compression, example/mxnet/gradient_compression; SIDCo: ahmedcs/SIDCo@ae5c34a,
# exp_configs and run8.sh; utility study: uw-mad-dash/GradCompressionUtility@b73b330.
PUBLISHED: dict[str, tuple[Any, ...]] = {
    "resnet18v2-cifar100": (
        *(32, 200, 0.1, 0.125, 10, None, "step", [110, 160], 0.1),
        *(0.9, "nesterov", 5e-4, True),
    ),
    "resnet50v2-imagenet": (
        *(64, 120, 0.2, 0.125, 5, None, "cosine", [], 0.1),
        *(0.9, "nesterov", 1e-4, True),
    ),
    "vgg16-imagenet": (
        *(32, 100, 0.01, 0.125, 5, None, "step", [50, 80], 0.1),
        *(0.9, "nesterov", 1e-4, True),
    ),
    "resnet50-imagenet": (160, 90, 0.2, *SIDCO_COURSE, *SIDCO_SGD),
    "vgg19-imagenet": (160, 90, 0.05, *SIDCO_COURSE, *SIDCO_SGD),
    "vgg16-imagenet-sidco": (128, 95, 0.01, *SIDCO_COURSE, *SIDCO_SGD),
    "googlenet-imagenet": (128, 95, 0.01, *SIDCO_COURSE, *SIDCO_SGD),
    "alexnet-imagenet": (128, 95, 0.01, *SIDCO_COURSE, *SIDCO_SGD),
    "inceptionv3-imagenet": (64, 95, 0.01, *SIDCO_COURSE, *SIDCO_SGD),
    "resnet50-imagenet-utility": UTILITY,
    "resnet101-imagenet-utility": UTILITY,
}

NETWORKS: dict[str, tuple[str, dict[str, Any], str]] = {
    "resnet50v2-imagenet": ("resnet_v2", {"depth": 50, "stem": "7x7", "init": "msra"}, "byteps"),
    "vgg16-imagenet": ("imagenet", {"net": "vgg16"}, "byteps"),
    "resnet50-imagenet": ("imagenet", {"net": "resnet50"}, "plain"),
    "vgg19-imagenet": ("imagenet", {"net": "vgg19"}, "plain"),
    "vgg16-imagenet-sidco": ("imagenet", {"net": "vgg16"}, "plain"),
    "googlenet-imagenet": ("imagenet", {"net": "googlenet"}, "plain"),
    "alexnet-imagenet": ("imagenet", {"net": "alexnet"}, "plain"),
    "inceptionv3-imagenet": ("imagenet", {"net": "inception_v3"}, "plain"),
    "resnet50-imagenet-utility": ("imagenet", {"net": "resnet50"}, "plain"),
    "resnet101-imagenet-utility": ("imagenet", {"net": "resnet101"}, "plain"),
}


@pytest.mark.parametrize("workload", PUBLISHED)
def test_a_workload_has_the_published_settings(capsys: pytest.CaptureFixture[str], workload: str) -> None:
    config = printed_config(capsys, workload)
    assert (config["task"], config["optimizer"]) == ("classify", "sgd")
    assert {name: config.get(name) for name in COLUMNS} == dict(
        zip(COLUMNS, PUBLISHED[workload], strict=True)
    )


@pytest.mark.parametrize("workload", NETWORKS)
def test_a_workload_has_the_published_network_and_images(
    capsys: pytest.CaptureFixture[str], workload: str
) -> None:
    model, options, preprocessing = NETWORKS[workload]
    config = printed_config(capsys, workload)
    assert (config["model"], config["model_options"], config["data"]) == (model, options, "image_folder")
    found = config["data_options"]
    assert (found["folder"], found["size"], found["preprocessing"]) == ("imagenet", 224, preprocessing)


def test_the_resnet18_v2_of_byteps_has_its_stem_and_its_five_digit_means(
    capsys: pytest.CaptureFixture[str],
) -> None:
    config = printed_config(capsys, "resnet18v2-cifar100")
    assert (config["model"], config["data"]) == ("resnet_v2", "cifar100")
    assert config["model_options"] == {"depth": 18, "stem": "7x7", "init": "xavier"}
    assert config["data_options"]["preprocessing"] == "byteps"


def test_the_utility_study_times_60_steps(capsys: pytest.CaptureFixture[str]) -> None:
    for workload in ("resnet50-imagenet-utility", "resnet101-imagenet-utility"):
        assert printed_config(capsys, workload)["steps"] == 60


def test_photographs_of_caltech101_train_a_small_network(shared_data: Path, tmp_path: Path) -> None:
    if not (shared_data / "caltech101-imagefolder").is_dir():
        pytest.skip("no caltech101-imagefolder under SAGE_DATA_DIR")
    argv = "run resnet50-caltech101 --model.net resnet18 --data.size 32 --data.limit-test 8 --steps 2 "
    argv += "--batch-size 4 --data.loaders 1 --reducer topk --workers-in-process"
    paths = ["--data-root", str(shared_data), "--runs", str(tmp_path)]
    assert main([*argv.split(), *paths]) == 0
    (folder,) = tmp_path.iterdir()
    assert set(json.loads((folder / "manifest.json").read_text())["checksums"]) == {"train", "val"}
    assert {"accuracy", "top5"} < set(json.loads((folder / "result.json").read_text())["final"])
