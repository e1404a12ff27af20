"""What `configure()` assembles: resource, exporter, processors, sampler, providers, and the handle that ends them.

`configure` alone sets OpenTelemetry's globals. The package knows the SDK, which nothing below it imports, and the
settings. It knows no request: adapters meet what it made through OpenTelemetry's API and through `_runtime`.
"""
