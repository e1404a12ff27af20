from meshmw import wire


def test_exports_are_sorted_and_there():
    assert sorted(wire.__all__, key=lambda name: (not name.isupper(), name)) == wire.__all__
    assert all(hasattr(wire, name) for name in wire.__all__)


def test_every_header_documents_its_reasons():
    assert set(wire.REASONS) == {"traceparent", "tracestate", "baggage", "b3"}
    assert all(reason and text for reasons in wire.REASONS.values() for reason, text in reasons.items())
