"""What `configure()` assembles: resource, exporters, processors, sampler, providers, and the handle that ends them.

`configure` alone sets OpenTelemetry's globals. The package may use OpenTelemetry's SDK, which nothing below it imports.
No adapter imports it: adapters meet what it made through OpenTelemetry's API and through `_runtime`.
"""

from meshmw.settings import IMPORT_VARIABLES, readable

# A value that the SDK cannot read would stop its import. `configure()` warns of it, where the SDK reads it again.
with readable(*IMPORT_VARIABLES, warn=False):
    import opentelemetry.sdk.trace  # noqa: F401
