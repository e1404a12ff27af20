"""Servers that fork."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

from meshmw.testing import OtlpReceiver, dies_with_parent, stop_processes
from tests.matrix.row import row
from tests.matrix.served import Connection, Ids, wait_for
from tests.programs import clean_environment

ROOT = Path(__file__).parents[3]


@row("servers that fork", "gunicorn `--preload`, two workers: every request's span arrives")
def gunicorn_preload(kit: Any) -> None:
    command = [sys.executable, "-m", "gunicorn", f"tests.matrix.preloaded:{kit.name}", "--preload", "--workers", "2"]
    command += ["--bind", "127.0.0.1:0", "--no-control-socket"]
    clean = clean_environment()
    with OtlpReceiver() as receiver:
        environment = clean | {"OTEL_EXPORTER_OTLP_ENDPOINT": receiver.grpc_endpoint, "OTEL_BSP_SCHEDULE_DELAY": "100"}
        server = subprocess.Popen(
            dies_with_parent(command), cwd=ROOT, env=environment, stderr=subprocess.PIPE, start_new_session=True
        )
        try:
            assert server.stderr is not None
            said = next(found for line in server.stderr if (found := re.search(rb"http://127\.0\.0\.1:(\d+)", line)))
            wanted = [Ids() for _ in range(6)]
            for ids in wanted:
                connection = Connection(int(said[1]))
                connection.ask("/", ids.traceparent)
                connection.close()
            missing = {ids.trace for ids in wanted}
            wait_for(lambda: missing <= {span.trace_id for span in receiver.spans})
            assert missing <= {span.trace_id for span in receiver.spans}, "spans are missing"
        finally:
            stop_processes([server], timeout=20)
            if server.stderr is not None:
                server.stderr.close()
