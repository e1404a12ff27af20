"""pricing-service with the OpenTelemetry contrib packages: the same method, without meshmw."""

from concurrent.futures import ThreadPoolExecutor

import grpc
from opentelemetry.instrumentation.grpc import GrpcInstrumentorServer

from sample_apps.contrib import set_up
from sample_apps.pricing import Settings, quote

if __name__ == "__main__":
    set_up("pricing-service")
    GrpcInstrumentorServer().instrument()
    settings = Settings()
    server = grpc.server(ThreadPoolExecutor(8))
    methods = {"Quote": grpc.unary_unary_rpc_method_handler(quote)}
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("shop.Pricing", methods),))
    server.add_insecure_port(f"{settings.pricing_host}:{settings.pricing_port}")
    server.start()
    server.wait_for_termination()
