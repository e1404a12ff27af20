"""What `configure()` assembles: resource, exporter, processor, provider, and the handle that ends them."""

from __future__ import annotations
