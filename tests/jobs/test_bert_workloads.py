"""Tests that the workloads of BERT have the published settings, by `sage run --print-config`."""

from typing import Any

import pytest
from printed_config import printed_config

COLUMNS = (
    *("config", "length", "epochs", "texts", "lr", "warmup", "warmup_from", "schedule", "min_lr"),
    *("weight_decay", "decay_norms", "adam_eps", "clip_global", "steps", "mount", "bucket_mb"),
)

# Fine-tuning: Sun et al. 2019, xuyige/BERT4doc-Classification; utility study:
# uw-mad-dash/GradCompressionUtility@b73b330. `texts` is the number of texts of a step on both ranks, `warmup`
# the share of the steps.
PUBLISHED: dict[str, tuple[Any, ...]] = {
    "bert-ag-news": (
        *("base", 128, 3, 24, 2e-5, 0.1, 0, "linear", 0),
        *(0.01, False, 1e-6, 1, None, "whole", 25),
    ),
    "bert-sogou": (
        *("base-chinese", 512, 3, 24, 2e-5, 0.1, 0, "linear", 0),
        *(0.01, False, 1e-6, 1, None, "whole", 25),
    ),
    "bert-sogou-utility": (
        *("base-chinese", 512, 1000, 16, 1e-5, 0, None, "constant", 0),
        *(0, False, 1e-8, None, 60, "ddp", 45),
    ),
}


@pytest.mark.parametrize("workload", PUBLISHED)
def test_a_workload_has_the_published_settings(capsys: pytest.CaptureFixture[str], workload: str) -> None:
    config = printed_config(capsys, workload)
    assert (config["task"], config["model"], config["optimizer"]) == ("classify", "bert", "adamw")
    assert (config["beta1"], config["beta2"]) == (0.9, 0.999)
    defaults = {"min_lr": 0, "warmup_from": None, "adam_eps": 1e-8, "mount": "whole", "bucket_mb": 25}
    found = defaults | config | config["model_options"] | config["data_options"]
    found |= {"texts": config["batch_size"] * 2, "warmup": config["warmup_epochs"] / config["epochs"]}
    assert found["world_size"] == 2
    expected = dict(zip(COLUMNS, PUBLISHED[workload], strict=True))
    assert {name: found.get(name) for name in COLUMNS} == pytest.approx(expected)


def test_the_utility_study_reads_1200_chinese_texts(capsys: pytest.CaptureFixture[str]) -> None:
    config = printed_config(capsys, "bert-sogou-utility")
    assert config["data"] == "sogou"
    assert (config["data_options"]["form"], config["data_options"]["limit_train"]) == ("chinese", 1200)
