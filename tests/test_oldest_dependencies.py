"""What the oldest versions that pyproject.toml names ask for, and the newest do not."""

from __future__ import annotations

from types import MappingProxyType

from meshmw._lifecycle.operation import LazyAttributes


def test_attributes_can_be_copied_as_the_sdk_does_up_to_1_40():
    """It copies what a sampler returns, through a proxy that passes the call on; and may add to the copy."""
    attributes = LazyAttributes(lambda: {"url.path": "/"})
    copied = MappingProxyType(attributes).copy()
    copied["more"] = 1
    assert (dict(attributes), copied) == ({"url.path": "/"}, {"url.path": "/", "more": 1})
