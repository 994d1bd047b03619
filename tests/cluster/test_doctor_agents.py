"""Tests that input over ssh is validated, that waits for ssh are limited, and hosts files checked."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from commands import call
from fuzz import examples
from hypothesis import given, settings
from hypothesis import strategies as st
from launcher import outside, until

from sage.cluster import connection, launch, remote
from sage.cluster.connection import Ended, Output
from sage.cluster.hosts import read_hosts
from sage.cluster.remote import RemoteTasks, Task
from sage.comm.launchers import MOST_LOCAL

CHECKOUT = Path(__file__).parents[2]
Ssh = Callable[[str], str]


@pytest.fixture
def ssh(tmp_path: Path) -> Ssh:
    """Creates a replacement of ssh from lines of bash, which first reads the supervisor's input."""

    def make(lines: str) -> str:
        path = tmp_path / "ssh"
        path.write_text(f"#!/bin/bash\n{lines}\n")
        path.chmod(0o755)
        return str(path)

    return make


@pytest.fixture
def short_timeouts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "START_SECONDS", 0.3)
    for module in (remote, connection):
        monkeypatch.setattr(module, "END_SECONDS", 0.3)


def events(ssh: str, num_tasks: int = 1) -> list[Output | Ended]:
    tasks = [Task(host="a", rank=rank, argv=["true"]) for rank in range(num_tasks)]
    with RemoteTasks(tasks, ssh=[ssh]) as running:
        return list(running)


# Output of tasks.

GARBAGE = [
    "{",
    "5",
    "null",
    "[1]",
    '[0, "ended"]',
    '[0, "ended", "0"]',
    '[0, "ended", null]',
    '[9, "ended", 0]',
    '[true, "ended", 0]',
    '[0, "shout", "x"]',
    '[0, "stderr", 5]',
    '["0", "stdout", "x"]',
    '{"rank": 0}',
    "[" * 5000,
    '[0, "ended", 1e999]',
]


@pytest.mark.parametrize("garbage", GARBAGE, ids=range(len(GARBAGE)))
def test_lines_that_are_not_the_supervisors_are_the_hosts_output_and_end_no_task(
    ssh: Ssh, tmp_path: Path, garbage: str
) -> None:
    (tmp_path / "garbage").write_text(f"\x1e{garbage}\n")
    output = events(ssh(f"read; read; cat {tmp_path}/garbage; printf '\\x1e[0, \"ended\", 3]\\n'"))
    assert output == [Output("a", None, garbage.join([" ", ""]), "stdout"), Ended("a", 0, 3)]


def test_the_end_of_a_task_counts_once(ssh: Ssh) -> None:
    end = "printf '\\x1e[0, \"ended\", %d]\\n'"
    result = events(ssh(f"read; read; {end} 0; {end} 1; {end} 0; sleep 0.1"))
    assert [event for event in result if isinstance(event, Ended)] == [Ended("a", 0, 0)]


def test_a_line_without_an_end_is_split(ssh: Ssh) -> None:
    result = events(
        ssh("read; read; head -c 3000000 /dev/zero | tr '\\0' x; printf '\\n\\x1e[0, \"ended\", 0]\\n'")
    )
    assert max(len(event.text) for event in result if isinstance(event, Output)) <= connection.LINE_BYTES
    assert sum(len(event.text) for event in result if isinstance(event, Output)) == 3_000_000
    assert result[-1] == Ended("a", 0, 0)


def test_the_supervisor_splits_the_endless_line_of_a_task(tmp_path: Path) -> None:
    ssh = tmp_path / "ssh"
    ssh.write_text('#!/bin/bash\nexec sh -c "${@: -1}"\n')
    ssh.chmod(0o755)
    argv = [sys.executable, "-c", "print('x' * 10**6)"]
    with RemoteTasks([Task(host="a", rank=0, argv=argv)], ssh=[str(ssh)]) as running:
        result = list(running)
    lengths = [len(event.text) for event in result if isinstance(event, Output)]
    assert sum(lengths) == 10**6
    assert max(lengths) <= 16 * 1024
    assert result[-1] == Ended("a", 0, 0)


