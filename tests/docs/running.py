"""Runs the blocks of one page, in its order, in one folder that is the page's own."""

from __future__ import annotations

import ast
import contextlib
import json
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import time
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import kubernetes_validate
import yaml

from meshmw.testing import dies_with_parent, find_envoy, free_port
from tests.docs.blocks import ROOT, Block, Page
from tests.programs import clean_environment

HERE = Path(__file__).parent
SECONDS = 120
# What pages call a service that a test brings, and the fixture that knows its address.
SERVICES = {
    "kafka": ("kafka:9092", "kafka_broker"),
    "rabbitmq": ("amqp://rabbitmq/", "rabbitmq_broker"),
    "redis": ("redis://redis/0", "redis_broker"),
}
# Their commands change a cluster or a machine: their spelling is checked, and nothing else.
NOT_RUN = frozenset({"docker", "kubectl", "istioctl", "helm", "linkerd", "kumactl", "consul", "cilium", "git", "curl"})
_COMMANDS = re.compile(r"^\$ (.*(?:\\\n(?:> )?.*)*)$", re.MULTILINE)


class Run:
    """The state of a page's test: its folder, its ports, its servers, and what the last block wrote."""

    def __init__(self, page: Page, folder: Path, service: Callable[[str], str], world: dict[str, str]) -> None:
        self._page, self._folder, self._service = page, folder, service
        self._ports = {port: str(free_port()) for port in page.ports}
        self._replaced: dict[str, str] = {}
        self._program: list[tuple[str, int, str]] = []
        self._servers: list[tuple[subprocess.Popen[bytes], Path]] = []
        self._output = ""
        # A run of pytest within this one is none of its workers.
        mine = {name: value for name, value in clean_environment().items() if not name.startswith("PYTEST_")}
        self._environment = mine | {
            "MESHMW_EXPORTER": "none",
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
            "PYTHONPATH": os.pathsep.join(filter(None, [str(HERE), str(folder), os.environ.get("PYTHONPATH", "")])),
            "COLUMNS": "120",
            "NO_COLOR": "1",
            "PAGE_ROOT": str(ROOT),
            **world,
        }

    def close(self) -> None:
        for process, _ in self._servers:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()

    def block(self, block: Block) -> None:
        """Do with a block what is said of it, or what its language asks for."""
        for need in block.said.get("needs", "").split():
            shown, fixture = SERVICES[need]
            self._replaced[shown] = self._service(fixture)
        text = self._put(block.text)
        if "elsewhere" in block.said:
            assert (ROOT / block.said["elsewhere"].split()[0]).exists(), block.said["elsewhere"]
        elif "shown" in block.said:
            assert block.language in {"text", ""}, "only a text block may be shown alone; elsewhere say `check`"
        elif "output" in block.said:
            compare(block.text, self._as_shown(self._seen()))
        elif "pipe" in block.said:
            self._pipe(block, text)
        elif block.language in {"console", "sh", "bash"}:
            self._console(block)
        else:
            assert block.language in self._others, f"no test knows {block.language!r}; see tests/docs/README.md"
            self._others[block.language](self, block, text)

    def _put(self, text: str) -> str:
        for port, free in self._ports.items():
            text = re.sub(rf"(?<!\d){port}(?!\d)", free, text)
        for shown, address in self._replaced.items():
            text = text.replace(shown, address)
        return text

    def _as_shown(self, written: str) -> str:
        """Return what was written with the page's own ports and addresses in it."""
        for port, free in self._ports.items():
            written = re.sub(rf"(?<!\d){free}(?!\d)", port, written)
        for shown, address in self._replaced.items():
            written = written.replace(address, shown)
        return written

    def _env(self, block: Block) -> dict[str, str]:
        pairs = (pair.partition("=") for pair in shlex.split(self._put(block.said.get("env", ""))))
        return self._environment | {name: value for name, _, value in pairs}

    def _python(self, block: Block, text: str) -> None:
        compile("\n" * (block.line - 1) + text, self._page.name, "exec", ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
        if "file" in block.said:
            (self._folder / block.said["file"]).write_text(text)
        if "check" in block.said or ("file" in block.said and not {"setup", "after"} & block.said.keys()):
            return
        before, after = (self._put(block.said.get(word, "")) for word in ("setup", "after"))
        program = [(before, block.lines_of_code.get("setup", 1)), (text, block.line)]
        program.append((after, block.lines_of_code.get("after", 1)))
        if "continue" not in block.said:
            self._program = []
        self._program += [(self._page.name, line, code) for code, line in program if code]
        done = subprocess.run(
            [sys.executable, str(HERE / "program.py")],
            input=json.dumps(self._program).encode(),
            cwd=self._folder,
            env=self._env(block),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=SECONDS,
            check=False,
        )
        self._output = done.stdout.decode(errors="replace")
        assert done.returncode == int(block.said.get("exit", "0")), self._output

    def _console(self, block: Block) -> None:
        text = block.text
        check_syntax(text)
        if "$ " not in text:
            commands = [(text, "")] if block.language != "console" else [(line, "") for line in joined(text)]
        else:
            found = list(_COMMANDS.finditer(text))
            ends = [*(command.start() for command in found[1:]), len(text)]
            commands = [
                (each[1].replace("\n> ", "\n"), text[each.end() : end]) for each, end in zip(found, ends, strict=True)
            ]
        if "check" in block.said:
            return
        for number, (shown, expected) in enumerate(commands):
            if not is_run(shown):
                continue
            command = self._put(shown)
            last = number == len(commands) - 1
            if "serve" in block.said and last:
                self._serve(command, block)
            else:
                self._command(command, block, int(block.said.get("exit", "0")) if last else 0)
                if expected.strip():
                    compare(expected, self._as_shown(self._output))

    def _command(self, command: str, block: Block, status: int) -> None:
        done = subprocess.run(
            ["bash", "-c", command],
            cwd=self._folder,
            env=self._env(block),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=SECONDS,
            check=False,
        )
        self._output = done.stdout.decode(errors="replace")
        assert done.returncode == status, f"{command}\nended with {done.returncode}:\n{self._output}"

    def _serve(self, command: str, block: Block) -> None:
        port = int(self._ports[block.said["serve"]])
        log = self._folder / f"server-{port}.log"
        with log.open("wb") as output:
            process = subprocess.Popen(
                dies_with_parent(["/bin/bash", "-c", f"exec env {command}"]),
                cwd=self._folder,
                env=self._env(block) | {"PYTHONUNBUFFERED": "1"},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self._servers.append((process, log))
        self._output = ""
        deadline = time.monotonic() + SECONDS
        while True:
            try:
                socket.create_connection(("127.0.0.1", port), 1).close()
                return
            except OSError:
                assert process.poll() is None, log.read_text()
                assert time.monotonic() < deadline, log.read_text()
                time.sleep(0.05)

    def _seen(self) -> str:
        """What the last block wrote; where it started a server, what that wrote."""
        return self._output or (self._servers[-1][1].read_text() if self._servers else "")

    def _pipe(self, block: Block, text: str) -> None:
        file = self._folder / block.said.get("file", f"block-{block.line}.{block.language}")
        file.write_text(text)
        envoy = str(find_envoy()) if "envoy" in block.said["pipe"] else ""
        self._command(
            block.said["pipe"].format(file=file, envoy=envoy, root=ROOT), block, int(block.said.get("exit", "0"))
        )

    def _yaml(self, block: Block, text: str) -> None:
        for document in yaml.safe_load_all(text):
            assert document is not None, "an empty document"
            self._check_object(document)
        self._keep(block, text)

    @staticmethod
    def _check_object(document: Any) -> None:
        """Check an object of Kubernetes itself by its schema; others are only parsed."""
        version = document.get("apiVersion", "") if isinstance(document, dict) else ""
        if (
            re.fullmatch(r"v1|(apps|batch|autoscaling|policy)/v\d|[a-z.]+\.k8s\.io/v1", version)
            and "gateway" not in version
        ):
            kubernetes_validate.validate(document, "1.31", strict=True)

    def _json(self, block: Block, text: str) -> None:
        json.loads(text)
        self._keep(block, text)

    def _toml(self, block: Block, text: str) -> None:
        tomllib.loads(text)
        self._keep(block, text)

    def _text(self, block: Block, _text: str) -> None:
        raise AssertionError("a text block says `output` (compared with the last block's), or `shown` and why")

    def _config(self, block: Block, text: str) -> None:
        assert "check" in block.said or "file" in block.said, f"{block.language}: say `pipe`, `file` or `check` and why"
        self._keep(block, text)

    def _keep(self, block: Block, text: str) -> None:
        if "file" in block.said:
            (self._folder / block.said["file"]).write_text(text)

    _others = {
        "python": _python,
        "yaml": _yaml,
        "json": _json,
        "toml": _toml,
        "text": _text,
        "": _text,
        "ini": _config,
        "nginx": _config,
        "haproxy": _config,
        "dockerfile": _config,
        "promql": _config,
        "mermaid": _config,
    }


def joined(text: str) -> list[str]:
    """Return the commands of a block without prompts, those that go on in the next line put together."""
    return [line for line in text.replace("\\\n", " ").splitlines() if line.strip() and not line.startswith("#")]


def check_syntax(text: str) -> None:
    """Fail where bash would not read the commands, or a requirement names an extra that there is not."""
    commands = "\n".join(each[1].replace("\n> ", "\n") for each in _COMMANDS.finditer(text)) or text
    done = subprocess.run(["bash", "-n"], input=commands.encode(), capture_output=True, check=False)
    assert done.returncode == 0, done.stderr.decode()
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    for named in re.findall(r"(?:meshmw|\.)\[([\w,-]+)\]", commands):
        assert set(named.split(",")) <= extras.keys(), f"no such extra: {named}"


def is_run(command: str) -> bool:
    """Return whether a command is run here: nothing that installs, and nothing that needs a cluster."""
    words = shlex.split(command, comments=True)
    while words and re.fullmatch(r"\w+=.*", words[0]):
        del words[0]
    return bool(words) and words[0] not in NOT_RUN and not re.search(r"\bpip install\b|-m venv\b", command)


def compare(expected: str, written: str) -> None:
    """Fail where a text does not show what was written; `...` stands for anything, spaces at line ends for nothing."""
    pattern = r"[\s\S]*?".join(
        r"[ \t]*\n".join(re.escape(line.rstrip()) for line in part.split("\n"))
        for part in expected.strip().split("...")
    )
    assert re.search(pattern, written), f"shown:\n{expected}\nwritten:\n{written}"
