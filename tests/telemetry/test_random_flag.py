"""The flag that says that a trace's id is random: W3C Trace Context Level 2, which older peers refuse."""

import pytest
from opentelemetry.trace import TraceFlags

# The SDK knows the flag since 1.42. Before that, its spans say nothing of their ids, and neither does what goes out.
RANDOM = "03" if hasattr(TraceFlags, "random_trace_id") else "01"

ROOT = """
    telemetry = configure(Settings(exporter="none"))
    with trace.get_tracer("t").start_as_current_span("root") as span:
        carrier = {}
        propagate.inject(carrier)
    print(carrier["traceparent"][-2:], span.get_span_context().trace_id > 0)
"""


@pytest.mark.parametrize(("setting", "flags"), [("", RANDOM), ("true", RANDOM), ("false", "01")])
def test_a_trace_that_begins_here_says_it_as_the_setting_wants(run_program, setting, flags):
    program = run_program(ROOT, MESHMW_RANDOM_FLAG=setting)
    assert program.stdout == f"{flags} True\n", program.stderr


def test_a_trace_that_comes_in_keeps_what_it_says(run_program):
    program = run_program(
        """
        configure(Settings(exporter="none", random_flag=False))
        for flags in ("01", "03"):
            context = propagate.extract({"traceparent": f"00-{7:032x}-{7:016x}-{flags}"})
            with trace.get_tracer("t").start_as_current_span("child", context):
                carrier = {}
                propagate.inject(carrier)
            print(carrier["traceparent"][-2:])
        """
    )
    assert program.stdout.split() == ["01", RANDOM], program.stderr


def test_on_another_providers_traces_it_has_no_effect_and_the_log_says_so(run_program):
    program = run_program(
        """
        from opentelemetry.sdk.trace import TracerProvider
        trace.set_tracer_provider(TracerProvider())
        configure(Settings(exporter="otlp", random_flag=False))
        """
    )
    assert "so these settings have no effect: random_flag;" in program.stderr