@settings(max_examples=examples(200), deadline=None)
@given(st.binary(max_size=60) | st.sampled_from([text.encode() for text in GARBAGE]))
def test_any_line_is_an_event_or_is_not(line: bytes) -> None:
    result = connection.parse_event(line.decode(errors="replace"), {0, 1})
    if result is not None:
        rank, kind, what = result
        assert rank in (0, 1)
        assert isinstance(what, int if kind in ("started", "ended") else str)


def test_control_characters_of_ranks_do_not_reach_the_terminal(
    ssh: Ssh, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = json.dumps([0, "stdout", "a  table\t| \x1b[2J\x1b]0;title\x07red\x1b[31m \u202e!"])
    (tmp_path / "line").write_text(f"\x1e{line}\n")
    (tmp_path / "hosts").write_text("a\n")
    program = ssh(f"read; read; cat {tmp_path}/line; printf '\\x1e[0, \"ended\", 99]\\n'")
    assert call("launch", "--hosts", str(tmp_path / "hosts"), "--ssh", program, "--port", "1") == 1
    out, err = capsys.readouterr()
    assert out == "a: a  table        | red !\n"
    assert err.endswith("rank 0 on a failed first: exit status 99: a table | red !\n")


@pytest.mark.parametrize("answer", ["", "hello", "0", "70000", "-1", "٣", "9" * 5000, "1.5", "80\x1b[31m"])
def test_a_host_that_returns_no_port_is_named(ssh: Ssh, tmp_path: Path, answer: str) -> None:
    (tmp_path / "line").write_text(f"\x1e{json.dumps([0, 'stdout', answer])}\n")
    program = ssh(f"read; read; cat {tmp_path}/line; printf '\\x1e[0, \"ended\", 0]\\n'")
    with pytest.raises(OSError, match="^cannot find a free port on a: py printed '.*' there$") as caught:
        launch.port_on("a", ssh=[program], python="py")
    assert str(caught.value).isprintable()


# Time limits.


@pytest.mark.usefixtures("short_timeouts")
@pytest.mark.parametrize(
    "lines",
    [
        "exec sleep 1000",
        "while :; do echo welcome; sleep 0.05; done",
        "trap '' TERM INT HUP; sleep 1000 & wait; sleep 1000",
        "setsid sleep 2 & exec sleep 1000",
    ],
    ids=["mute", "babbling", "deaf", "with a child of its own session"],
)
def test_a_host_that_does_not_start_its_tasks_is_abandoned(ssh: Ssh, lines: str) -> None:
    ends = [event for event in events(ssh(lines), num_tasks=2) if isinstance(event, Ended)]
    assert [(end.rank, end.status) for end in ends] == [(0, None), (1, None)]
    assert all("has not started its tasks within 0.3 s" in e.reason or "not end" in e.reason for e in ends)


@pytest.mark.usefixtures("short_timeouts")
def test_tasks_that_do_not_end_on_request_are_killed(ssh: Ssh) -> None:
    program = ssh(
        "read; read; printf '\\x1e[0, \"started\", 1]\\n'; trap '' TERM; exec sleep 1000 </dev/null"
    )
    with RemoteTasks([Task(host="a", rank=0, argv=["true"])], ssh=[program]) as running:
        running.end(0.1)
        (end,) = list(running)
    assert end == Ended("a", 0, None, "ssh ended with status -9")


def test_more_messages_than_a_pipe_holds_do_not_block(ssh: Ssh, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "START_SECONDS", 0.3)
    tasks = [Task(host="a", rank=rank, argv=["x" * 1000]) for rank in range(300)]
    with RemoteTasks(tasks, ssh=[ssh("exec sleep 1000")]) as running:
        assert len(list(running)) == 300


@pytest.mark.parametrize("verb", ["launch", "doctor"])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_the_wait_for_a_host_even_if_it_was_ignored(
    ssh: Ssh, tmp_path: Path, verb: str, number: signal.Signals
) -> None:
    (tmp_path / "hosts").write_text("a\n")
    program = ssh(f"touch {tmp_path}/there; exec cat >/dev/null")

    def ignore() -> None:
        signal.signal(signal.SIGINT, signal.SIG_IGN)

    with subprocess.Popen(
        [sys.executable, "-m", "sage", verb, "--hosts", "hosts", "--ssh", program],
        cwd=tmp_path,
        env={**outside(), "PYTHONPATH": str(CHECKOUT)},
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        preexec_fn=ignore,
    ) as process:
        until(lambda: (tmp_path / "there").exists())
        started = time.monotonic()
        process.send_signal(number)
        _, output = process.communicate(timeout=60)
        assert time.monotonic() - started < 30
    assert process.returncode == 128 + number
    assert "Traceback" not in output
    assert len(output.splitlines()) <= 1


# The hosts file.


def test_a_hosts_file_may_have_a_byte_order_mark_and_be_in_the_home_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "hosts").write_bytes(b"\xef\xbb\xbfnode1 slots=2\r\nnode2\r\n")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert [(host.name, host.slots) for host in read_hosts(Path("~/hosts"))] == [("node1", 2), ("node2", 1)]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"\xff\xfe\x00binary", "not UTF-8 text"),
        (b"\x7fELF\x00\x01", "line 1: 'ELF'; allowed is"),
        (b"", "no host in "),
        (b"\n# none\n", "no host in "),
        (b"a slots=99999999\n", "line 1: 'a slots=99999999'; allowed is .* 1 to 1024"),
        (b"a slots=\xd9\xa3\n", "line 1: .*; allowed is"),
        (b"a slots=1000\na slots=1000\n", "line 2: 'a slots=1000'; allowed is"),
        (b"\x1b[31mred\n", "line 1: 'red'; allowed is"),
        (b"x" * 400, "line 1: 'x.*…'; allowed is"),
        ("folder", "is a folder"),
        ("fifo", "is a FIFO"),
        ("missing", "No such file or directory"),
        ("\0", "cannot read the hosts file"),
    ],
)
def test_a_file_that_is_not_a_hosts_file_is_a_one_line_error(
    tmp_path: Path, content: bytes | str, message: str
) -> None:
    path = tmp_path / "hosts"
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content == "folder":
        path.mkdir()
    elif content == "fifo":
        os.mkfifo(path)
    else:
        path = tmp_path / content
    with pytest.raises(ValueError, match=message) as caught:
        read_hosts(path)
    assert len(str(caught.value).splitlines()) == 1


