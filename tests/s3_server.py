"""moto's S3 server on a loopback port, for the tests of runs at URLs."""

import os
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from urllib.error import URLError

import leftovers
from sockets import free_ports

BUCKET = "bucket"
PATIENCE = 120.0


class Server:
    """A process that serves one bucket, which is empty after each start."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        (self._port,) = free_ports(1)
        self.address = f"http://127.0.0.1:{self._port}"
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def environment(self) -> dict[str, str]:
        """The variables with which the AWS tools find the server; no file of credentials is read."""
        nowhere = str(self._folder / "nowhere")
        return {
            "AWS_ENDPOINT_URL": self.address,
            "AWS_ACCESS_KEY_ID": "key",
            "AWS_SECRET_ACCESS_KEY": "secret",
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_CONFIG_FILE": nowhere,
            "AWS_SHARED_CREDENTIALS_FILE": nowhere,
        }

    def start(self) -> None:
        """Start the process, and make the bucket."""
        command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", self._port]
        with open(self._folder / "server.log", "ab") as log:
            environment = {**os.environ, **self.environment}
            self._process = subprocess.Popen(command, stdout=log, stderr=log, env=environment)
        leftovers.OWNED.add(self._process.pid)
        deadline = time.monotonic() + PATIENCE
        while True:
            try:
                self._ask("PUT", f"/{BUCKET}")
                return
            except URLError:
                assert self._process.poll() is None, (self._folder / "server.log").read_text()
                assert time.monotonic() < deadline
                time.sleep(0.05)

    def kill(self) -> None:
        """Kill the process, as by kill -9."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            leftovers.OWNED.discard(self._process.pid)
            self._process = None

    def check_credentials(self, is_checked: bool) -> None:
        """Refuse every request whose key no user has, as all keys here, or accept all."""
        self._ask("POST", "/moto-api/reset-auth", b"0" if is_checked else b"inf")

    def _ask(self, method: str, path: str, content: bytes | None = None) -> None:
        headers = {"Content-Type": "application/octet-stream"}
        request = urllib.request.Request(self.address + path, content, headers, method=method)
        urllib.request.urlopen(request, timeout=PATIENCE).close()
