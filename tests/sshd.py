"""Runs a private sshd on loopback that ends with the tests; every host name resolves to this machine.

Sessions have a home folder of their own, since the start-up files of the user's shell may print or fail.
"""

import os
import pwd
import shutil
import signal
import socket
import subprocess
from pathlib import Path

import pytest
from launcher import free_port, until

from sage.cluster.supervisor import die_with_parent

SEARCH = os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/sbin", "/sbin"])

SERVER = """
Port {port}
ListenAddress 127.0.0.1
HostKey {folder}/host
AuthorizedKeysFile {folder}/me.pub
PidFile none
AcceptEnv PSSH_NODENUM
SetEnv HOME={folder}
UsePAM no
StrictModes no
UseDNS no
PermitRootLogin yes
PasswordAuthentication no
KbdInteractiveAuthentication no
"""

CLIENT = """
Host unreachable
    Port 1
Host *
    HostName 127.0.0.1
    Port {port}
    User {user}
    IdentityFile {folder}/me
    IdentitiesOnly yes
    UserKnownHostsFile {folder}/known_hosts
    GlobalKnownHostsFile none
"""


class Sshd:
    """An sshd for this user only, with temporary keys; the host `unreachable` refuses connections."""

    def __init__(self, folder: Path) -> None:
        program = shutil.which("sshd", path=SEARCH)
        if program is None:
            pytest.skip("no sshd here: apt-get install openssh-server")
        self.port, self._log = free_port(), folder / "sshd.log"
        for key in ("host", "me"):
            subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", folder / key], check=True)
        (folder / "known_hosts").write_text(f"[127.0.0.1]:{self.port} {(folder / 'host.pub').read_text()}")
        result = {"port": self.port, "folder": folder, "user": pwd.getpwuid(os.getuid()).pw_name}
        (folder / "server").write_text(SERVER.format(**result))
        (folder / "client").write_text(CLIENT.format(**result))
        if os.getuid() == 0:
            # sshd's privilege separation directory; Debian creates it when the service starts.
            Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)
        self._process = subprocess.Popen(
            [program, "-D", "-f", folder / "server", "-E", self._log],
            stdin=subprocess.DEVNULL,
            preexec_fn=die_with_parent,
        )
        self.ssh = f"ssh -F {folder / 'client'}"
        """The value for `--ssh`."""
        try:
            until(self._answers)
        except BaseException:
            self.close()
            raise

    def sessions(self) -> list[int]:
        """Return the ids of the processes that serve a connection."""
        pid = self._process.pid
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]

    def close(self) -> None:
        """End the server and its open sessions."""
        for pid in self.sessions():
            os.kill(pid, signal.SIGKILL)
        self._process.kill()
        self._process.wait()

    def _answers(self) -> bool:
        assert self._process.poll() is None, self._log.read_text()
        with socket.socket() as client:
            return client.connect_ex(("127.0.0.1", int(self.port))) == 0
