"""Tests that `sage doctor` names each fault, its node and the fix: here, over ssh, and from given facts."""
# tests/slurm/test_doctor.py tests it on nodes in separate networks.

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from commands import call
from healthy_node import facts
from launcher import free_port, outside, until
from sshd import Sshd

from sage.cluster.doctor.checks import CHECKS, check_all
from sage.cluster.doctor.findings import Finding, Observations
from sage.cluster.doctor.link_checks import distances

CHECKOUT = Path(__file__).parents[2]
Sage = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(autouse=True)
def without_a_job(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.startswith(("SLURM_", "GLOO_", "NCCL_")) or name in ("hostip", "port", "rank", "world_size"):
            monkeypatch.delenv(name)


def failures(output: subprocess.CompletedProcess[str]) -> dict[str, str]:
    """The failed checks; asserts the doctor's exit status for failures."""
    findings = json.loads(output.stdout)["findings"]
    found = {one["check"]: one["found"] for one in findings if one["status"] == "failed"}
    assert output.returncode == (1 if found else 0), output.stderr
    assert all(one["fix"] for one in findings if one["status"] == "failed")
    return found


# On this machine.


def test_this_machine_passes_every_check(sage: Sage, tmp_path: Path) -> None:
    output = sage("doctor", "--ranks", "2")
    assert output.returncode == 0, output.stdout
    lines = output.stdout.splitlines()
    for check in CHECKS:
        assert any(line.startswith(f"ok      {check.name}: ") for line in lines), (check.name, output.stdout)
    assert "of 2 ranks, " in next(line for line in lines if "all-reduce" in line)
    assert not any(tmp_path.iterdir())


def test_a_wrong_interface_and_an_unwritable_folder_are_named(sage: Sage, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    output = sage("doctor", "--interface", "nope7", "--runs", "file/runs", "--json")
    found = failures(output)
    assert found.keys() == {"interface", "runs folder"}
    assert "GLOO_SOCKET_IFNAME=nope7: no interface has the name 'nope7'" in found["interface"]
    assert "NCCL_SOCKET_IFNAME==nope7 selects no interface" in found["interface"]
    assert found["runs folder"] == f"cannot write to {tmp_path}/file/runs: Not a directory"


def test_a_port_that_another_program_uses_is_named(sage: Sage) -> None:
    with socket.create_server(("", 0)) as other:
        port = other.getsockname()[1]
        output = sage("doctor", "--port", str(port), "--timeout", "2", "--json")
    assert f"127.0.0.1 port {port}: " in failures(output)["rank 0's port"]
    result = [
        one["found"] for one in json.loads(output.stdout)["findings"] if one["check"] == "rank 0's port"
    ]
    assert any("rank 0 cannot open it: Address already in use" in found for found in result)
    assert any("another program answers there, not rank 0" in found for found in result)


def test_a_name_that_does_not_resolve_is_named(sage: Sage) -> None:
    output = sage("doctor", "--hostip", "nobody.invalid", "--ranks", "1", "--timeout", "2", "--json")
    found = failures(output)
    assert found.keys() == {"rank 0's name", "rank 0's port"}
    assert found["rank 0's name"].startswith("nobody.invalid does not resolve: ")


def test_an_agent_that_dies_is_named(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "sage", "doctor", "--timeout", "2", "--json"]
    environ = {**outside(), "PYTHONPATH": str(CHECKOUT)}
    with subprocess.Popen(command, cwd=tmp_path, env=environ, stdout=subprocess.PIPE, text=True) as front:
        children = Path(f"/proc/{front.pid}/task/{front.pid}/children")

        def second() -> list[int]:
            variables = {
                pid: Path(f"/proc/{pid}/environ").read_bytes() for pid in children.read_text().split()
            }
            return [int(pid) for pid, environ in variables.items() if b"rank=1" in environ.split(b"\0")]

        until(lambda: bool(second()))
        os.kill(second()[0], signal.SIGKILL)
        output, _ = front.communicate(timeout=100)
    found = failures(subprocess.CompletedProcess(command, front.returncode, output, ""))
    assert "sent no report" in found["agent"] or "stopped reporting after the step" in found["agent"]
    where = next(one["where"] for one in json.loads(output)["findings"] if one["check"] == "agent")
    assert where.endswith("(rank 1)")


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ("--ranks 0", "--ranks 0: expected 1 to 1024"),
        ("--port 70000", "--port 70000: expected 1 to 65535"),
        ("--timeout 0", "--timeout 0: expected 1 to 3600"),
        ("--hosts nowhere.txt", "cannot read the hosts file nowhere.txt"),
    ],
)
def test_wrong_arguments_are_one_line_errors(argv: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call("doctor", *argv.split())


def test_under_srun_each_rank_but_the_first_refuses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "1")
    monkeypatch.setenv("SLURM_PROCID", "1")
    with pytest.raises(ValueError, match="call it once in a job, without srun"):
        call("doctor")


