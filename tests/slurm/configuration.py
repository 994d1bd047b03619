"""Configuration of a cluster's daemons: slurm.conf, gres.conf, a hosts file and munge's key."""

import os
import pwd
import re
import socket
from pathlib import Path

from sockets import free_ports

GPUS = ("/dev/null", "/dev/zero", "/dev/full", "/dev/urandom")
"""Device files used as simulated GPUs."""

# A requeued job waits for cred_expire and one scheduling interval: seconds; with the defaults two minutes.
SLURM = """\
ClusterName=lab
SlurmctldHost={head}
SlurmctldPort={port}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=5
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/%n.pid
MailProg=/bin/true
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SlurmdParameters=config_overrides
SlurmctldParameters=preempt_send_user_signal
SchedulerParameters=batch_sched_delay=0,sched_interval=2,bf_interval=2
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
EnforcePartLimits=ANY
ReturnToService=2
SlurmdTimeout=20
KillWait=5
MinJobAge=86400
GresTypes=gpu
NodeName=node[1-{count}] {where} CPUs=8 RealMemory=4000 Gres=gpu:{gpus} State=UNKNOWN
PartitionName=debug Nodes=ALL MaxTime=INFINITE Default=YES
PartitionName=low Nodes=ALL MaxTime=INFINITE PriorityTier=1 PreemptMode=REQUEUE GraceTime=20
PartitionName=high Nodes=ALL MaxTime=INFINITE PriorityTier=10 PreemptMode=OFF
"""


def write(folder: Path, count: int, gpus: int, *, networks: bool) -> None:
    """Write the files for `count` nodes, which have their own networks or share this machine's."""
    if count < 1:
        raise ValueError(f"{count} nodes: give 1 or more")
    if not 0 <= gpus <= len(GPUS):
        raise ValueError(f"{gpus} GPUs a node: give 0 to {len(GPUS)}")
    if len(str(folder)) > 80:
        raise ValueError(f"{folder} is too long for the path of a socket: give one of at most 80 letters")
    for name in ("state", "sys", *(f"node{number}" for number in range(1, count + 1))):
        (folder / name).mkdir(parents=True)
    key = folder / "munge.key"
    key.touch(0o600)
    key.write_bytes(os.urandom(128))
    files = f"Name=gpu File={','.join(GPUS[:gpus])}\n" if gpus else ""
    (folder / "gres.conf").write_text(f"AutoDetect=off\n{files}")
    if networks:
        head, port = "head(10.77.0.254)", "16817"
        where = f"NodeAddr=10.77.0.[1-{count}] Port=16818"
        nodes = "".join(f"{address(number)} node{number}\n" for number in range(1, count + 1))
        (folder / "hosts").write_text(f"127.0.0.1 localhost\n10.77.0.254 head\n{nodes}")
    else:
        name = socket.gethostname().split(".")[0]
        port, *others = free_ports(1 + count)
        head = f"{name}(127.0.0.1)"
        where = f"NodeHostname={name} NodeAddr=127.0.0.1 Port=[{','.join(others)}]"
    user = pwd.getpwuid(os.geteuid()).pw_name
    config = SLURM.format(head=head, port=port, user=user, folder=folder, count=count, where=where, gpus=gpus)
    (folder / "slurm.conf").write_text(config)


def address(number: int) -> str:
    """Return a node's address in its own network."""
    return f"10.77.0.{number}"


def burst(rate: str) -> str:
    """Return the burst of a link of this rate in bytes: 10 ms, but from 32 to 256 KB.

    Measured: with these bursts, large all-reduces reach 85 to 95 % of 10 Mbit/s, 100 Mbit/s and 1 Gbit/s.
    """
    match = re.fullmatch(r"(\d+)(kbit|mbit|gbit)", rate)
    if match is None:
        raise ValueError(f"a rate of {rate!r}: give a number with kbit, mbit or gbit, as in 100mbit")
    bits = int(match[1]) * {"kbit": 10**3, "mbit": 10**6, "gbit": 10**9}[match[2]]
    return f"{min(max(bits // 800_000, 32), 256)}kb"
