"""What pyproject.toml promises of versions, and what the oldest that it names ask for.

`.ci/versions` runs a sample of the tests with the lowest version of each, and with the newest.
"""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from types import MappingProxyType

from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.trace import NonRecordingSpan, SpanContext, TraceFlags

from meshmw._lifecycle.operation import LazyAttributes
from meshmw._otel import PassingTracer, passing_on

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = {name: asked for name, asked in PROJECT["optional-dependencies"].items() if name not in ("dev", "docs")}
# What users install; the exact versions of `dev` and `docs` are for those who work on meshmw.
PROMISED = [*PROJECT["dependencies"], *(each for asked in EXTRAS.values() for each in asked)]
BOUNDS = dict(each.partition(";")[0].strip().split(">=") for each in PROMISED if not each.startswith("meshmw["))


def test_no_dependency_has_an_upper_bound():
    """So that an installation takes the newest releases, and a service may."""
    assert [each for each in PROMISED if re.search(r"<|==|~=|!=|===", each.partition(";")[0])] == []
    assert PROJECT["requires-python"] == ">=3.11"


def test_each_bound_is_the_same_wherever_it_is_named():
    for each in PROMISED:
        name, _, version = each.partition(";")[0].strip().partition(">=")
        assert name.startswith("meshmw[") or BOUNDS[name] == version


def test_the_page_says_each_bound_and_which_tests_of_the_job_meet_it():
    page = (ROOT / "docs" / "compatibility.md").read_text(encoding="utf-8")
    table = page.partition("<!-- bounds -->")[2].partition("<!-- /bounds -->")[0]
    job = (ROOT / ".ci" / "versions").read_text(encoding="utf-8")
    sample = set(re.findall(r"tests/[\w/]+\.py", job.partition("sample=(")[2].partition("\n)")[0]))
    said, met = {}, set()
    for names, version, *rest in (
        line.strip("| ").split(" | ") for line in table.splitlines() if line.startswith("| `")
    ):
        said |= dict.fromkeys(re.findall(r"`([\w-]+)`", names), version)
        tests = set(re.findall(r"`(tests/[\w/]+\.py)`", rest[-1]))
        assert tests, f"no test meets {names}"
        met |= tests
    assert said == BOUNDS
    assert met <= sample
    assert all((ROOT / each).is_file() for each in sample)


def test_attributes_can_be_copied_as_the_sdk_does_up_to_1_40():
    """It copies what a sampler returns, through a proxy that passes the call on; and may add to the copy."""
    attributes = LazyAttributes(lambda: {"url.path": "/"})
    copied = MappingProxyType(attributes).copy()
    copied["more"] = 1
    assert (dict(attributes), copied) == ({"url.path": "/"}, {"url.path": "/", "more": 1})


def test_a_tracer_without_an_sdk_passes_its_parent_on_as_the_apis_does_since_1_40():
    parent = SpanContext(7, 8, True, TraceFlags(1))
    context = trace.set_span_in_context(NonRecordingSpan(parent))
    span = passing_on(trace.NoOpTracer()).start_span("s", context)
    assert (span.get_span_context(), span.is_recording()) == (parent, False)
    stand_in = passing_on(trace.ProxyTracer("t"))
    assert type(stand_in._noop_tracer) is PassingTracer, "the API's stand-in asks another tracer than `_noop_tracer`"
    own = TracerProvider(shutdown_on_exit=False).get_tracer("t")
    assert passing_on(own) is own
