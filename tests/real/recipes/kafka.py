"""Apache Kafka: its jars, a configuration, and a folder formatted for one node in KRaft mode."""

import shutil
from pathlib import Path

from tests.real.install import run
from tests.real.recipes import _maven

CLUSTER = "bWVzaG13LW9mLXRlc3RzLQ"  # 16 bytes in base64


def build(folder: Path) -> None:
    """Leave `folder/libs`, `folder/server.properties` and `folder/formatted`, which each node starts with a copy of."""
    _maven.jars(__file__, folder)
    shutil.copy(Path(__file__).with_suffix("") / "server.properties", folder)
    tool = ["java", "-XX:TieredStopAtLevel=1", "-cp", "libs/*", "kafka.tools.StorageTool"]
    run(*tool, "format", "--cluster-id", CLUSTER, "--config", "server.properties", cwd=folder)
