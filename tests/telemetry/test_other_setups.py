"""configure() beside what others set up: nothing, a file, a provider, `opentelemetry-instrument`. Each a process."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

TRACEPARENT = f"00-{'1' * 32}-{'2' * 16}-01"
INJECTED = f"""
from meshmw import extract, inject
from opentelemetry.context import attach
def injected(traceparent="{TRACEPARENT}"):
    attach(extract({{"traceparent": traceparent}}))
    headers = {{}}
    with trace.get_tracer("t").start_as_current_span("s"):
        inject(headers)
    return headers.get("traceparent", "nothing")
"""


@pytest.fixture
def config_file(tmp_path):
    def write(text):
        path = tmp_path / "otel.yaml"
        path.write_text(text)
        return str(path)

    return write


FILE = """
file_format: "1.0"
resource:
  attributes:
    - {name: service.name, value: of-the-file}
propagator:
  composite: [{tracecontext: {}}]
tracer_provider:
  processors:
    - simple: {exporter: {console: {}}}
"""


class TestDisabled:
    def test_what_came_in_goes_out_again_and_nothing_is_recorded_or_measured(self, run_program):
        program = run_program(
            INJECTED
            + """
configure(Settings(metrics="prometheus"))
print(injected())
assert type(metrics.get_meter_provider()).__name__ == "_ProxyMeterProvider"
assert type(trace.get_tracer_provider()).__name__ == "ProxyTracerProvider"
""",
            OTEL_SDK_DISABLED="true",
            OTEL_CONFIG_FILE="/nowhere",
        )
        assert program.stdout == f"{TRACEPARENT}\n", program.stderr
        assert "provider=disabled" in program.stderr

    def test_a_provider_that_was_there_hears_of_the_standard_variable_by_itself(self, run_program):
        program = run_program(
            INJECTED
            + """
from opentelemetry.sdk.trace import TracerProvider
trace.set_tracer_provider(TracerProvider())
configure()
print(injected())
""",
            OTEL_SDK_DISABLED="true",
        )
        assert program.stdout == f"{TRACEPARENT}\n"
        assert "WARNING" not in program.stderr


class TestKnownMethods:
    @pytest.mark.parametrize(
        ("variable", "names"),
        [
            (None, "GET HTTP"),
            ("", "GET HTTP"),
            (" PROPFIND , MKCOL", "HTTP PROPFIND"),
            ("GET,PROPFIND", "GET PROPFIND"),
            ("get,propfind", "HTTP HTTP"),
        ],
    )
    def test_a_list_takes_the_place_of_the_standard_ones(self, run_program, variable, names):
        """As the conventions ask: a list that is comma-separated and case-sensitive, read once."""
        variables = {} if variable is None else {"OTEL_INSTRUMENTATION_HTTP_KNOWN_METHODS": variable}
        program = run_program(
            """
import os
from meshmw._lifecycle.http_conventions import span_name
assert (span_name("GET"), span_name("PROPFIND")) == ("GET", "HTTP")
configure(Settings(exporter="none"))
os.environ["OTEL_INSTRUMENTATION_HTTP_KNOWN_METHODS"] = "OTHER"
configure()
print(span_name("GET"), span_name("PROPFIND"))
""",
            **variables,
        )
        assert program.stdout == f"{names}\n", program.stderr
        assert "WARNING" not in program.stderr


class TestConfigFile:
    def test_the_file_makes_the_provider_and_the_propagator_stays_strict(self, run_program, config_file):
        program = run_program(
            INJECTED
            + """
telemetry = configure(Settings(service_name="other", exporter="none"))
print(telemetry.tracer_provider.resource.attributes["service.name"], type(propagate.get_global_textmap()).__name__)
print(injected("00-malformed") != "nothing")
telemetry.shutdown()
""",
            OTEL_CONFIG_FILE=config_file(FILE),
        )
        assert program.stdout.startswith("of-the-file MeshPropagator\n"), program.stderr
        assert program.stdout.endswith("True\n")
        assert '"name": "s"' in program.stdout
        assert (
            "OTEL_CONFIG_FILE makes the tracer provider, so these settings have no effect: service_name, exporter; "
            "set the same in that file"
        ) in program.stderr
        assert "provider=file" in program.stderr

    @pytest.mark.parametrize("text", ["nonsense: [", 'file_format: "99"', ""])
    def test_a_file_that_cannot_be_used_ends_the_program_and_names_it(self, text, run_program, config_file):
        program = run_program("configure()", OTEL_CONFIG_FILE=config_file(text))
        assert program.returncode == 1
        assert "  - OTEL_CONFIG_FILE holds '/" in program.stderr.splitlines()[-1]

    def test_without_the_package_that_reads_it_the_package_is_named(self, run_program):
        program = run_program(
            """
            import sys
            sys.modules["opentelemetry.configuration"] = None
            try:
                configure()
            except ValueError as error:
                print(*error.faults, type(trace.get_tracer_provider()).__name__)
            """,
            OTEL_CONFIG_FILE="otel.yaml",
        )
        assert program.stdout == (
            "OTEL_CONFIG_FILE is set and nothing reads it: run  pip install opentelemetry-configuration "
            "ProxyTracerProvider\n"
        )

    @pytest.mark.parametrize(
        "broken",
        [
            "sys.modules['opentelemetry.configuration'] = types.ModuleType('another release')",
            "sys.modules['opentelemetry.sdk.trace.sampling'] = None; sys.modules.pop('opentelemetry.configuration', 0)",
            "import opentelemetry.configuration as c; c.load_config_file = lambda path: path.no_such_name",
        ],
    )
    def test_a_package_that_does_not_fit_is_neither_called_absent_nor_the_file_bad(
        self, run_program, config_file, broken
    ):
        program = run_program(
            f"""
            import sys, types
            {broken}
            try:
                configure()
            except Exception as error:
                print(type(error).__name__, error)
            """,
            OTEL_CONFIG_FILE=config_file(FILE),
        )
        assert program.stdout.startswith(
            "IncompatibleError OpenTelemetry's SDK cannot be set up, and no setting is at fault: "
        ), program
        assert "OTEL_CONFIG_FILE" not in program.stdout


EXISTING = """
from opentelemetry import baggage
from opentelemetry.sdk.trace import TracerProvider
trace.set_tracer_provider(TracerProvider())
"""


class TestExistingProvider:
    def test_what_can_be_added_is_and_what_cannot_be_had_is_said_once(self, run_program):
        program = run_program(
            EXISTING
            + """
