"""A real SLURM cluster of several nodes on this machine, private to the process that starts it.

    python tests/slurm/cluster.py                                   four nodes, until Ctrl-C
    python tests/slurm/cluster.py --rate 100mbit                    links of 100 Mbit/s each way, as root
    python tests/slurm/cluster.py --nodes 2 -- srun -N 2 hostname   a command in it; ends with its status

As root, each node has its own host name, network and link, created by `network.sh`. Otherwise, and with
--loopback, nodes are daemons that share this machine's network. No process outlives this one, even if it is
killed.
"""

import argparse
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO

sys.path.append(str(Path(__file__).resolve().parents[1]))  # run as a program, this module is in no package

import leftovers

from slurm import configuration
from slurm.enclosure import SHARED, Command, Enclosure, kill, may_unshare, parent

NETWORK = str(Path(__file__).resolve().with_name("network.sh"))
PATH = os.pathsep.join([os.path.dirname(sys.executable), os.environ.get("PATH", ""), "/usr/sbin", "/sbin"])
ENDED = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "PREEMPTED", "OUT_OF_MEMORY", "DEADLINE")
NOTHING: Mapping[str, str] = {}
Stream = int | IO[str] | None


def slurm_needs() -> str:
    """Return what this machine lacks for a cluster; "" if it lacks nothing."""
    there = all(shutil.which(name, path=PATH) for name in ("munged", "slurmctld", "slurmd", "srun"))
    return "" if there else "no SLURM here: apt-get install slurm-wlm munge"


def links_need() -> str:
    """Return what this process lacks for nodes with their own links; "" if it lacks nothing."""
    if os.geteuid() != 0 or not may_unshare("net", "uts"):
        return "throttled links need root"
    there = all(shutil.which(name, path=PATH) for name in ("ip", "tc"))
    return "" if there else "throttled links need ip and tc: apt-get install iproute2"


