"""A private RabbitMQ from Debian's package: no port, cookie, directory or epmd that another one could know.

One node serves all processes of one pytest session. The first process that needs it starts it, and stops it when no
other process uses it any longer. Each process has a virtual host of its own in it.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from meshmw.testing import dies_with_parent, free_port, stop_processes
from tests.programs import not_installed

# Not /usr/sbin's wrapper: that one changes the user and the directory, and forgets the environment.
SERVER = "/usr/lib/rabbitmq/bin/rabbitmq-server"
START_SECONDS = 90
VIRTUAL_HOSTS = ("main", *(f"gw{number}" for number in range(8)))


class RabbitMQ:
    """Runs one node, which can be stopped and started again with everything that it has stored.

    Args:
        folder: For all that it writes.
    """

    def __init__(self, folder: Path) -> None:
        self.port, self._distribution, self._epmd_port = (free_port() for _ in range(3))
        self._folder = folder
        self._log = folder / "console.txt"
        self._epmd: subprocess.Popen[bytes] | None = None
        self._node: subprocess.Popen[bytes] | None = None
        (folder / "enabled_plugins").write_text("[].\n")
        (folder / "definitions.json").write_text(json.dumps(_definitions()))
        (folder / "rabbitmq.conf").write_text(
            f"listeners.tcp.1 = 127.0.0.1:{self.port}\n"
            f"load_definitions = {folder}/definitions.json\n"
            "log.file.level = warning\n"
            "log.console = false\n"
            "vm_memory_high_watermark.absolute = 256MB\n"
            "disk_free_limit.absolute = 1MB\n"
        )

    def url(self, virtual_host: str = "main") -> str:
        """Return where clients connect."""
        return f"amqp://guest:guest@127.0.0.1:{self.port}/{virtual_host}"

    def start(self) -> None:
        """Start the node, and wait until it speaks AMQP.

        Raises:
            AssertionError: It ended, or does not answer in time; shows what it wrote.
        """
        environment = self._environment()
        if self._epmd is None:
            # A node that finds none starts one that outlives it. Ctrl-C must not end this one before its node.
            self._epmd = subprocess.Popen(
                dies_with_parent(
                    [shutil.which("epmd") or "epmd", *f"-port {self._epmd_port} -address 127.0.0.1".split()]
                ),
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                start_new_session=True,
            )
            self._wait(self._epmd, lambda: _connects(self._epmd_port))
        with self._log.open("wb") as output:
            # The node ends by itself when the pipe closes, therefore also when this process is killed.
            self._node = subprocess.Popen(
                [SERVER],
                env=environment,
                cwd=self._folder,
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
        self._wait(self._node, self._speaks)

    def stop(self) -> None:
        """Stop the node; what is durable stays."""
        if self._node is not None:
            self._node.send_signal(signal.SIGTERM)
            stop_processes([self._node], timeout=20)
            assert self._node.stdin is not None
            self._node.stdin.close()
            self._node = None

    def close(self) -> None:
        """Stop the node and what it needs."""
        self.stop()
        if self._epmd is not None:
            stop_processes([self._epmd])

    def _environment(self) -> dict[str, str]:
        folder = self._folder
        return {
            "PATH": os.environ["PATH"],
            "LANG": "C.UTF-8",
            "HOME": str(folder),  # where the cookie is
            "RABBITMQ_NODENAME": f"test{self.port}@localhost",
            "RABBITMQ_DIST_PORT": str(self._distribution),
            "RABBITMQ_CONF_ENV_FILE": "/dev/null",
            "RABBITMQ_CONFIG_FILE": str(folder / "rabbitmq"),
            "RABBITMQ_MNESIA_BASE": str(folder / "mnesia"),
            "RABBITMQ_LOG_BASE": str(folder / "log"),
            "RABBITMQ_ENABLED_PLUGINS_FILE": str(folder / "enabled_plugins"),
            "RABBITMQ_ALLOW_INPUT": "1",
            "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": "-kernel inet_dist_use_interface {127,0,0,1}",
            "ERL_EPMD_PORT": str(self._epmd_port),
            "ERL_EPMD_ADDRESS": "127.0.0.1",
        }

    def _speaks(self) -> bool:
        with socket.create_connection(("127.0.0.1", self.port), timeout=1) as connection:
            connection.settimeout(2)
            connection.sendall(b"AMQP\0\0\x09\x01")
            return connection.recv(1) == b"\x01"  # the frame of Connection.Start

    def _wait(self, process: subprocess.Popen[bytes], is_ready: Callable[[], bool]) -> None:
        deadline = time.monotonic() + START_SECONDS
        while True:
            said = self._log.read_text(errors="replace")[-2000:] if self._log.exists() else ""
            assert process.poll() is None, f"RabbitMQ ended:\n{said}"
            assert time.monotonic() < deadline, f"RabbitMQ did not start in {START_SECONDS} s:\n{said}"
            with contextlib.suppress(OSError):
                if is_ready():
                    return
            time.sleep(0.02)


def require_rabbitmq(config: pytest.Config) -> None:
    """Skip the test where RabbitMQ is not installed, or fail it where everything has to be."""
    if not os.path.exists(SERVER):
        not_installed(config, "RabbitMQ is not installed: run  apt-get install rabbitmq-server")


@pytest.fixture(scope="session")
def rabbitmq_broker(pytestconfig: pytest.Config, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL of a virtual host of this process's own in a running RabbitMQ."""
    require_rabbitmq(pytestconfig)
    worker = os.environ.get("PYTEST_XDIST_WORKER", "main")
    base = tmp_path_factory.getbasetemp()
    with shared_node(base if worker == "main" else base.parent) as port:
        yield f"amqp://guest:guest@127.0.0.1:{port}/{worker}"


