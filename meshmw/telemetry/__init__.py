"""What `configure()` assembles: resource, exporter, processor, provider, and the handle that ends them.

Knows OpenTelemetry's SDK and the settings. Must not set anything global: that is `meshmw.bootstrap` alone.
"""
