"""The life of an operation at a boundary: begin, current while user code runs, end once.

Every adapter goes through here. Knows OpenTelemetry's spans and contexts, and a file for each kind of operation. Must
not know a framework, a library or a carrier.
"""
