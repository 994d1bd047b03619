"""Tests of jobs/cloud as text; `make cloud-check` loads the files with the tools that they are for."""

import json
import os
import re
import shutil
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

from sage.jobs.resources import resources
from sage.jobs.sweep import read

CHECKOUT = Path(__file__).parents[2]
CLOUD = CHECKOUT / "jobs" / "cloud"
PAGE = (CHECKOUT / "docs" / "how-to" / "cloud.md").read_text(encoding="utf-8")
TEXT = " ".join(PAGE.split())
DOCKERFILE = (CLOUD / "Dockerfile").read_text(encoding="utf-8")

PRINT = """#!/usr/bin/env python3
import json, os, sys
names = ("hostip", "port", "rank", "world_size", "SAGE_SECRET")
print(json.dumps([sys.argv[1:], {name: os.environ.get(name) for name in names}]))
"""
"""Replaces Python, and prints how it was called."""

SUDO = """#!/bin/sh
case $1 in
tee) echo "$* $(cat)" | sed 's/exports /exports: /; s/ *$//' >&2 ;;
*) echo "$*" >&2 ;;
esac
"""
"""Replaces sudo, and prints the command, and the line that tee gets."""


def content(name: str) -> Any:
    return yaml.safe_load((CLOUD / name).read_text(encoding="utf-8"))


def test_the_task_of_skypilot_starts_run_sh_with_the_rank_of_each_node(tmp_path: Path) -> None:
    task = content("skypilot.yaml")
    nodes = task["num_nodes"]
    addresses = [f"10.0.0.{each + 1}" for each in range(nodes)]
    shutil.copy(CHECKOUT / "run.sh", tmp_path)
    for name, text in {"python": PRINT, "sudo": SUDO}.items():
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    for node in range(nodes):
        environment = {
            **task["envs"],
            "SAGE_SECRET": "ab12",
            "PATH": f"{tmp_path}:{os.environ['PATH']}",
            "PYTHON": str(tmp_path / "python"),
            "SKYPILOT_NODE_IPS": "\n".join(addresses),
            "SKYPILOT_NODE_RANK": str(node),
            "SKYPILOT_NUM_NODES": str(nodes),
        }
        done = subprocess.run(
            ["bash", "-c", task["run"]], cwd=tmp_path, env=environment, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        argv, found = json.loads(done.stdout)
        options = ["--reducer", "sage", "--density", "0.001"]
        assert argv == ["-m", "sage", "run", "resnet18-cifar10", "--world-size", str(nodes), *options]
        assert found == {
            "hostip": addresses[0],
            "port": "29500",
            "rank": str(node),
            "world_size": str(nodes),
            "SAGE_SECRET": "ab12",
        }
        runs = tmp_path / "runs"
        exported = " ".join(f"{address}(rw,sync,no_subtree_check)" for address in addresses)
        assert done.stderr.splitlines() == (
            [f"mount -t nfs4 {addresses[0]}:{runs} runs"]
            if node
            else [f"tee /etc/exports.d/sage.exports: {runs} {exported}", "exportfs -ra"]
        )


def test_the_nodes_of_skypilot_are_on_the_spot_market_have_a_gpu_for_the_rank_and_end_by_themselves() -> None:
    task = content("skypilot.yaml")
    assert task["resources"]["use_spot"] is True
    assert task["resources"]["accelerators"].endswith(":1")
    assert task["resources"]["autostop"]["down"] is True
    assert f"{task['num_nodes']} spot nodes" in TEXT
    assert f"end {task['resources']['autostop']['idle_minutes']} minutes after the run" in TEXT
    header = (CLOUD / "skypilot.yaml").read_text(encoding="utf-8").partition("\nname:")[0]
    for command in (
        "sky launch --cluster sage --secret SAGE_SECRET=",
        "rsync --archive",
        "sky down --yes sage",
    ):
        assert command in header
        assert command in PAGE


def test_the_sweep_of_the_page_fits_the_cluster(tmp_path: Path) -> None:
    cluster = content("cluster.yaml")
    queues = {queue["Name"]: queue for queue in cluster["Scheduling"]["SlurmQueues"]}
    sweep, options = re.findall(r"^```toml\n(.*?)^```", PAGE, flags=re.DOTALL | re.MULTILINE)
    (tmp_path / "sweep.toml").write_text(sweep)
    for config in read(tmp_path / "sweep.toml", tmp_path / "runs").configs:
        asked = resources(config)
        queue = queues[dict(asked.options)["partition"]]
        (nodes,) = (each["MaxCount"] for each in queue["ComputeResources"])
        assert asked.nodes <= nodes
        assert queue["CapacityType"] == "SPOT"
    assert set(tomllib.loads(options)["slurm"]) == {"container-image", "container-mounts"}
    most = {name: queue["ComputeResources"][0]["MaxCount"] for name, queue in queues.items()}
    assert f"a queue `gpu` of up to {most['gpu']} spot nodes" in TEXT
    assert f"a queue `cpu` of up to {most['cpu']}." in TEXT
    assert all(queue["ComputeResources"][0]["MinCount"] == 0 for queue in queues.values())
    idle = cluster["Scheduling"]["SlurmSettings"]["ScaledownIdletime"]
    assert f"end {idle} minutes after the last" in TEXT


def test_the_image_has_what_ci_installs_and_every_extra() -> None:
    listed = (CHECKOUT / ".ci" / "run").read_text(encoding="utf-8")
    wanted = {name for line in re.findall(r"^want \S+ (.*)$", listed, re.MULTILINE) for name in line.split()}
    stages = re.split(r"^FROM ", DOCKERFILE, flags=re.MULTILINE)[1:]
    packages = {
        name for stage in stages for name in re.findall(r"^        ([a-z0-9+-]+) \\$", stage, re.MULTILINE)
    }
    assert wanted <= packages
    assert [stage.split()[:3] for stage in stages] == [
        ["debian:bookworm-slim", "AS", "sage"],
        ["sage", "AS", "test"],
    ]
    project = tomllib.loads((CHECKOUT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = set(project["optional-dependencies"]) - {"dev"}
    assert f"'/opt/checkout[{','.join(sorted(extras))}]'" in DOCKERFILE


@pytest.mark.parametrize("tool", ["aws-parallelcluster", "skypilot[aws]"])
def test_the_page_names_the_versions_that_are_checked(tool: str) -> None:
    (version,) = re.findall(rf"{re.escape(tool)}==(\S+)", (CHECKOUT / "Makefile").read_text(encoding="utf-8"))
    assert f"{tool}=={version}" in PAGE
    name = "cluster.yaml" if "cluster" in tool else "skypilot.yaml"
    assert version.rpartition(".")[0] in (CLOUD / name).read_text(encoding="utf-8").splitlines()[0]
