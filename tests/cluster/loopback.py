"""A machine to log in to that is this one: an sshd on loopback, in a process namespace of its own.

`ray stop` ends every Ray process that it sees. In a namespace of its own it sees those that were started over ssh, and
no others; and when the namespace ends, so does all that ran in it.
"""

import getpass
import os
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

_SSHD_CONFIG = """\
ListenAddress 127.0.0.1
Port {port}
HostKey {folder}/host_key
AuthorizedKeysFile {folder}/key.pub
PidFile none
StrictModes no
UsePAM no
PasswordAuthentication no
PermitRootLogin prohibit-password
SetEnv HOME={home}
"""

# ssh speaks through this to a port that Ray has no setting for.
_RELAY = """\
import os, socket, sys, threading
connection = socket.create_connection(("127.0.0.1", {port}))
def send():
    while data := os.read(0, 65536):
        connection.sendall(data)
    connection.shutdown(socket.SHUT_WR)
threading.Thread(target=send, daemon=True).start()
while data := connection.recv(65536):
    os.write(1, data)
"""


@dataclass(frozen=True)
class Machine:
    """A machine that ssh reaches.

    Attributes:
        user: who logs in.
        key: file of the private key.
        home: the user's home there.
        proxy_command: what ssh connects through.
    """

    user: str
    key: Path
    home: Path
    proxy_command: str


def find_free_ports(count: int) -> list[int]:
    """Ports of loopback that nothing listens on."""
    with ExitStack() as stack:
        sockets = [stack.enter_context(closing(socket.socket())) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


@contextmanager
def run_machine(environment: Mapping[str, str]) -> Iterator[Machine]:
    """Runs the sshd until the block ends.

    Args:
        environment: what a login shell there exports.
    """
    (port,) = find_free_ports(1)
    # Short, since the paths of Ray's sockets must be.
    with tempfile.TemporaryDirectory(prefix="memrl-", dir="/tmp") as name:
        folder = Path(name)
        home = folder / "home"
        home.mkdir()
        (home / ".bashrc").write_text("".join(f"export {key}='{value}'\n" for key, value in environment.items()))
        for key in ("host_key", "key"):
            command = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / key)]
            subprocess.run(command, check=True, timeout=60)
        (folder / "sshd_config").write_text(_SSHD_CONFIG.format(port=port, folder=folder, home=home))
        (folder / "relay.py").write_text(_RELAY.format(port=port))
        if os.getuid() == 0:
            Path("/run/sshd").mkdir(exist_ok=True)  # where sshd, as root, puts itself before anyone has logged in
        with _run_sshd(folder):
            _wait_for(port)
            yield Machine(getpass.getuser(), folder / "key", home, f"python3 {folder / 'relay.py'}")


@contextmanager
def _run_sshd(folder: Path) -> Iterator[None]:
    search = os.pathsep.join([os.environ["PATH"], "/usr/sbin"])
    sshd = shutil.which("sshd", path=search)
    assert sshd, "openssh-server must be installed"
    rights = [] if os.getuid() == 0 else ["--user", "--map-current-user"]
    dies_with_us = ["setpriv", "--pdeathsig", "KILL"]
    namespace = ["unshare", *rights, "--pid", "--fork", "--mount-proc", "--kill-child"]
    with (folder / "sshd.log").open("w") as log:
        command = [*dies_with_us, *namespace, sshd, "-D", "-e", "-f", str(folder / "sshd_config")]
        process = subprocess.Popen(command, stdout=log, stderr=log)
        try:
            yield
        finally:
            process.kill()
            process.wait(timeout=60)


def _wait_for(port: int) -> None:
    deadline = time.monotonic() + 60
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=5).close()
            return
        except OSError:
            assert time.monotonic() < deadline, "sshd does not answer"
            time.sleep(0.1)