class Cluster:
    """Nodes node1, node2, … and three partitions: debug, low (preempted after 20 s) and high (preempts).

    Args:
        folder: for this cluster's sockets, state and logs.
        rate: the rate of each node's link in each direction, such as 100mbit; None: not limited.
        namespaces: whether each node has its own network, which needs root.
        gpus: number of simulated GPUs per node, at most four.
    """

    def __init__(
        self, folder: Path, *, nodes: int = 4, rate: str | None = None, namespaces: bool = True, gpus: int = 1
    ) -> None:
        if (namespaces or rate) and (reason := links_need()):
            raise ValueError(reason)
        if rate and not namespaces:
            raise ValueError(f"a rate of {rate} without namespaces: nodes that share a network have no links")
        self.folder = folder.resolve()
        self.namespaces = namespaces
        self._rate = (rate, configuration.burst(rate)) if rate else ("", "")
        self.nodes = [f"node{number}" for number in range(1, nodes + 1)]
        self.env = {"SLURM_CONF": str(self.folder / "slurm.conf")}
        self._daemons: dict[str, Command] = {}
        configuration.write(self.folder, nodes, gpus, networks=namespaces)

    def __enter__(self) -> "Cluster":
        """Start the daemons, and wait until all nodes are idle."""
        mark = f"SLURM_CONF={self.env['SLURM_CONF']}"
        if self.namespaces:
            head = [NETWORK, "head", str(self.folder)]
            self._enclosure = Enclosure(mark, head, ("net", "uts"))
        else:
            self._enclosure = Enclosure(mark, SHARED)
        try:
            files = ("key-file", "socket", "pid-file", "log-file", "seed-file")
            munge = [f"--{name}={self.folder}/munge.{name.removesuffix('-file')}" for name in files]
            self._daemon("munged", "munged", "--foreground", "--force", *munge)
            self.until((self.folder / "munge.socket").exists)
            self._daemon("slurmctld", "slurmctld", "-D", "-i")
            for node in self.nodes:
                self.boot(node)
            self.until(self._are_idle)
        except BaseException:
            self._enclosure.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        """Kill all processes of the cluster."""
        self._enclosure.close()

    # Commands

    def start(
        self,
        *argv: str,
        cwd: Path | str | None = None,
        env: Mapping[str, str] = NOTHING,
        stdin: Stream = subprocess.DEVNULL,
        stdout: Stream = subprocess.PIPE,
        stderr: Stream = subprocess.PIPE,
        start_new_session: bool = False,
    ) -> Command:
        """Start a command on the head node, with `env` added to this process's environment."""
        outside = {
            name: value for name, value in os.environ.items() if not name.startswith(("SLURM", "SBATCH"))
        }
        return self._enclosure.start(
            argv,
            cwd,
            env={**outside, "PATH": PATH, **self.env, **env},
            stdin=stdin,
            stdout=stdout,
            stderr=stderr,
            start_new_session=start_new_session,
        )

    def run(
        self,
        *argv: str,
        timeout: float = 120,
        check: bool = True,
        cwd: Path | str | None = None,
        env: Mapping[str, str] = NOTHING,
    ) -> subprocess.CompletedProcess[str]:
        """Run a command on the head node and wait for its end."""
        command = self.start(*argv, cwd=cwd, env=env)
        try:
            out, err = command.communicate(timeout=timeout)
        except BaseException:
            command.kill()
            raise
        self._enclosure.forget(command)
        assert not check or command.returncode == 0, f"{argv} ended with {command.returncode}: {out}{err}"
        return subprocess.CompletedProcess(argv, command.returncode, out, err)

    def enter(self, cwd: Path | str) -> list[str]:
        """Return the command by which a shell of this user runs another command on the head node."""
        return [*self._enclosure.enter(cwd), *(f"{name}={value}" for name, value in self.env.items())]

    # Jobs

    def sbatch(self, *argv: str, cwd: Path | str | None = None, env: Mapping[str, str] = NOTHING) -> str:
        """Submit a job, and return its id."""
        return self.run("sbatch", "--parsable", *argv, cwd=cwd, env=env).stdout.strip()

    def job(self, job: str) -> dict[str, str]:
        """Return scontrol's fields of a job ("12") or of an array task ("12_3")."""
        (line,) = self.run("scontrol", "-o", "show", "job", job).stdout.splitlines()
        return dict(field.split("=", 1) for field in re.split(r" +(?=[A-Z][\w/:]*=)", line.strip()))

    def wait(self, job: str, timeout: float) -> dict[str, str]:
        """Wait until a job has ended or failed, and return scontrol's fields of it."""
        deadline = time.monotonic() + timeout
        while (found := self.job(job))["JobState"] not in ENDED:
            if time.monotonic() > deadline:
                result = _tail(Path(found.get("StdOut", "")))
                raise AssertionError(
                    f"job {job} is {found['JobState']} after {timeout:g} s: {found}\n{result}"
                )
            time.sleep(0.5)
        return found

    def end_jobs(self) -> None:
        """Cancel all jobs, and wait until their tasks have ended."""
        self.run("scancel", f"--user={os.geteuid()}")
        self.until(lambda: not any("SLURM_STEP_ID" in each for each in self._enclosure.processes().values()))

    def ranks(self, job: str) -> dict[int, int]:
        """Return the process id, outside the namespaces, of each running rank: its task's outermost process.

        This is the rank's Python if srun starts Python itself, or a script that ends with `exec python`.
        """
        tasks = {
            pid: environment
            for pid, environment in self._enclosure.processes().items()
            if "SLURM_STEP_ID" in environment and job in _names(environment)
        }
        outermost = {pid: environment for pid, environment in tasks.items() if parent(pid) not in tasks}
        return {int(environment["SLURM_PROCID"]): pid for pid, environment in outermost.items()}

    # Nodes

    def boot(self, node: str) -> None:
        """Start a node, for the first time or after a crash."""
        address = configuration.address(1 + self.nodes.index(node))
        network = [NETWORK, "node", str(self.folder), node, address, *self._rate]
        apart = ["unshare", "--mount", "--net", "--uts", *network] if self.namespaces else []
        # SLURM passes this variable to the tasks of a node, so crash() also finds its daemons.
        self._daemon(node, *apart, "slurmd", "-D", "-N", node, env={"SLURMD_NODENAME": node})

    def crash(self, node: str) -> None:
        """Kill all processes of a node; SLURM detects this after about 40 seconds."""
        while pids := [
            pid
            for pid, environment in self._enclosure.processes().items()
            if environment.get("SLURMD_NODENAME") == node
        ]:
            kill(pids)

    def pull(self, node: str) -> None:
        """Disconnect a node's link; SLURM detects this after about 40 seconds."""
        self.run("ip", "link", "set", node, "down")

    def plug(self, node: str) -> None:
        """Reconnect a node's link."""
        self.run("ip", "link", "set", node, "up")

    def down(self, node: str) -> None:
        """Set a node to DOWN in SLURM, which requeues its jobs at once."""
        self.run("scontrol", "update", f"nodename={node}", "state=down", "reason=test")

    def resume(self, node: str) -> None:
        """Return a node to service, and wait until SLURM uses it."""
        # Refused if the node has returned by itself, as responding nodes do after some seconds.
        self.run("scontrol", "update", f"nodename={node}", "state=resume", check=False)
        self.until(lambda: self.states()[node] in ("idle", "mix", "alloc"))

    def states(self) -> dict[str, str]:
        """Return each node's state from sinfo: idle, mix, alloc, down, …; `*`: it does not respond."""
        sinfo = ["timeout", "3", "sinfo"]  # sinfo would wait for a controller for minutes
        listed = self.run(*sinfo, "-h", "-N", "-p", "debug", "-o", "%N %t", check=False).stdout
        states = dict(line.split() for line in listed.splitlines())
        return {node: states.get(node, "") for node in self.nodes}

    def until(self, true: Callable[[], bool], timeout: float = 120) -> None:
        """Wait until a condition is true."""
        deadline = time.monotonic() + timeout
        while not true():
            assert time.monotonic() < deadline, f"still not so after {timeout:g} s\n{self.logs()}"
            time.sleep(0.05)

    def logs(self) -> str:
        """Return the last lines of the daemons' logs."""
        return "\n".join(f"{path.name}: {_tail(path)}" for path in sorted(self.folder.glob("*.log")))

    def _daemon(self, name: str, *argv: str, env: Mapping[str, str] = NOTHING) -> None:
        with (self.folder / f"{name}.log").open("a") as log:
            self._daemons[name] = self.start(
                *argv, cwd=self.folder, env=env, stdout=log, stderr=log, start_new_session=True
            )
        leftovers.OWNED.add(self._daemons[name].pid)  # also if a test starts a node again

    def _are_idle(self) -> bool:
        for name, daemon in self._daemons.items():
            assert daemon.poll() is None, f"{name} ended with {daemon.returncode}\n{self.logs()}"
        return set(self.states().values()) == {"idle"}


