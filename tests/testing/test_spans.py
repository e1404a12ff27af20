"""Trees and assertions over finished spans."""

from dataclasses import replace

import pytest
from opentelemetry.sdk.trace import ReadableSpan

from meshmw.testing import (
    ReceivedSpan,
    assert_chain,
    assert_child_of,
    assert_one_trace,
    children,
    find_span,
    find_spans,
    from_sdk,
    render_tree,
    roots,
)


def span(service, kind, own, parent="", trace="a", start=0):
    return ReceivedSpan(
        service=service,
        name=f"{service} call",
        kind=kind,
        trace_id=trace * 32,
        span_id=own * 16,
        parent_id=parent * 16,
        start_ns=start,
        end_ns=start + 1_500_000,
    )


EDGE = span("edge", "SERVER", "1")
SHOP = span("shop", "SERVER", "2", "1", start=1)
STOCK = span("stock", "CLIENT", "3", "2", start=2)
BILL = span("bill", "CLIENT", "4", "2", start=3)
ORPHAN = span("lost", "SERVER", "5", "9", start=4)
TWIGS = [span("twig", "SERVER", "6", "3"), span("twig", "SERVER", "7", "3")]
OTHER = span("other", "SERVER", "2", trace="b", start=5)


def test_a_tree_shows_service_kind_name_and_time():
    assert render_tree([BILL, STOCK, SHOP, EDGE]) == (
        f"trace {'a' * 32}\n"
        "edge         SERVER  edge call      1.5 ms\n"
        "└─ shop      SERVER  shop call      1.5 ms\n"
        "   ├─ stock  CLIENT  stock call     1.5 ms\n"
        "   └─ bill   CLIENT  bill call      1.5 ms"
    )


def test_an_orphan_and_another_trace_are_shown_as_what_they_are():
    tree = render_tree([OTHER, ORPHAN, EDGE])
    assert tree.count("trace ") == 2
    assert f"lost call      1.5 ms  orphan: its parent {'9' * 16} is missing" in tree
    assert tree.splitlines()[-1].startswith("other ")


def test_a_request_that_goes_round_and_round_is_drawn_however_deep_it_is():
    loop = [
        replace(EDGE, span_id=f"{number + 1:016x}", parent_id=f"{number:016x}" if number else "")
        for number in range(1100)
    ]
    assert render_tree(loop).count("edge call") == 1100


def test_spans_of_one_id_are_drawn_once_each_though_they_make_a_circle():
    again = replace(EDGE, parent_id=SHOP.span_id, start_ns=9)
    assert render_tree([EDGE, SHOP, again]).count("edge call") == 2


def test_no_spans_are_a_tree_too():
    assert render_tree([]) == "(no spans)"


def test_one_trace_passes():
    assert_one_trace([STOCK, SHOP, EDGE])
    assert roots([SHOP, EDGE]) == [EDGE]
    assert children([BILL, STOCK, EDGE], SHOP) == [STOCK, BILL]


@pytest.mark.parametrize(
    ("spans", "reason"),
    [
        ([], "0 traces, wanted one"),
        ([EDGE, OTHER], "2 traces, wanted one"),
        ([EDGE, ORPHAN], r"lost SERVER 'lost call' \(5{16}\) has a parent that is missing"),
        ([EDGE, span("again", "SERVER", "6")], "2 roots, wanted one"),
    ],
)
def test_what_is_not_one_trace_is_shown(spans, reason):
    with pytest.raises(AssertionError, match=reason) as failed:
        assert_one_trace(spans)
    assert str(failed.value).endswith(render_tree(spans))


def test_a_child_is_of_the_same_trace():
    assert_child_of(SHOP, EDGE)
    with pytest.raises(AssertionError, match=r"stock .* is not a child of edge"):
        assert_child_of(STOCK, EDGE)
    with pytest.raises(AssertionError, match="is not a child of"):
        assert_child_of(STOCK, OTHER)


def test_a_chain_is_returned_from_the_root_down():
    expected = [("edge", "SERVER"), ("shop", "SERVER"), ("stock", "CLIENT")]
    assert assert_chain([STOCK, EDGE, SHOP], expected) == [EDGE, SHOP, STOCK]
    with pytest.raises(AssertionError, match=r"the chain is .*'stock', 'CLIENT'.*, wanted \[\('edge', 'SERVER'\)\]"):
        assert_chain([STOCK, EDGE, SHOP], expected[:1])


@pytest.mark.parametrize(
    ("spans", "reason"),
    [
        ([STOCK, EDGE, SHOP, BILL], r"the chain is \[\('edge', 'SERVER'\), \('shop', 'SERVER'\)\], wanted"),
        (
            [EDGE, SHOP, STOCK, span("twig", "SERVER", "6", "3"), span("twig", "SERVER", "7", "3")],
            "is beside the chain",
        ),
        ([span("work", "INTERNAL", "1")], r"the chain is \[\], wanted"),
    ],
)
def test_a_chain_that_branches_or_is_none_is_shown(spans, reason):
    with pytest.raises(AssertionError, match=reason) as failed:
        assert_chain(spans, [("edge", "SERVER"), ("shop", "SERVER"), ("stock", "CLIENT")])
    assert str(failed.value).endswith(render_tree(spans))


def test_a_chain_passes_over_internal_spans():
    spans = [
        EDGE,
        span("shop", "INTERNAL", "6", "1"),
        span("shop", "INTERNAL", "7", "6"),
        span("stock", "CLIENT", "8", "7"),
        span("shop", "INTERNAL", "9", "1"),
    ]
    assert assert_chain(spans, [("edge", "SERVER"), ("stock", "CLIENT")]) == [EDGE, spans[3]]


def test_a_circle_of_spans_with_one_id_is_no_chain():
    again = replace(EDGE, parent_id=SHOP.span_id, start_ns=9)
    with pytest.raises(AssertionError, match="the chain is"):
        assert_chain([EDGE, SHOP, again], [("edge", "SERVER"), ("shop", "SERVER")])
    works = [span("work", "INTERNAL", "6", "7"), span("work", "INTERNAL", "7", "6")]
    with pytest.raises(AssertionError, match="is beside the chain"):
        assert_chain([EDGE, *works, span("stock", "CLIENT", "8", "7")], [("edge", "SERVER")])


def test_spans_are_found_by_what_is_given():
    spans = [EDGE, SHOP, STOCK]
    assert find_spans(spans) == spans
    assert find_spans(spans, kind="SERVER") == [EDGE, SHOP]
    assert find_span(spans, service="shop", name="shop call") == SHOP
    with pytest.raises(AssertionError, match=r"2 spans match service=None kind='SERVER' name=None, wanted one:\ntrace"):
        find_span(spans, kind="SERVER")


def test_a_bare_sdk_span_must_have_a_context():
    with pytest.raises(ValueError, match="'bare' has no span context"):
        from_sdk(ReadableSpan("bare"))
