"""What adapters use before and after `configure()`. Each case is a process of its own, for it sets globals."""

import os
import subprocess
import sys

import pytest

WARNING = "meshmw serves before it was configured"


def run(*lines, **environment):
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", "\n".join(lines)],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )


def test_serving_before_configure_is_said_once_with_the_remedy():
    done = run("from meshmw import _runtime", "a = _runtime.current()", "assert _runtime.current() is a")
    assert done.returncode == 0, done.stderr
    assert done.stderr.count(f"[WARNING] {WARNING}") == 1
    assert "CompositePropagator" in done.stderr
    assert "ProxyTracerProvider" in done.stderr
    assert "import meshmw.auto" in done.stderr


def test_a_propagator_that_was_set_globally_is_a_configuration_too():
    done = run(
        "from opentelemetry import propagate",
        "from meshmw import MeshPropagator, _runtime",
        "ours = MeshPropagator(['b3'])",
        "propagate.set_global_textmap(ours)",
        "assert _runtime.current().propagator is ours",
        "assert _runtime.is_global(ours)",
    )
    assert done.returncode == 0, done.stderr
    assert WARNING not in done.stderr


def test_a_global_propagator_that_is_no_composite_is_looked_at_without_harm():
    done = run(
        "from opentelemetry import propagate",
        "from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator as Theirs",
        "from meshmw import MeshPropagator, _runtime",
        "theirs = Theirs(); theirs._propagators = 7",
        "propagate.set_global_textmap(theirs)",
        "assert not _runtime.is_global(MeshPropagator())",
        "_runtime.current()",
    )
    assert done.returncode == 0, done.stderr
    assert WARNING in done.stderr


@pytest.mark.parametrize("first", ["adapter", "configure"])
def test_the_order_of_construction_does_not_matter(first):
    adapter = "app = wsgi.TraceContextMiddleware(lambda environ, start: [b''])"
    configure = "meshmw.configure(meshmw.Settings(exporter='none', propagators=('b3',)))"
    done = run(
        "import meshmw",
        "from meshmw import _runtime, wsgi",
        *([adapter, configure] if first == "adapter" else [configure, adapter]),
        "environ = {'REQUEST_METHOD': 'GET', 'HTTP_B3': 'junk'}",
        "app(environ, None).close()",
        "assert 'HTTP_B3' not in environ",
        "assert _runtime.current().propagator.rejections.counts",
    )
    assert done.returncode == 0, done.stderr
    assert WARNING not in done.stderr


def test_refusals_and_acceptances_are_counted_as_a_metric():
    done = run(
        "from opentelemetry import metrics",
        "from opentelemetry.sdk.metrics import MeterProvider",
        "from opentelemetry.sdk.metrics.export import InMemoryMetricReader",
        "from meshmw import MeshPropagator",
        "reader = InMemoryMetricReader()",
        "propagator = MeshPropagator()",
        "metrics.set_meter_provider(MeterProvider([reader]))",
        "for text in ('junk', 'junk', '00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01'):",
        "    propagator.extract({'traceparent': text, 'baggage': 'a=1'})",
        "(metric,) = reader.get_metrics_data().resource_metrics[0].scope_metrics[0].metrics",
        "found = {tuple(sorted(point.attributes.items())): point.value for point in metric.data.data_points}",
        "taken = {(('header', name), ('outcome', 'accepted')): n for name, n in (('traceparent', 1), ('baggage', 3))}",
        "refused = {(('header', 'traceparent'), ('outcome', 'refused'), ('reason', 'hex')): 2}",
        "assert found == taken | refused, found",
        "assert metric.name == 'meshmw.context.extractions'",
    )
    assert done.returncode == 0, done.stderr
