"""What `configure()` assembles: resource, exporters, processors, sampler, providers, and the handle that ends them.

`configure` alone sets OpenTelemetry's globals. The package may use OpenTelemetry's SDK, which nothing below it imports.
No adapter imports it: adapters meet what it made through OpenTelemetry's API and through `_runtime`.
"""