settings = Settings(sampling_ratio=0.1, sampling_owner="parent", batching="high", baggage_attributes=["tenant"],
                    metrics="prometheus")
configure(settings)
span = trace.get_tracer("t").start_span("s", baggage.set_baggage("tenant", "north"))
print(span.attributes["tenant"], type(metrics.get_meter_provider()).__name__)
"""
        )
        assert program.stdout == "north MeterProvider\n", program.stderr
        assert [line for line in program.stderr.splitlines() if "WARNING" in line] == [
            (
                "WARNING meshmw a tracer provider was there before configure(), so these settings have no effect: "
                "sampling_ratio, batching; call configure() first, or set the same on that provider"
            ),
        ]

    def test_standard_variables_are_not_warned_of(self, run_program):
        program = run_program(
            EXISTING + "configure()", OTEL_SERVICE_NAME="s", OTEL_TRACES_EXPORTER="none", OTEL_BSP_MAX_QUEUE_SIZE="1024"
        )
        assert "WARNING" not in program.stderr

    def test_a_provider_that_takes_no_processor_is_named_too(self, run_program):
        program = run_program(
            """
            trace.set_tracer_provider(trace.NoOpTracerProvider())
            configure(Settings(baggage_attributes=["tenant"]))
            """
        )
        assert "no effect: baggage_attributes;" in program.stderr


class TestZeroCode:
    """`opentelemetry-instrument` sets everything up before the program begins."""

    VARIABLES = {
        "OTEL_PROPAGATORS": "meshmw",
        "OTEL_EXPERIMENTAL_RESOURCE_DETECTORS": "meshmw_k8s",
        "OTEL_TRACES_EXPORTER": "console",
        "OTEL_METRICS_EXPORTER": "none",
        "OTEL_LOGS_EXPORTER": "none",
        "OTEL_SERVICE_NAME": "told",
        "K8S_POD_NAME": "pod-1",
        "OTEL_PYTHON_DISABLED_INSTRUMENTATIONS": "*",
    }

    @pytest.fixture
    def instrumented(self, run_program):
        command = Path(sys.executable).with_name("opentelemetry-instrument")

        def run(code, **variables):
            # Instrumentations of packages that are installed beside ours may warn; that is theirs. All of them take
            # seconds to load.
            variables = {**self.VARIABLES, "PYTHONWARNINGS": "ignore", **variables}
            return run_program(INJECTED + code, command=[str(command)], strict=False, **variables)

        return run

    def test_without_a_line_of_code_headers_are_read_strictly_and_the_pod_is_told(self, instrumented):
        program = instrumented(
            """
resource = trace.get_tracer_provider().resource.attributes
print(resource["service.name"], resource["k8s.pod.name"])
print(injected("00-" + "A" * 32 + "-" + "2" * 16 + "-01")[3:35] == "a" * 32)
print(injected()[3:35] == "1" * 32)
"""
        )
        assert program.stdout.startswith("told pod-1\nFalse\nTrue\n"), program.stderr
        assert '"name": "s"' in program.stdout
        assert "traceparent refused (case)" in program.stderr

    def test_configure_joins_without_a_warning_and_makes_it_the_only_propagator(self, instrumented):
        program = instrumented(
            "configure(); print(type(propagate.get_global_textmap()).__name__)",
            OTEL_PYTHON_DISABLED_INSTRUMENTATIONS="",
        )
        assert program.stdout.startswith("MeshPropagator\n"), program.stderr
        assert "provider=existing" in program.stderr
        assert "WARNING meshmw" not in program.stderr

    def test_a_file_is_applied_once(self, instrumented, config_file):
        program = instrumented("configure(); print(injected())", OTEL_CONFIG_FILE=config_file(FILE))
        assert program.stdout.count('"name": "s"') == 1, program.stderr
        assert "provider=existing" in program.stderr
