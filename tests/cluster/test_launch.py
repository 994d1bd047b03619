"""Tests of `sage launch`: ranks on several hosts, which are one real sshd under several names."""

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from commands import call
from launcher import PATIENCE, free_port, is_gone, newest, num_steps, outside, until
from sshd import Sshd

from sage.cluster import launch
from sage.cluster.hosts import Host, read_hosts
from sage.cluster.remote import Ended, Output, RemoteTasks, Task
from sage.cluster.supervisor import die_with_parent

CHECKOUT = Path(__file__).parents[2]

RANK = """#!{python}
import json, os, pathlib, signal, subprocess, sys, time
if sys.argv[1] != "-m":  # not a rank, but what keeps it, or asks for a port
    os.execv("{python}", ["{python}", *sys.argv[1:]])
names = ("hostip", "port", "rank", "world_size", "local_rank", "PYTHONPATH", "SAGE_TOLD", "UNTOLD")
variables = {{name: os.environ.get(name) for name in names}}
pids = [os.getpid(), subprocess.Popen(["sleep", "200"]).pid]
print(json.dumps({{**variables, "argv": sys.argv[1:], "cwd": os.getcwd(), "pids": pids}}), flush=True)
pathlib.Path("here-" + variables["rank"]).touch()
while len(list(pathlib.Path().glob("here-*"))) < int(variables["world_size"]):
    time.sleep(0.01)
what = sys.argv[4:][int(variables["rank"])]
if what == "killed":
    os.kill(os.getpid(), signal.SIGKILL)
time.sleep(200) if what == "stays" else sys.exit(int(what))
"""
"""Replaces Python: a rank with a child; prints its variables, waits for the others, ends as requested."""


@pytest.fixture(scope="session")
def sshd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sshd]:
    server = Sshd(tmp_path_factory.mktemp("sshd"))
    yield server
    server.close()


class Launched:
    """A running `sage launch` with its output in a file."""

    def __init__(self, sshd: Sshd, folder: Path, hosts: str, command: str, **more: str) -> None:
        folder.mkdir(exist_ok=True)
        (folder / "hosts").write_text(hosts)
        self.log = folder / "log"
        argv = ["--hosts", "hosts", "--ssh", sshd.ssh, "--hostip", "127.0.0.1", *command.split()]
        with self.log.open("w") as file:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "sage", "launch", *argv],
                cwd=folder,
                env={**outside(), "PYTHONPATH": str(CHECKOUT), **more},
                stdout=file,
                stderr=file,
                preexec_fn=die_with_parent,
            )

    @property
    def printed(self) -> list[str]:
        return self.log.read_text().splitlines()

    def received(self, num_ranks: int) -> list[tuple[str, dict[str, Any]]]:
        """Return the variables of the replaced ranks, by rank, with the name that their line begins with."""

        def lines() -> list[str]:
            return [line for line in self.printed if line.endswith("}")]

        until(lambda: len(lines()) == num_ranks or self.process.poll() is not None)
        pairs = [line.split(": ", 1) for line in lines()]
        return sorted(((name, json.loads(text)) for name, text in pairs), key=lambda pair: pair[1]["rank"])

    def wait(self) -> int:
        return self.process.wait(PATIENCE)


def processes_in(folder: Path) -> list[int]:
    """Return the processes whose working directory is the folder or below it."""

    def is_there(process: Path) -> bool:
        try:
            return (process / "cwd").readlink().is_relative_to(folder)
        except OSError:  # it has ended, or is another user's
            return False

    return [int(process.name) for process in Path("/proc").glob("[0-9]*") if is_there(process)]


def children(pid: int) -> list[int]:
    threads = Path(f"/proc/{pid}/task").iterdir()
    return [int(child) for thread in threads for child in (thread / "children").read_text().split()]