@contextlib.contextmanager
def shared_node(folder: Path) -> Iterator[int]:
    """Yield the port of the node that all processes with this folder share.

    Whoever uses it holds a shared lock on a file. The process that has started it stops it under an exclusive lock,
    which it gets when all others have ended, whatever the way.
    """
    with (folder / "rabbitmq.starting").open("a") as starting, (folder / "rabbitmq.port").open("a+") as in_use:
        fcntl.flock(starting, fcntl.LOCK_EX)
        in_use.seek(0)
        port = in_use.read()
        if port:
            fcntl.flock(in_use, fcntl.LOCK_SH)
            fcntl.flock(starting, fcntl.LOCK_UN)
            yield int(port)
            return
        with running_node(Path(tempfile.mkdtemp(prefix="rabbitmq", dir=folder))) as node:
            in_use.write(str(node.port))
            in_use.flush()
            fcntl.flock(starting, fcntl.LOCK_UN)
            try:
                yield node.port
            finally:
                # Nobody else can begin to use it while this one waits for those that still do.
                fcntl.flock(starting, fcntl.LOCK_EX)
                fcntl.flock(in_use, fcntl.LOCK_EX)
                in_use.truncate(0)


@contextlib.contextmanager
def running_node(folder: Path) -> Iterator[RabbitMQ]:
    """Yield a node that nobody else uses, with all that it writes in *folder*."""
    node = RabbitMQ(folder)
    try:
        node.start()
        yield node
    finally:
        node.close()


def _definitions() -> dict[str, Any]:
    """Return what the node is to have from the beginning: `rabbitmqctl` takes seconds for each."""
    everything = {"configure": ".*", "write": ".*", "read": ".*"}
    return {
        "users": [{"name": "guest", "password": "guest", "tags": "administrator"}],
        "vhosts": [{"name": name} for name in VIRTUAL_HOSTS],
        "permissions": [{"user": "guest", "vhost": name, **everything} for name in VIRTUAL_HOSTS],
    }


def _connects(port: int) -> bool:
    with socket.create_connection(("127.0.0.1", port), timeout=1):
        return True
