"""Tests of `sage doctor` on nodes in separate networks: healthy nodes pass, and faults are named."""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

import sage
from sage.cluster.doctor.checks import CHECKS
from slurm.cluster import Cluster, links_need

pytestmark = pytest.mark.slow

CODE = Path(sage.__file__).with_name("version.py")
PORT = 29999


@dataclass
class Diagnosis:
    """The doctor's output and exit status."""

    status: int
    findings: list[dict[str, str]]

    def found_by(self, status: str) -> dict[tuple[str, str], str]:
        """What was found, by check and place."""
        return {
            (one["check"], one["where"]): one["found"] for one in self.findings if one["status"] == status
        }


@pytest.fixture
def separate_networks(cluster: Cluster) -> Cluster:
    """Nodes with their own networks."""
    if not cluster.namespaces:
        pytest.skip(links_need())
    return cluster


@pytest.fixture
def doctor(cluster: Cluster, tmp_path: Path) -> Callable[..., Diagnosis]:
    """Run `sage doctor` in an allocation of all nodes."""
    (tmp_path / "runs").mkdir()

    def call(*options: str, **environ: str) -> Diagnosis:
        command = ("python", "-m", "sage", "doctor", "--runs", str(tmp_path / "runs"), "--json", *options)
        # A node with another version of the code must not write its compiled files here.
        environ["PYTHONDONTWRITEBYTECODE"] = "1"
        output = cluster.run("salloc", "--nodes=4", *command, timeout=200, check=False, env=environ)
        assert output.stdout, output.stderr
        assert not list((tmp_path / "runs").iterdir())
        return Diagnosis(output.returncode, json.loads(output.stdout)["findings"])

    return call


def on(cluster: Cluster, node: str, script: str) -> None:
    """Run a script in a node's namespaces, which exist after it."""
    cluster.run("srun", "--nodes=1", f"--nodelist={node}", "sh", "-ec", script)


@contextmanager
def hosts(cluster: Cluster, nodes: list[str], folder: Path, change: Callable[[str], str]) -> Iterator[None]:
    """Give nodes another /etc/hosts, in which each line is changed."""
    changed = folder / "hosts"
    changed.write_text("".join(map(change, (cluster.folder / "hosts").read_text().splitlines(keepends=True))))
    for node in nodes:
        on(cluster, node, f"mount --bind {changed} /etc/hosts")
    try:
        yield
    finally:
        for node in nodes:
            on(cluster, node, "umount /etc/hosts")


def test_healthy_nodes_pass_every_check(
    cluster: Cluster, doctor: Callable[..., Diagnosis], forked: dict[str, str]
) -> None:
    diagnosis = doctor(**forked)
    assert diagnosis.status == 0, diagnosis.findings
    assert [one["check"] for one in diagnosis.findings] == [check.name for check in CHECKS]
    assert {(one["status"], one["where"]) for one in diagnosis.findings} == {("ok", "all nodes")}
    assert diagnosis.findings[-1]["found"].startswith("of 4 ranks, cpu: ")


def test_a_head_node_that_resolves_itself_to_loopback_gets_a_note(
    separate_networks: Cluster, doctor: Callable[..., Diagnosis], tmp_path: Path, forked: dict[str, str]
) -> None:
    def debian(line: str) -> str:
        return "127.0.1.1 node1\n" if line.split()[1:] == ["node1"] else line

    with hosts(separate_networks, ["node1"], tmp_path, debian):
        diagnosis = doctor("--hostip", "node1", **forked)
    assert diagnosis.status == 0, diagnosis.findings
    assert diagnosis.found_by("note") == {
        ("own name", "node1"): "node1 is 127.0.1.1 on node1 itself, an address that no other node can reach"
    }
    assert diagnosis.findings[-1]["check"] == "all-reduce"