def parent(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


@pytest.fixture(autouse=True)
def nothing_left(tmp_path: Path) -> Iterator[None]:
    """End the ranks that a failed test has left."""
    yield
    for pid in processes_in(tmp_path):
        os.kill(pid, signal.SIGKILL)


@pytest.fixture
def start(sshd: Sshd, tmp_path: Path) -> Iterator[Callable[..., Launched]]:
    started: list[Launched] = []

    def start(hosts: str, command: str, **more: str) -> Launched:
        started.append(Launched(sshd, tmp_path / "here", hosts, command, **more))
        return started[-1]

    yield start
    for each in started:
        each.process.kill()
        each.process.wait()
    until(lambda: not sshd.sessions())


@pytest.fixture
def python(tmp_path: Path) -> str:
    path = tmp_path / "python"
    path.write_text(RANK.format(python=sys.executable))
    path.chmod(0o755)
    return str(path)


# Whole runs.


@pytest.mark.slow
def test_two_ranks_on_each_of_two_hosts_train_to_one_result(start: Callable[..., Launched]) -> None:
    launched = start("node1 slots=2\nnode2\n", "--ranks-per-host 2 digits-ff --steps 5")
    assert launched.wait() == 0, launched.printed
    (folder,) = (launched.log.parent / "runs").iterdir()
    assert json.loads((folder / "config.json").read_text())["world_size"] == 4
    assert (folder / "result.json").exists()
    assert launched.printed[-1] == f"node1 rank 0: digits-ff · sage: finished: runs/{folder.name}"


@pytest.mark.slow
def test_a_signal_to_the_launcher_stops_all_ranks_with_a_checkpoint(start: Callable[..., Launched]) -> None:
    launched = start("node1\nnode2\n", "digits-ff --epochs 100000 --timeout 100")
    runs = launched.log.parent / "runs"
    until(lambda: num_steps(runs) > 5 or launched.process.poll() is not None)
    launched.process.send_signal(signal.SIGUSR1)
    assert launched.wait() == 75, launched.printed
    (folder,) = runs.iterdir()
    assert newest(folder).world_size == 2
    assert f"node1: digits-ff · sage: stopped and saved at step {num_steps(runs)};" in launched.printed[-1]


# With replaced ranks.


def test_each_rank_gets_its_place_and_its_output_has_the_name_of_its_host(
    start: Callable[..., Launched], python: str, tmp_path: Path
) -> None:
    hosts = "# two machines\nnode1\n\nnode2 slots=2  # the larger\nnode1\n"
    launched = start(hosts, f"--python {python} --port 4567 0 0 0 0", SAGE_TOLD="yes", UNTOLD="no")
    assert launched.wait() == 0, launched.printed
    received = launched.received(4)
    names = ["node1 rank 0", "node1 rank 1", "node2 rank 2", "node2 rank 3"]
    assert [name for name, _ in received] == names
    for rank, (_, seen) in enumerate(received):
        del seen["pids"]
        assert seen == {
            "hostip": "127.0.0.1",
            "port": "4567",
            "rank": str(rank),
            "world_size": "4",
            "local_rank": str(rank % 2),
            "PYTHONPATH": f"{CHECKOUT}{os.pathsep}{CHECKOUT}",
            "SAGE_TOLD": "yes",
            "UNTOLD": None,
            "argv": ["-m", "sage", "run", "0", "0", "0", "0"],
            "cwd": str(tmp_path / "here"),
        }


def test_with_advise_each_rank_runs_sage_advise(start: Callable[..., Launched], python: str) -> None:
    launched = start("node1\nnode2\n", f"--advise --python {python} --port 4567 0 0")
    assert launched.wait() == 0, launched.printed
    assert [seen["argv"] for _, seen in launched.received(2)] == [["-m", "sage", "advise", "0", "0"]] * 2


@pytest.mark.parametrize(
    ("ends", "status", "last"),
    [
        ("0 75", 75, None),
        ("0 3", 1, "sage launch: rank 1 on node2 failed first: exit status 3: {report}"),
        ("2 stays", 2, "sage launch: rank 0 on node1 failed first: exit status 2: {report}"),
        ("stays killed", 1, "sage launch: rank 1 on node2 failed first: ended by SIGKILL"),
    ],
)
def test_all_ranks_end_with_one_exit_status(
    sshd: Sshd,
    python: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    ends: str,
    status: int,
    last: str | None,
) -> None:
    monkeypatch.setattr(launch, "GRACE", 0.5)
    (tmp_path / "hosts").write_text("node1\nnode2\n")
    options = f"--hosts {tmp_path}/hosts --python {python} --hostip h --cwd {tmp_path}"
    assert call("launch", *options.split(), "--ssh", sshd.ssh, *ends.split()) == status
    out, err = capfd.readouterr()
    printed = dict(sorted(line.split(": ", 1) for line in out.splitlines()))
    assert list(printed) == ["node1", "node2"]
    assert err == ("" if last is None else last.format(report=printed[last.split()[5]]) + "\n")
    pids = [pid for report in printed.values() for pid in json.loads(report)["pids"]]
    until(lambda: all(map(is_gone, pids)))


@pytest.mark.parametrize("killed", ["launcher", "ssh", "keeper"])
def test_whichever_process_is_killed_no_rank_is_left_behind(
    start: Callable[..., Launched], python: str, sshd: Sshd, killed: str
) -> None:
    launched = start("node1 slots=2\nnode2\n", f"--python {python} stays stays stays")
    pids = [pid for _, seen in launched.received(3) for pid in seen["pids"]]
    assert len(pids) == 6
    assert not any(map(is_gone, pids))
    victims = {
        "launcher": [launched.process.pid],
        "ssh": children(launched.process.pid)[:1],
        "keeper": [parent(pids[0])],
    }
    os.kill(victims[killed][0], signal.SIGKILL)
    # Without the supervisor, nothing could end the children of a rank; the kernel ends the rank itself.
    until(lambda: all(map(is_gone, pids[::2] if killed == "keeper" else pids)))
    until(lambda: not sshd.sessions())
    if killed == "launcher":
        assert launched.wait() == -signal.SIGKILL
    else:
        assert launched.wait() == 1
        assert launched.printed[-1].startswith(
            "sage launch: rank 0 on node1 failed first: ssh ended with status "
        )


def test_an_unreachable_host_is_named_with_sshs_error(start: Callable[..., Launched], python: str) -> None:
    reason = "ssh ended with status 255: ssh: connect to host 127.0.0.1 port 1: Connection refused"
    second = start("node1\nunreachable\n", f"--python {python} stays stays")
    assert second.wait() == 1
    assert second.printed[-1] == f"sage launch: rank 1 on unreachable failed first: {reason}"
    first = start("unreachable\nnode1\n", f"--python {python} stays stays")
    assert first.wait() == 1
    assert first.printed == [f"sage launch: cannot find a free port on unreachable: {reason}"]


# RemoteTasks, which `sage doctor` also uses.


def test_remote_tasks_yield_every_line_with_its_rank_and_every_end_once(sshd: Sshd, tmp_path: Path) -> None:
    say = "echo $0 $it; echo ' wrong: \x1eä ' >&2; printf unfinished; kill -9 $$"
    tasks = [
        Task(host="a", rank=7, argv=["sh", "-c", say, "one"], env={"it": "two  words"}, cwd=str(tmp_path)),
        Task(host="b", rank=3, argv=["/no/such/program"]),
        Task(host="b", rank=4, argv=["pwd"], cwd="/no/such/folder"),
        Task(host="unreachable", rank=5, argv=["true"]),
    ]
    with RemoteTasks(tasks, ssh=sshd.ssh.split()) as running:
        events = list(running)
    assert [event for event in events if event.host == "a" and event.rank == 7][-1] == Ended("a", 7, -9)
    assert {
        event.text: event.stream for event in events if isinstance(event, Output) and event.rank == 7
    } == {
        "one two words": "stdout",
        " wrong: \x1eä ": "stderr",
        "unfinished": "stdout",
    }
    ends = {event.rank: event for event in events if isinstance(event, Ended)}
    assert len([event for event in events if isinstance(event, Ended)]) == 4
    assert ends[3].status == ends[4].status == 127
    words = [event.text for event in events if isinstance(event, Output) and event.host == "b"]
    assert any("cannot start /no/such/program in .: " in text for text in words)
    assert any("cannot start pwd in /no/such/folder: " in text for text in words)
    assert ends[5].status is None
    assert ends[5].reason.endswith("Connection refused")


def test_the_output_of_a_login_script_is_the_hosts_output(tmp_path: Path) -> None:
    ssh = tmp_path / "ssh"
    ssh.write_text('#!/bin/bash\necho welcome\nprintf "no end of line"\nexec sh -c "${@: -1}"\n')
    ssh.chmod(0o755)
    with RemoteTasks([Task(host="a", rank=0, argv=["echo", "done"])], ssh=[str(ssh)]) as running:
        assert list(running) == [
            Output("a", None, "welcome", "stdout"),
            Output("a", None, "no end of line", "stdout"),
            Output("a", 0, "done", "stdout"),
            Ended("a", 0, 0),
        ]


# The hosts file.


def test_a_hosts_file_is_read(tmp_path: Path) -> None:
    path = tmp_path / "hosts"
    path.write_text("node1\n  # none here\n\nme@node2 slots=4 # four\n10.0.0.3\nfe80::1\nnode1 slots=2\n")
    assert read_hosts(path, slots=3) == [
        Host("node1", 5),
        Host("me@node2", 4),
        Host("10.0.0.3", 3),
        Host("fe80::1", 3),
    ]
    assert read_hosts(path)[1].address == "node2"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a\nb slot=2\n", r"hosts, line 2: 'b slot=2'; allowed is `HOST` or `USER@HOST`, .* `slots=N`"),
        ("a slots=0\n", "line 1: 'a slots=0'; allowed is"),
        ("a slots=2 gpu\n", "line 1: 'a slots=2 gpu'; allowed is"),
        ("-oProxyCommand=x\n", "line 1: '-oProxyCommand=x'; allowed is"),
        ("a:22\n", "line 1: 'a:22'; .* Set a port in ssh's configuration"),
        ("@a\n", "line 1: '@a'; allowed is"),
        ("# nobody\n", "no host in .*hosts: give one per line; allowed is"),
        (None, "cannot read the hosts file .*hosts: .*No such file"),
    ],
)
def test_the_error_for_a_wrong_hosts_file_has_the_line_and_what_is_allowed(
    tmp_path: Path, text: str | None, message: str
) -> None:
    path = tmp_path / "hosts"
    if text is not None:
        path.write_text(text)
    with pytest.raises(ValueError, match=message):
        call("launch", "--hosts", str(path), "digits")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--port 0", "--port 0: expected 1 to 65535"),
        ("--ranks-per-host 0", "--ranks-per-host 0: expected 1 to 1024"),
        ("--ssh /no/ssh", "cannot start /no/ssh: .* install ssh, or give --ssh"),
    ],
)
def test_wrong_options_are_refused_by_name(tmp_path: Path, options: str, message: str) -> None:
    (tmp_path / "hosts").write_text("a\n")
    with pytest.raises(ValueError, match=message):
        call("launch", "--hosts", str(tmp_path / "hosts"), *options.split(), "digits")