@settings(max_examples=examples(200), deadline=None)
@given(st.binary(max_size=80) | st.text(st.sampled_from("ab1@:# \t\nslots=.-é\x1b\r")).map(str.encode))
def test_any_hosts_file_is_read_or_refused_in_one_line(
    tmp_path_factory: pytest.TempPathFactory, content: bytes
) -> None:
    path = tmp_path_factory.getbasetemp() / "any-hosts"
    path.write_bytes(content)
    try:
        found = read_hosts(path)
    except ValueError as error:
        message = str(error)
    else:
        message = ""
        assert all(1 <= host.slots <= MOST_LOCAL for host in found)
        assert all(host.name.isprintable() and not host.name.startswith("-") for host in found)
    assert len(message.splitlines()) <= 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--ssh 'unfinished", "--ssh .*: No closing quotation; expected a shell's words"),
        ("--ssh ''", "--ssh is empty"),
        ("--python ''", "--python is empty"),
        ("--hostip node1:22", "--hostip='node1:22': expected rank 0's address .*; set the port in"),
        ("--ranks-per-host 5000", "--ranks-per-host 5000: expected 1 to 1024"),
        ("--port x", "--port is 'x'; allowed is a whole number"),
    ],
)
@pytest.mark.parametrize("verb", ["launch", "doctor"])
def test_wrong_options_are_one_line_errors(tmp_path: Path, verb: str, options: str, message: str) -> None:
    (tmp_path / "hosts").write_text("a\n")
    name, value = options.split(" ", 1)
    value = value.replace("''", "")
    with pytest.raises(ValueError, match=message) as caught:
        call(verb, "--hosts", str(tmp_path / "hosts"), name, value)
    assert len(str(caught.value).splitlines()) == 1
