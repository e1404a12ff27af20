"""Two services behind real Envoy sidecars, and one request through all of them: `python -m sample_apps`."""


class NotReadyError(Exception):
    """Says in one line what is missing or did not start."""
