"""pricing-service: a gRPC server that knows what things cost. Its messages are JSON, so nothing has to be generated.

PRICING_PORT=8002 python -m sample_apps.pricing

PRICING_HOST=0.0.0.0 lets it be reached from outside, as in a pod.
"""

import json
from concurrent.futures import ThreadPoolExecutor

import grpc
from pydantic_settings import BaseSettings

import meshmw
from meshmw.grpc import TraceContextServerInterceptor


class Settings(BaseSettings):
    pricing_host: str = "127.0.0.1"
    pricing_port: int = 8002


PRICES = {"teapot": "19.90", "kettle": "34.50"}


def quote(request: bytes, context: grpc.ServicerContext) -> bytes:
    item = json.loads(request)["item"]
    if item not in PRICES:
        context.abort(grpc.StatusCode.NOT_FOUND, f"there is no {item}")
    return json.dumps({"item": item, "price": PRICES[item]}).encode()


def main() -> None:
    meshmw.configure(meshmw.Settings(service_name="pricing-service"))
    server = grpc.server(ThreadPoolExecutor(8), interceptors=[TraceContextServerInterceptor()])
    methods = {"Quote": grpc.unary_unary_rpc_method_handler(quote)}
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("shop.Pricing", methods),))
    settings = Settings()
    server.add_insecure_port(f"{settings.pricing_host}:{settings.pricing_port}")
    server.start()
    server.wait_for_termination()


if __name__ == "__main__":
    main()
