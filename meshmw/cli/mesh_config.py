"""`meshmw mesh-config`: configuration of proxies and platforms that keeps a trace."""

from __future__ import annotations

from typing import Annotated

import typer

from meshmw.cli.output import OK, answers, print_json
from meshmw.diagnose.mesh_config import TARGETS, MeshNames
from meshmw.diagnose.mesh_config import mesh_config as render

_DEFAULTS = MeshNames()


@answers
def mesh_config(
    target: Annotated[
        str,
        typer.Argument(metavar="TARGET", help="; ".join(f"{name}: {meaning}" for name, meaning in TARGETS.items())),
    ],
    service: Annotated[str, typer.Option(help="The service's name.")] = _DEFAULTS.service,
    namespace: Annotated[str, typer.Option(help="Its namespace.")] = _DEFAULTS.namespace,
    collector: Annotated[str, typer.Option(metavar="HOST:PORT", help="OTLP over gRPC.")] = _DEFAULTS.collector,
    upstream: Annotated[
        str, typer.Option(metavar="HOST:PORT", help="What lies behind the proxy.")
    ] = _DEFAULTS.upstream,
    app_port: Annotated[int, typer.Option(help="Where the application listens.")] = _DEFAULTS.app_port,
    listen_port: Annotated[int, typer.Option(help="Where a terminator listens.")] = _DEFAULTS.listen_port,
    image: Annotated[str, typer.Option(help="The service's image.")] = _DEFAULTS.image,
    sampling: Annotated[float, typer.Option(help="Percent of traces that proxies start sampled.")] = _DEFAULTS.sampling,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON document that holds the text.")] = False,
) -> int:
    """Print a configuration with which a proxy or a platform keeps traces and logs traceparent.

    Redirect it to a file, and read it: it says in its comments what each part is for. Nothing is applied.
    """
    names = MeshNames(
        service=service, namespace=namespace, collector=collector, upstream=upstream,
        app_port=app_port, listen_port=listen_port, image=image, sampling=sampling,
    )  # fmt: skip
    text = render(target, names)
    if json:
        print_json({"target": target, "text": text})
    else:
        print(text, end="")
    return OK