SRUN = """#!{python}
import os, subprocess, sys
start = next(i for i, word in enumerate(sys.argv) if i and not word.startswith("--"))
command, one = sys.argv[start:], "--ntasks=1" in sys.argv
tasks = []
for task in range(1 if one else 2):
    told = {{"SLURM_PROCID": str(task), "SLURM_STEP_NUM_TASKS": "1" if one else "2", "SLURM_STEP_ID": "0"}}
    tasks.append(subprocess.Popen(command, env={{**os.environ, **told}}))
sys.exit(max(task.wait() for task in tasks))
"""
"""Replaces srun: starts one task for --ntasks=1, else two."""


def test_a_jobs_own_nodes_are_checked_through_srun(
    sage: Sage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    programs = tmp_path / "programs"
    programs.mkdir()
    for name, text in (("srun", SRUN.format(python=sys.executable)), ("scontrol", "#!/bin/sh\necho node1\n")):
        (programs / name).write_text(text)
        (programs / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}:{os.environ['PATH']}")
    variables = {"JOB_ID": "31234", "JOB_NODELIST": "node1", "TASKS_PER_NODE": "2", "JOB_NUM_NODES": "1"}
    for name, value in variables.items():
        monkeypatch.setenv(f"SLURM_{name}", value)
    for name in ("rank", "RANK", "OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE"):  # leftovers
        monkeypatch.setenv(name, "7")
    done = sage("doctor", "--interface", "nope7", "--json")
    assert failures(done).keys() == {"interface"}, done.stdout
    found = {one["check"]: one for one in json.loads(done.stdout)["findings"]}
    assert found["rank 0's port"]["status"] == "ok"


@pytest.mark.parametrize(
    ("result", "message"),
    [
        ({}, "SLURM_JOB_ID=1 is set, but SLURM_JOB_NODELIST is not set"),
        ({"SLURM_STEP_NUM_TASKS": "4"}, "call it once in a job, without srun"),
    ],
)
def test_an_incomplete_job_environment_is_a_one_line_error(
    monkeypatch: pytest.MonkeyPatch, result: dict[str, str], message: str
) -> None:
    for name, value in ({"SLURM_JOB_ID": "1"} | result).items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ValueError, match=message):
        call("doctor")


# Over ssh.


@pytest.fixture
def sshd(tmp_path: Path) -> Iterator[Sshd]:
    (tmp_path / "ssh").mkdir()
    server = Sshd(tmp_path / "ssh")
    yield server
    server.close()


def test_hosts_are_checked_over_ssh(sage: Sage, sshd: Sshd, tmp_path: Path) -> None:
    (tmp_path / "hosts").write_text("here\nthere\n")
    by_ssh = ("doctor", "--hosts", "hosts", "--ssh", sshd.ssh, "--hostip", "127.0.0.1", "--json")
    # With a wrong interface torch is not imported.
    output = sage(*by_ssh, "--timeout", "10", "--interface", "nope7")
    assert failures(output).keys() == {"interface"}
    findings = {one["check"]: one for one in json.loads(output.stdout)["findings"]}
    assert findings["rank 0's port"]["where"] == "all nodes"
    assert "here to there" in findings["links"]["found"] or "there to here" in findings["links"]["found"]


def test_a_host_that_ssh_does_not_reach_is_named(sage: Sage, sshd: Sshd, tmp_path: Path) -> None:
    (tmp_path / "hosts").write_text("unreachable\nthere\n")
    output = sage("doctor", "--hosts", "hosts", "--ssh", sshd.ssh, "--json")
    assert "cannot find a free port on unreachable: " in failures(output)["start"]
    (tmp_path / "hosts").write_text("here\nunreachable\n")
    port = ("--port", free_port(), "--hostip", "127.0.0.1", "--timeout", "2")
    output = sage("doctor", "--hosts", "hosts", "--ssh", sshd.ssh, *port, "--json")
    assert failures(output) == {"agent": "sent no report"}


# From facts.


def diagnosed(change: Callable[[dict[int, Any]], object]) -> list[Finding]:
    """The findings on four nodes that are healthy except for the change."""
    ranks: dict[int, Any] = {rank: facts(rank) for rank in range(4)}
    change(ranks)
    seen = Observations(ranks, {rank: f"node{rank + 1}" for rank in range(4)}, "node1", 29500)
    return check_all(seen)


def gpu(rank: int, uuid: str) -> dict[str, Any]:
    return {**facts(rank)["torch"], "gpus": 1, "gpu": "H200", "uuid": uuid}