@pytest.mark.slow
@pytest.mark.parametrize("program", ["pdsh", "parallel-ssh"])
def test_the_documented_line_starts_a_rank_on_each_host(program: str, sshd: Sshd, tmp_path: Path) -> None:
    if shutil.which(program) is None:
        pytest.skip(f"no {program} here: apt-get install pdsh pssh")
    (tmp_path / "hosts.txt").write_text("127.0.0.1\n127.0.0.2\n")
    script = tmp_path / "run.sh"
    argv = "digits-ff --steps 4 --device cpu"
    script.write_text(f"#!/bin/sh\nPYTHON={sys.executable} exec {CHECKOUT / 'run.sh'} {argv}\n")
    script.chmod(0o755)
    lines = (CHECKOUT / "docs" / "how-to" / "slurm.md").read_text().splitlines()
    (line,) = [each.strip() for each in lines if each.strip().startswith(f"{program} ")]
    options = sshd.ssh.removeprefix("ssh ")
    done = subprocess.run(
        ["bash", "-c", line.replace("29500", free_port()).replace(" -t 0 ", f" -t 0 -x '{options}' ")],
        cwd=tmp_path,
        env={**outside(), "PDSH_SSH_ARGS_APPEND": options},
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    (folder,) = (tmp_path / "runs").iterdir()
    assert json.loads((folder / "result.json").read_text())["world_size"] == 2
