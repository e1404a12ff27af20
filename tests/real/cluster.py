"""Kubernetes' API server and its etcd on loopback, with the definitions of Istio and of the Gateway API; no node.

What it takes is what a cluster would take: schemas, defaults, admission with Pod Security, the definitions' rules.
Nothing is scheduled, so that no pod runs.
"""

from __future__ import annotations

import contextlib
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

from meshmw.testing import free_port, start_process, stop_processes
from tests.programs import clean_environment

SECONDS = 120
TOKEN = "of-this-test"


class Cluster:
    """A running API server, and kubectl for it."""

    def __init__(self, program: Path, folder: Path, port: int) -> None:
        self._program = program
        self._server = f"https://127.0.0.1:{port}"
        self._cache = folder / "kubectl"

    def kubectl(self, *arguments: object, stdin: str = "", cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
        """Run kubectl to its end."""
        how = (
            f"--server={self._server}",
            f"--token={TOKEN}",
            "--insecure-skip-tls-verify",
        )
        return subprocess.run(
            [str(self._program), "kubectl", *how, f"--cache-dir={self._cache}", *map(str, arguments)],
            input=stdin,
            cwd=cwd,
            env=clean_environment() | {"KUBECONFIG": "/dev/null"},
            capture_output=True,
            text=True,
            timeout=SECONDS,
            check=False,
        )

    def must(self, *arguments: object, stdin: str = "", cwd: Path | None = None) -> str:
        """Run kubectl, which must say nothing on standard error, warnings included; return the rest."""
        done = self.kubectl(*arguments, stdin=stdin, cwd=cwd)
        assert (done.returncode, done.stderr) == (0, ""), done.stderr + done.stdout
        return done.stdout

    def is_ready(self) -> bool:
        """Whether the server answers and has made what it makes at its start."""
        return self.kubectl("get", "--raw=/readyz").returncode == 0


@contextlib.contextmanager
def running_cluster(server: Path, folder: Path) -> Iterator[Cluster]:
    """Run both.

    Args:
        server: Where `python -m tests.real.install kubernetes` put it.
        folder: Where their files and their logs go.
    """
    program, (client, peer, port) = server / "kubernetes", (free_port() for _ in range(3))
    (folder / "tokens").write_text(f'{TOKEN},admin,admin,"system:masters"\n')
    etcd = [
        *(program, "etcd", f"--data-dir={folder}/etcd", "--unsafe-no-fsync"),
        *(f"--listen-client-urls=http://127.0.0.1:{client}", f"--advertise-client-urls=http://127.0.0.1:{client}"),
        *(f"--listen-peer-urls=http://127.0.0.1:{peer}", f"--initial-advertise-peer-urls=http://127.0.0.1:{peer}"),
        f"--initial-cluster=default=http://127.0.0.1:{peer}",
    ]
    _make_keys(folder)
    api_server = [
        *(program, "kube-apiserver", f"--etcd-servers=http://127.0.0.1:{client}", f"--secure-port={port}"),
        *("--bind-address=127.0.0.1", "--advertise-address=127.0.0.1", "--service-cluster-ip-range=10.0.0.0/24"),
        *(f"--cert-dir={folder}/certificates", f"--token-auth-file={folder}/tokens", "--authorization-mode=RBAC"),
        *("--service-account-issuer=https://cluster.test", f"--service-account-key-file={folder}/key.pem"),
        f"--service-account-signing-key-file={folder}/key.pem",
        # Nobody makes the accounts of new namespaces.
        "--disable-admission-plugins=ServiceAccount",
    ]
    with contextlib.ExitStack() as stack:
        for name, command in (("etcd", etcd), ("api-server", api_server)):
            process = start_process(
                [str(part) for part in command], folder / f"{name}.log", environment=clean_environment()
            )
            stack.callback(stop_processes, [process], 20)
        cluster = Cluster(program, folder, port)
        deadline = time.monotonic() + SECONDS
        while not cluster.is_ready():
            assert process.poll() is None, (folder / "api-server.log").read_text()[-4000:]
            assert time.monotonic() < deadline, (folder / "api-server.log").read_text()[-4000:]
            time.sleep(0.1)
        for path in sorted((server / "definitions").iterdir()):
            cluster.must("create", "-f", path)
        cluster.must("wait", "--for=condition=Established", f"--timeout={SECONDS}s", "crd", "--all")
        yield cluster


def _make_keys(folder: Path) -> None:
    subprocess.run(["openssl", "genrsa", "-out", folder / "key.pem", "2048"], check=True, capture_output=True)