def test_healthy_nodes_pass_every_check() -> None:
    found = diagnosed(lambda ranks: None)
    assert [(one.status, one.where) for one in found] == [("ok", "all nodes")] * len(CHECKS)


@pytest.mark.parametrize(
    ("change", "status", "check", "where", "found"),
    [
        (
            lambda ranks: ranks[2]["names"]["names"].update(node3={"addresses": ["127.0.1.1"]}),
            "note",
            "own name",
            "node3",
            "node3 is 127.0.1.1 on node3 itself",
        ),
        (
            lambda ranks: ranks[0]["names"]["names"].update(node1={"addresses": ["10.9.9.9"]}),
            "note",
            "rank 0's name",
            "node1",
            "node1 is 10.9.9.9, which no interface of this node has",
        ),
        (
            lambda ranks: ranks[1]["names"].update(back={"10.0.0.2": ["other"]}),
            "note",
            "own name",
            "node2",
            "node2 is 10.0.0.2, but 10.0.0.2 is other",
        ),
        (
            lambda ranks: ranks[3]["network"].update(interface="lo", loopback=True),
            "failed",
            "interface",
            "node4",
            "lo would be used",
        ),
        (
            lambda ranks: ranks[1]["network"].update(no_route="Network is unreachable"),
            "failed",
            "addresses",
            "node2",
            "no route to node1: Network is unreachable",
        ),
        (
            lambda ranks: ranks[0]["clock"].update(skew=-7.0),
            "failed",
            "clock",
            "node1",
            "7 s behind",
        ),
        (
            lambda ranks: ranks[0]["torch"]["versions"].update(commit="123456789012"),
            "failed",
            "versions",
            "node1",
            "commit 123456789, not abc",
        ),
        (
            lambda ranks: ranks[1]["software"].update(torch=None),
            "failed",
            "versions",
            "node2",
            "torch is not installed",
        ),
        (
            lambda ranks: ranks[2]["folder"].update(seen=[2]),
            "failed",
            "runs folder",
            "node3",
            "/runs is not the same folder as on node1, node2, node4",
        ),
        (
            lambda ranks: ranks[2]["pairs"].update({"3": {"error": "refused"}}),
            "failed",
            "links",
            "node3",
            "cannot reach rank 3 on node4: refused",
        ),
        (
            lambda ranks: ranks[1]["torch"].update(error="libcudart.so.13"),
            "failed",
            "GPUs",
            "node2",
            "torch does not load: libcudart",
        ),
        (
            lambda ranks: [ranks[rank].update(torch=gpu(rank, str(rank))) for rank in (0, 1, 2)],
            "failed",
            "GPUs",
            "node4",
            "torch sees no GPU",
        ),
        (
            lambda ranks: ranks[1]["software"].update(gpu_files=8),
            "note",
            "GPUs",
            "node2",
            "torch sees no GPU: 8 in /dev, CUDA_VISIBLE_DEVICES is not set",
        ),
        (
            lambda ranks: ranks[1]["software"].update(visible="0"),
            "failed",
            "GPUs",
            "node2",
            "CUDA_VISIBLE_DEVICES is '0'",
        ),
        (
            lambda ranks: ranks[3]["all_reduce"].update(error="rank 3: timed out"),
            "failed",
            "all-reduce",
            "node4",
            "timed out",
        ),
        (
            lambda ranks: [ranks[2].pop(step) for step in ("torch", "all_reduce", "end")],
            "failed",
            "agent",
            "node3",
            "stopped reporting after the step 'pairs'",
        ),
    ],
)
def test_a_fault_is_named_with_its_node(
    change: Callable[[dict[int, Any]], object], status: str, check: str, where: str, found: str
) -> None:
    amiss = [one for one in diagnosed(change) if one.status != "ok"]
    assert [(one.status, one.check, one.where) for one in amiss] == [(status, check, where)]
    assert found in amiss[0].found
    assert amiss[0].fix


def test_two_ranks_on_one_gpu_are_named() -> None:
    ranks = {
        rank: {**facts(rank), "torch": gpu(rank, "GPU-1" if rank < 2 else str(rank))} for rank in range(4)
    }
    seen = Observations(ranks, {0: "node1", 1: "node1", 2: "node2", 3: "node2"}, "node1", 29500)
    result = {one.where: one.found for one in check_all(seen) if one.status == "failed"}
    assert result == {
        "node1 (rank 0)": "rank 0 has the same GPU as rank 1",
        "node1 (rank 1)": "rank 1 has the same GPU as rank 0",
    }


@pytest.mark.parametrize("world_size", [1, 2, 5, 16, 17, 100])
def test_every_rank_measures_the_link_to_the_next_rank_of_the_ring(world_size: int) -> None:
    found = distances(world_size)
    assert (1 in found) == (world_size > 1)
    assert all(0 < distance < world_size for distance in found)
