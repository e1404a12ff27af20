"""The report: every value escaped, every orphan shown; in a real browser, at both widths, in light and dark."""

from __future__ import annotations

import json
import re
import sys
from dataclasses import replace
from html import unescape
from html.parser import HTMLParser
from importlib import resources

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshmw._tools import Finding
from meshmw._tools.verify import report
from meshmw._tools.verify.journey import Hop, Journey, JourneySpan, with_orphans
from meshmw._tools.verify.report import render_report, write_report
from meshmw.errors import MissingExtraError
from tests.programs import not_installed
from tests.tools.chromium import find_chromium, open_chromium

TRACE, OTHER = "4bf92f3577b34da6a3ce929d0e0e4736", "0af7651916cd43dd8448eb211c80319c"
PROBE = "00f067aa0ba902b7"
HOSTILE = "<script>alert(1)</script>\x1b[31m\u202e'\"&"


def span(trace_id, number, parent, service, start, end, **more):
    return JourneySpan(
        trace_id=trace_id,
        span_id=f"{number:016x}",
        parent_id=parent if isinstance(parent, str) else f"{parent:016x}",
        service=service,
        name=more.pop("name", "GET"),
        kind=more.pop("kind", "SERVER"),
        start_ns=start * 1_000_000,
        end_ns=end * 1_000_000,
        **more,
    )


def traceparent(trace_id, span_id):
    return f"00-{trace_id}-{span_id}-01"


SPANS = with_orphans(
    [
        span(TRACE, 1, PROBE, "edge", 0, 80, maker="proxy"),
        span(TRACE, 2, 1, "checkout", 4, 76, name="GET /api/checkout"),
        span(TRACE, 3, 2, "checkout", 10, 60, kind="CLIENT"),
        span(OTHER, 4, 9, "inventory", 20, 50, status="ERROR"),
        span(OTHER, 5, 4, "inventory", 25, 40, kind="CLIENT"),
    ],
    PROBE,
)
HOPS = (
    Hop(name="probe", kind="client", sent={"traceparent": traceparent(TRACE, PROBE)}, change="started", trace_id=TRACE),
    Hop(
        name="edge",
        kind="proxy",
        received={"traceparent": traceparent(TRACE, PROBE), "tracestate": None, "baggage": "a=1"},
        sent={"traceparent": traceparent(TRACE, "1" * 16), "tracestate": "", "baggage": "a=1"},
        change="rewritten",
        trace_id=TRACE,
    ),
    Hop(
        name="inventory",
        kind="app",
        received={"traceparent": "00-nothing"},
        change="restarted",
        trace_id=OTHER,
        lost=True,
        note="It began a trace of its own.",
    ),
)
FINDING = Finding("error", "proxy.removes-traceparent", "edge", "The proxy removes it.", "So it is lost.", "Keep it.")
BROKEN = Journey(
    title="GET http://shop/api/checkout",
    verdict="broken",
    summary="The trace is lost at inventory.",
    trace_id=TRACE,
    parent_id=PROBE,
    status_code=200,
    hops=HOPS,
    spans=SPANS,
    findings=(FINDING,),
    sources=("access log of edge: 2 lines",),
    links=(f"http://jaeger/trace/{TRACE}",),
)
NOTHING = Journey(title="GET http://shop/", verdict="unknown", summary="No log, no backend.")


def text_of(html):
    return re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", html.partition("<body>")[2].partition("<script")[0]))


def test_a_backend_that_shows_the_trace_is_linked():
    assert f'<a href="http://jaeger/trace/{TRACE}">' in render_report(BROKEN)


def test_the_fault_stands_first_and_the_lost_hop_says_so():
    text = text_of(render_report(BROKEN))
    order = [
        "The trace breaks",
        "The trace is lost at inventory.",
        "Keep it.",
        "journey",
        "lost here",
        "orphan: its parent",
    ]
    assert [text.index(part) for part in order] == sorted(text.index(part) for part in order)
    assert "answered 200" in text
    assert "It began a trace of its own." in text


