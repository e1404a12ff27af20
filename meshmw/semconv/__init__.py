"""OpenTelemetry's semantic conventions, a file for each kind of span: what an attribute is called and what it holds."""
