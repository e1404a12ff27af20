"""A peer in Node.js: OpenTelemetry JS with the instrumentation of http, grpc-js, kafkajs and amqplib."""

import os
import shutil
from pathlib import Path

from tests.real.install import run
from tests.real.peers import NODE_MISSING, find_node


def build(folder: Path) -> None:
    """Leave the program, and `folder/node_modules` with the hashes that package-lock.json names."""
    shutil.copytree(Path(__file__).with_suffix(""), folder, dirs_exist_ok=True)
    node = find_node()
    if node is None:
        raise SystemExit(NODE_MISSING)
    npm_of_wheel = node.parent.parent / "lib" / "node_modules" / "npm" / "bin" / "npm-cli.js"
    npm = [node, npm_of_wheel] if npm_of_wheel.exists() else ["npm"]
    path = f"{node.parent}{os.pathsep}{os.environ['PATH']}"
    run(*npm, "ci", "--no-audit", "--no-fund", "--ignore-scripts", cwd=folder, PATH=path)