def test_each_trace_has_one_letter_all_over_the_page():
    html = render_report(BROKEN)
    assert html.count(">trace A<") == 3  # two hops and the heading
    assert html.count(">trace B<") == 2


def test_absent_and_empty_are_told_apart_and_what_stays_is_said_once():
    text = text_of(render_report(BROKEN))
    assert "tracestate in no such header out empty" in text
    assert "baggage in and out a=1" in text
    assert "traceparent in 00-nothing" in text


def test_an_orphan_is_no_child_of_the_probe_and_a_root_is_no_orphan():
    html = render_report(BROKEN)
    assert html.count("orphan: its parent") == 1
    assert f"orphan: its parent {9:016x} is missing" in html


def test_nothing_at_all_is_a_report_too():
    text = text_of(render_report(NOTHING))
    for said in ("Nothing could be seen", "No log, no backend.", "No hop could be looked at.", "No span was found."):
        assert said in text


def test_the_journey_can_be_read_back_from_the_file(tmp_path):
    path = tmp_path / "new" / "report.html"
    hostile = replace(BROKEN, title="</script><!--", summary="a & b")
    write_report(hostile, path)
    data = re.search(r'<script type="application/json" id="data">(.*?)</script>', path.read_text("utf-8"), re.DOTALL)
    assert Journey.from_json(json.loads(data[1])) == hostile


@given(st.text(max_size=60) | st.just(HOSTILE))
def test_whatever_a_value_holds_it_is_text(text):
    hop = Hop(name=text, kind="app", received={"traceparent": text, "baggage": text}, note=text)
    spans = with_orphans([span(TRACE, 1, "f" * 16, text, 0, 1, name=text)])
    finding = Finding("warning", text, text, text, text, text)
    html = render_report(
        Journey(title=text, verdict="one", summary=text, hops=(hop,), spans=spans, findings=(finding,))
    )
    assert html.count("<script") == 1
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202e]", html)
    plain = render_report(Journey(title="x", verdict="one", summary="x", hops=(hop,), spans=spans, findings=(finding,)))
    assert len(re.findall(r"<[a-z]", html)) == len(re.findall(r"<[a-z]", plain))


def test_spans_that_are_each_others_parents_are_shown_once():
    circle = with_orphans([span(TRACE, 1, 2, "a", 0, 1), span(TRACE, 2, 1, "b", 0, 1), span(TRACE, 3, 3, "c", 0, 1)])
    html = render_report(replace(BROKEN, spans=circle))
    assert html.count('<th scope="row"') == 3


def test_a_trace_of_great_depth_is_shown():
    chain = with_orphans(
        [span(TRACE, number, number - 1, "a", number, 5_000) for number in range(1, 3_000)], f"{0:016x}"
    )
    assert render_report(replace(BROKEN, spans=chain)).count('<th scope="row"') == 2_999


def test_more_traces_than_letters():
    spans = with_orphans([span(f"{number:032x}", 1, "", "a", number, number) for number in range(1, 30)])
    html = render_report(replace(BROKEN, spans=spans, hops=()))
    assert ">trace Z<" in html
    assert ">trace #29<" in html


def test_without_jinja_the_error_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "jinja2", None)
    report._template.cache_clear()
    try:
        with pytest.raises(MissingExtraError, match=r"jinja2 is not installed: run  pip install 'meshmw\[cli\]'"):
            render_report(BROKEN)
    finally:
        report._template.cache_clear()


def test_the_templates_come_with_the_package():
    names = {found.name for found in resources.files("meshmw._tools").joinpath("templates").iterdir()}
    assert {"report.html.j2", "report.css"} <= names


@pytest.fixture(scope="module")
def page(request, tmp_path_factory):
    program = find_chromium()
    if program is None:
        not_installed(request.config, "Chromium is not installed: run  apt-get install chromium")
    with open_chromium(program, tmp_path_factory.mktemp("chromium")) as opened:
        yield opened