def _names(environment: Mapping[str, str]) -> tuple[str, str]:
    """Return the names of a process's job: its id, and its name as an array task."""
    array, task = (environment.get(f"SLURM_ARRAY_{name}_ID", "") for name in ("JOB", "TASK"))
    return environment["SLURM_JOB_ID"], f"{array}_{task}"


def _tail(path: Path) -> str:
    return path.read_text(errors="replace")[-2000:] if path.is_file() else ""


def main() -> int:
    """Run a cluster until Ctrl-C, or for one command."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--nodes", type=int, default=4, help="how many (default: 4)")
    parser.add_argument("--rate", help="of each link, as in 100mbit (default: as fast as the machine)")
    parser.add_argument("--gpus", type=int, default=1, help="how many each node says it has (default: 1)")
    parser.add_argument("--loopback", action="store_true", help="share this machine's network")
    parser.add_argument("command", nargs="*", help="what to run in it (default: wait for Ctrl-C)")
    given = parser.parse_args()
    if reason := slurm_needs():
        parser.error(reason)
    namespaces = not given.loopback and not links_need()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda number, _: sys.exit(128 + number))
    with tempfile.TemporaryDirectory(prefix="slurm-", ignore_cleanup_errors=True) as folder:
        try:
            cluster = Cluster(
                Path(folder), nodes=given.nodes, rate=given.rate, namespaces=namespaces, gpus=given.gpus
            )
        except ValueError as error:
            parser.error(str(error))
        with cluster:
            if given.command:
                return cluster.start(*given.command, stdin=None, stdout=None, stderr=None).wait()
            shell = shlex.join([*cluster.enter(Path.cwd()), "bash"])
            use = shell if namespaces else f"export SLURM_CONF={cluster.env['SLURM_CONF']}"
            print(f"{given.nodes} nodes are idle until Ctrl-C. To use them, in another shell:\n\n    {use}\n")
            sys.stdout.flush()
            while True:
                signal.pause()


if __name__ == "__main__":
    sys.exit(main())
