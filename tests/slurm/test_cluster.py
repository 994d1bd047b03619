"""Tests that the test cluster is a real SLURM whose nodes can fail, and that it leaves no process."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from launcher import PATIENCE, until

from slurm.cluster import Cluster, links_need
from slurm.enclosure import environments

pytestmark = pytest.mark.usefixtures("slurm")

CLUSTER = Path(__file__).with_name("cluster.py")

TRANSFER = """
import os, socket, time
NUM_BYTES = 4_000_000
def receive(connection):
    left = NUM_BYTES
    while left:
        left -= len(connection.recv(min(left, 65536)))
    connection.sendall(b"!")
if os.environ["SLURM_PROCID"] == "0":
    server = socket.create_server(("", 5000))
    others = [server.accept()[0] for _ in range(2)]
    start = time.monotonic()
    for other in others:
        receive(other)
    middle = time.monotonic()
    for other in others:
        other.sendall(bytes(NUM_BYTES))
        other.recv(1)
    print(middle - start, time.monotonic() - middle)
else:
    while (connection := socket.socket()).connect_ex(("node1", 5000)):
        time.sleep(0.05)
    connection.sendall(bytes(NUM_BYTES))
    connection.recv(1)
    receive(connection)
"""
"""Two nodes send to node1, and node1 to both; it prints the seconds of either."""

PLACE = """
import os, socket
own = [os.readlink(f"/proc/self/ns/{kind}") for kind in ("pid", "net", "uts", "mnt")]
print(socket.gethostname(), os.readlink("/proc/self") == str(os.getpid()), *own)
"""
"""Prints the process's node, whether its process id is that in /proc, and its namespaces."""

WITHOUT_NAMESPACES = """
import sys
from slurm import cluster, enclosure
enclosure.may_unshare = lambda *kinds: False
sys.exit(cluster.main())
"""


def test_no_link_exceeds_its_rate_in_either_direction(slow: Cluster) -> None:
    output = slow.run("srun", "--nodelist=node[1-3]", sys.executable, "-c", TRANSFER).stdout
    # Links of 100 Mbit/s let a burst of 128 KB through at once.
    least = (2 * 4_000_000 - 2 * 131072) * 8 / 100e6
    down, up = map(float, output.split())
    assert down > least
    assert up > least


def test_a_killed_rank_fails_its_job(loopback: Cluster, tmp_path: Path) -> None:
    job = loopback.sbatch("-N4", "--wrap", "echo begun; srun --kill-on-bad-exit=1 sleep 1000", cwd=tmp_path)
    loopback.until(lambda: len(loopback.ranks(job)) == 4)
    with pytest.raises(AssertionError, match="is RUNNING after(?s:.*)begun"):
        loopback.wait(job, 0)
    ranks = loopback.ranks(job)
    assert sorted(ranks) == [0, 1, 2, 3]
    os.kill(ranks[2], signal.SIGKILL)
    assert loopback.wait(job, PATIENCE)["JobState"] == "FAILED"
    assert not loopback.ranks(job)


def test_a_node_is_unreachable_while_its_link_is_down(cluster: Cluster) -> None:
    if not cluster.namespaces:
        pytest.skip(links_need())

    def answers() -> bool:
        knock = cluster.run("timeout", "1", "bash", "-c", "</dev/tcp/node3/16818", check=False)
        return knock.returncode == 0

    assert answers()
    cluster.pull("node3")
    try:
        assert not answers()
    finally:
        cluster.plug("node3")
    cluster.until(answers)


def test_a_crashed_node_loses_its_ranks_and_can_be_resumed(cluster: Cluster, tmp_path: Path) -> None:
    job = cluster.sbatch("-wnode2", "--wrap", "srun sleep 1000", cwd=tmp_path)
    cluster.until(lambda: len(cluster.ranks(job)) == 1)
    cluster.crash("node2")
    assert not cluster.ranks(job)
    cluster.run("scancel", job)
    cluster.boot("node2")
    cluster.until(lambda: cluster.run("srun", "-wnode2", "true", timeout=20, check=False).returncode == 0)


def test_a_forked_command_is_in_the_namespaces_of_its_node(
    cluster: Cluster, forked: dict[str, str], tmp_path: Path
) -> None:
    (tmp_path / "place.py").write_text(PLACE)
    script = f"{sys.executable} place.py; python place.py"
    output = cluster.run("srun", "-wnode2", "sh", "-ec", script, cwd=tmp_path, env=forked).stdout
    started, commanded = output.splitlines()
    assert started.split()[1] == "True"
    assert not cluster.namespaces or started.split()[0] == "node2"
    assert commanded == started


def test_each_node_has_the_gpus_it_was_given(tmp_path_factory: pytest.TempPathFactory) -> None:
    with Cluster(tmp_path_factory.mktemp("gpus"), nodes=1, gpus=2, namespaces=False) as cluster:
        output = cluster.run("srun", "--gpus-per-node=2", "printenv", "CUDA_VISIBLE_DEVICES").stdout
    assert output == "0,1\n"


def test_the_cluster_program_exits_with_the_status_of_its_command() -> None:
    argv = [
        sys.executable,
        str(CLUSTER),
        "--nodes",
        "1",
        "--",
        "srun",
        "sh",
        "-c",
        "echo $SLURMD_NODENAME; exit 3",
    ]
    ended = subprocess.run(argv, capture_output=True, text=True, timeout=PATIENCE, check=False)
    assert (ended.stdout, ended.returncode) == ("node1\n", 3)


@pytest.mark.parametrize(
    "start",
    [[str(CLUSTER)], [str(CLUSTER), "--loopback"], ["-c", WITHOUT_NAMESPACES, "--loopback"]],
    ids=["namespaces", "loopback", "no namespaces"],
)
def test_no_process_outlives_a_killed_test_run(
    start: list[str], tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("killed")

    def ours() -> list[dict[str, str]]:
        return [
            each for each in environments().values() if each.get("SLURM_CONF", "").startswith(f"{folder}/")
        ]

    holder = subprocess.Popen(
        [sys.executable, *start, "--nodes", "2", "--", "srun", "-N2", "sleep", "1000"],
        env={**os.environ, "TMPDIR": str(folder), "PYTHONPATH": str(CLUSTER.parents[1])},
    )
    try:
        until(lambda: sum("SLURM_STEP_ID" in each for each in ours()) == 2)
        assert not {"switch", "node1"}.intersection(os.listdir("/sys/class/net"))
    finally:
        holder.kill()
        holder.wait()
    until(lambda: not ours())