@pytest.fixture
def broken(tmp_path):
    # Values as long as they get: nothing may push the page wider than the window.
    long = Hop(name="x" * 300, kind="proxy", received={"baggage": "k=" + "v" * 8000}, change="kept")
    path = tmp_path / "broken.html"
    write_report(replace(BROKEN, hops=(*HOPS, long), title="GET http://shop/" + "y" * 300), path)
    return path


@pytest.mark.parametrize("width", [360, 1440])
@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_in_a_browser_it_fits_and_can_be_read(page, broken, width, dark):
    page.open(broken, width=width, dark=dark)
    assert page.requests() == [broken.as_uri()]
    assert page.ask("document.documentElement.scrollWidth") <= width
    assert [event for event in page.events if event["method"] in ("Log.entryAdded", "Runtime.exceptionThrown")] == []
    assert page.ask(CONTRASTS) == []
    assert page.ask("getComputedStyle(document.body).backgroundColor") == (
        "rgb(20, 22, 27)" if dark else "rgb(251, 251, 253)"
    )


# Of every text: its colour against the nearest background that is not transparent (WCAG 2.1, 1.4.3: 4.5 to 1).
CONTRASTS = r"""
(() => {
  const light = part => { part /= 255; return part <= 0.03928 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4; };
  const parts = colour => colour.match(/[\d.]+/g).map(Number);
  const luminance = ([r, g, b]) => 0.2126 * light(r) + 0.7152 * light(g) + 0.0722 * light(b);
  const behind = element => {
    for (let at = element; at; at = at.parentElement) {
      const found = parts(getComputedStyle(at).backgroundColor);
      if (found.length === 3) return found;
    }
  };
  const bad = [];
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const element = walker.currentNode.parentElement;
    if (!walker.currentNode.data.trim() || element.closest("script")) continue;
    const [a, b] = [luminance(parts(getComputedStyle(element).color)), luminance(behind(element))];
    const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
    if (ratio < 4.5) bad.push([walker.currentNode.data.trim().slice(0, 40), ratio]);
  }
  return bad;
})()
"""


def test_one_key_hides_the_spans_of_proxies(page, broken):
    page.open(broken, width=1440)
    shown = (
        "[...document.querySelectorAll('tbody tr')].filter(row => row.offsetHeight).map(row => row.className.trim())"
    )
    assert page.ask(shown) == ["proxy", "app", "app", "app orphan error", "app"]
    # The keyboard alone: to the switch, and on.
    page.ask("document.getElementById('hide').focus()")
    for kind in ("keyDown", "keyUp"):
        page.call("Input.dispatchKeyEvent", type=kind, key=" ", code="Space", text=" ", windowsVirtualKeyCode=32)
    assert page.ask(shown) == ["app", "app", "app orphan error", "app"]


def test_a_screen_reader_finds_its_way(page, broken):
    page.open(broken, width=1440)
    headings = page.names("heading")
    assert headings[:2] == ["The trace breaks", "What to do"]
    assert "The headers' journey" in headings
    assert page.names("checkbox") == ["Hide the spans of proxies (1)"]
    assert page.names("rowheader")[0].startswith("edge GET")
    assert "Skip to the trace" in page.names("link")


def test_a_link_is_not_followed(tmp_path):
    mine, link = tmp_path / "mine", tmp_path / "report.html"
    mine.write_text("precious")
    link.symlink_to(mine)
    with pytest.raises(OSError, match="a link, which is not followed"):
        write_report(NOTHING, link)
    assert mine.read_text() == "precious"
    link.unlink()
    link.symlink_to(tmp_path / "nowhere")
    with pytest.raises(OSError, match="a link, which is not followed"):
        write_report(NOTHING, link)
    write_report(NOTHING, mine)
    write_report(NOTHING, mine)
    assert mine.read_text().startswith("<!doctype html>")