def test_a_head_node_that_resolves_to_loopback_elsewhere_is_named(
    separate_networks: Cluster, doctor: Callable[..., Diagnosis], tmp_path: Path
) -> None:
    def wrong(line: str) -> str:
        return "127.0.0.1 node1\n" if line.split()[1:] == ["node1"] else line

    with hosts(separate_networks, ["node2", "node3"], tmp_path, wrong):
        diagnosis = doctor("--hostip", "node1", "--timeout", "3")
    found = diagnosis.found_by("failed")
    assert diagnosis.status == 1
    assert found.keys() == {("rank 0's name", "node2, node3"), ("rank 0's port", "node2, node3")}
    assert "node1, rank 0's node, is 127.0.0.1 here" in found["rank 0's name", "node2, node3"]
    assert "refused" in found["rank 0's port", "node2, node3"]


def test_a_blocked_port_is_named_as_refused_or_dropped(
    separate_networks: Cluster, doctor: Callable[..., Diagnosis]
) -> None:
    rule = f"pref 5 ipproto tcp dport {PORT}"
    # One node may not send there; from the other it goes to a station that does not exist.
    nowhere = "ip neigh replace 10.77.0.99 lladdr 02:00:00:00:00:99 dev eth0; ip route replace default"
    on(separate_networks, "node2", f"ip rule add {rule} prohibit")
    on(
        separate_networks,
        "node3",
        f"{nowhere} via 10.77.0.99 dev eth0 table 777; ip rule add {rule} table 777",
    )
    try:
        diagnosis = doctor("--port", str(PORT), "--timeout", "3")
    finally:
        for node in ("node2", "node3"):
            on(separate_networks, node, f"ip rule del {rule}")
    found = diagnosis.found_by("failed")
    assert diagnosis.status == 1
    assert found == {
        ("rank 0's port", "node2"): f"10.77.0.1 port {PORT}: not let through: Permission denied",
        ("rank 0's port", "node3"): (
            f"10.77.0.1 port {PORT}: no answer in 3 s: a firewall or a network fault"
        ),
    }


def test_four_faults_of_four_nodes_are_all_named(
    separate_networks: Cluster, doctor: Callable[..., Diagnosis], tmp_path: Path
) -> None:
    def without_head(line: str) -> str:
        return "" if line.split()[1:] == ["node1"] else line

    runs, old = tmp_path / "runs", tmp_path / "old.py"
    old.write_text(CODE.read_text().replace(sage.__version__, "0.0.1"))
    on(separate_networks, "node3", f"mount --bind {old} {CODE}")
    on(separate_networks, "node4", f"mount --bind {runs} {runs}; mount -o remount,bind,ro {runs}")
    try:
        with hosts(separate_networks, ["node2"], tmp_path, without_head):
            diagnosis = doctor("--timeout", "5", GLOO_SOCKET_IFNAME="eth7")
    finally:
        on(separate_networks, "node3", f"umount {CODE}")
        on(separate_networks, "node4", f"umount {runs}")
    found = diagnosis.found_by("failed")
    assert diagnosis.status == 1
    assert found.pop(("rank 0's name", "node2")).startswith("node1 does not resolve: ")
    assert found == {
        ("versions", "node3"): f"sage 0.0.1, not {sage.__version__}",
        ("runs folder", "node4"): f"cannot write to {runs}: Read-only file system",
        ("interface", "all nodes"): "GLOO_SOCKET_IFNAME=eth7: no interface has the name 'eth7'; "
        "usable interfaces are lo, eth0",
    }


def test_allocated_gpus_that_torch_does_not_see_are_named(
    cluster: Cluster, tmp_path: Path, forked: dict[str, str]
) -> None:
    command = ("python", "-m", "sage", "doctor", "--runs", str(tmp_path), "--json")
    salloc = ("salloc", "--nodes=2", "--gpus-per-node=1")
    output = cluster.run(*salloc, *command, env=forked, timeout=200, check=False)
    diagnosis = Diagnosis(output.returncode, json.loads(output.stdout)["findings"])
    assert diagnosis.status == 1
    assert list(diagnosis.found_by("failed")) == [("GPUs", "all nodes")]