class Outline(HTMLParser):
    """Writes the lists of a page as brackets around the names in them."""

    def __init__(self) -> None:
        super().__init__()
        self.text = ""

    def handle_starttag(self, tag, attrs):
        self.text += {"ol": "(", "h3": " "}.get(tag, "")

    def handle_endtag(self, tag):
        self.text += {"ol": " )", "h3": ";"}.get(tag, "")

    def handle_data(self, data):
        self.text += data.strip()


def test_a_request_that_branches_is_drawn_as_a_tree():
    names = ["probe", "edge", "shop", "stock", "warehouse", "price", "tax", "discount"]
    parents = [None, 0, 1, 2, 3, 2, 5, 5]
    hops = [Hop(name=name, kind="app", parent=parent) for name, parent in zip(names, parents, strict=True)]
    outline = Outline()
    outline.feed(
        render_report(replace(BROKEN, hops=tuple(hops))).partition('<h2 id="journey">')[2].partition("</section")[0]
    )
    drawn = [word for word in re.findall(r"\(|\)|[a-z]+(?=;)", outline.text) if word in ("(", ")", *names)]
    assert " ".join(drawn) == "( probe edge shop ( stock warehouse ) ( price ( tax ) ( discount ) ) )"


def test_hops_of_which_nobody_says_who_called_them_follow_one_another():
    odd = (replace(HOPS[1], parent=7), replace(HOPS[2], parent=2), replace(HOPS[2], parent=-1))
    html = render_report(replace(BROKEN, hops=(HOPS[0], *odd)))
    assert html.count("<details") == 4
    assert 'class="parts"' not in html


def test_each_hop_is_one_line_and_what_was_lost_is_open():
    html = render_report(BROKEN)
    assert html.count("<details>") == 2
    assert html.count("<details open>") == 1
    assert html.index("<details open>") < html.index("lost here")


def test_where_nothing_is_broken_the_spans_come_first():
    fine = render_report(replace(BROKEN, verdict="one"))
    assert fine.index('id="trace"') < fine.index('id="journey"')
    for journey in (BROKEN, NOTHING, replace(BROKEN, verdict="one", spans=())):
        html = render_report(journey)
        assert html.index('id="journey"') < html.index('id="trace"')


def test_the_requests_own_trace_comes_first_and_roots_are_counted():
    strays = with_orphans([span(OTHER, number, "", "stock", number, number + 1) for number in range(1, 4)])
    text = unescape(text_of(render_report(replace(BROKEN, spans=strays, hops=()))))
    assert f"trace A {TRACE} the request's own, 0 spans No span of it came. trace B {OTHER} 3 spans" in text
    assert "Spans 3 Traces 2 Roots 3 Orphans 0 Hops 0" in text


NAMES = """
(() => {
  const broken = [], range = document.createRange();
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const node = walker.currentNode, element = node.parentElement;
    if (!element.closest("h1, h3, .name, .what, .badge, .tag, p")) continue;
    for (const word of node.data.matchAll(/[A-Za-z]+/g)) {
      range.setStart(node, word.index);
      range.setEnd(node, word.index + word[0].length);
      if (range.getClientRects().length > 1) broken.push(word[0]);
    }
  }
  return broken;
})()
"""


def test_no_name_is_broken_within_a_word_at_360_pixels(page, tmp_path):
    deep = [
        span(
            TRACE,
            number,
            number - 1 if number > 1 else "",
            "checkout-service",
            number,
            30,
            name="GET /api/recommendations",
        )
        for number in range(1, 20)
    ]
    hops = tuple(
        Hop(name=f"recommendations-service outbound {number}", kind="proxy", change="rewritten", parent=parent)
        for number, parent in enumerate([None, 0, 0, 2, 2, 4, 4])
    )
    path = tmp_path / "names.html"
    write_report(replace(BROKEN, spans=with_orphans(deep), hops=hops), path)
    page.open(path, width=360)
    assert page.ask(NAMES) == []
    assert page.ask("document.documentElement.scrollWidth") <= 360
