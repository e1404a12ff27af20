"""configure(): what it sets, what it keeps, and what it says. Each in a process of its own."""

from __future__ import annotations

import subprocess
import sys
import textwrap

import pytest

from tests.programs import clean_environment

LOGGING = "import logging; logging.basicConfig(level=logging.INFO, format='%(levelname)s %(name)s %(message)s')\n"
DEFINITIONS = """
from opentelemetry import propagate, trace
from meshmw._telemetry.configure import configure
from meshmw.settings import Settings

def untouched():
    from meshmw import _runtime as runtime
    return (
        type(trace.get_tracer_provider()).__name__ == "ProxyTracerProvider"
        and type(propagate.get_global_textmap()).__name__ == "CompositePropagator"
        and runtime._installed is None
    )
"""


def run(code, *, prelude=DEFINITIONS, **variables):
    """Run a program with no telemetry variables but these, and return it ended."""
    kept = clean_environment()
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", LOGGING + prelude + textwrap.dedent(code)],
        env={**kept, **variables},
        capture_output=True,
        text=True,
        timeout=60,
    )


def lines(program):
    return program.stderr.splitlines()


def refused():
    """Return an address at which nobody listens."""
    return "127.0.0.1:9"  # discard: privileged, and closed on every machine that runs tests


class TestRefusal:
    def test_bad_settings_set_nothing(self):
        program = run(
            """
            from meshmw.errors import SettingsError
            try:
                configure()
            except SettingsError as error:
                print(len(error.faults), untouched())
            """,
            MESHMW_EXPORTER="zipkin",
            MESHMW_SAMPLING_RATIO="2",
        )
        assert program.stdout == "2 True\n"

    @pytest.mark.parametrize("code", ["configure()", "import meshmw.auto"])
    def test_bad_settings_end_the_program_with_every_fault_as_its_last_words(self, code):
        program = run(code, MESHMW_EXPORTER="zipkin", MESHMW_SAMPLING_RATIO="2")
        assert program.returncode == 1
        assert lines(program)[-3:] == [
            "meshmw.errors.SettingsError: meshmw cannot start with these settings:",
            "  - MESHMW_EXPORTER holds 'zipkin'; it takes otlp, otlp-http, console or none",
            "  - MESHMW_SAMPLING_RATIO holds '2'; it takes a number from 0 to 1",
        ]

    @pytest.mark.parametrize(("exporter", "what"), [("otlp", "gRPC"), ("otlp-http", "HTTP")])
    def test_a_missing_exporter_names_the_extra_and_sets_nothing(self, exporter, what):
        program = run(
            """
            import sys
            class Blocker:
                def find_spec(self, name, path=None, target=None):
                    if name.startswith("opentelemetry.exporter"):
                        raise ModuleNotFoundError(name)
            sys.meta_path.insert(0, Blocker())
            try:
                configure()
            except ModuleNotFoundError as error:
                print(type(error).__name__, error, untouched())
            """,
            MESHMW_EXPORTER=exporter,
        )
        assert program.stdout == (
            f"MissingExtraError the OTLP exporter for {what} is not installed: run  pip install 'meshmw[otlp]'"
            "  or set MESHMW_EXPORTER=none True\n"
        )

    def test_without_the_package_that_is_to_make_the_spans_nothing_is_set(self):
        program = run(
            """
            import sys
            sys.modules["opentelemetry.instrumentation.asgi"] = None
            try:
                configure(Settings(server_spans="contrib", exporter="none"))
            except ModuleNotFoundError as error:
                print(error, untouched())
            """
        )
        assert program.stdout == (
            "opentelemetry-instrumentation-asgi is not installed: run  pip install 'meshmw[contrib]' True\n"
        ), program.stderr

    def test_a_refused_variable_of_opentelemetrys_own_sets_nothing(self):
        program = run(
            """
            try:
                configure()
            except ValueError as error:
                print(type(error).__name__, untouched())
            """,
            MESHMW_EXPORTER="otlp-http",
            OTEL_PYTHON_EXPORTER_OTLP_HTTP_CREDENTIAL_PROVIDER="absent",
        )
        assert program.stdout == "SettingsError True\n"


class TestDeadCollector:
    @pytest.mark.parametrize("exporter", ["otlp", "otlp-http"])
    def test_spans_are_unaffected_and_it_is_said_once(self, exporter):
        program = run(
            f"""
            telemetry = configure(Settings(service_name="s", exporter="{exporter}", endpoint="{refused()}"))
            for number in range(20):
                with trace.get_tracer("t").start_as_current_span("served") as span:
                    assert span.is_recording()
            telemetry.shutdown()
            with trace.get_tracer("t").start_as_current_span("served after the end"):
                print("served")
            """
        )
        assert (program.returncode, program.stdout) == (0, "served\n")
        ready, warning, *late = lines(program)
        assert ready.startswith("INFO meshmw meshmw ready: ")
        assert warning.startswith(f"WARNING meshmw spans do not reach http://{refused()}")
        assert "requests are unaffected" in warning
        assert [line for line in late if "Shutdown called, ignoring" not in line] == []

    def test_the_end_of_the_process_flushes(self):
        program = run(
            f"""
            configure(Settings(service_name="s", endpoint="{refused()}"))
            trace.get_tracer("t").start_span("s").end()
            """
        )
        assert program.returncode == 0
        assert [line.split()[0] for line in lines(program)] == ["INFO", "WARNING"]


class TestWhatIsSet:
    def test_the_propagator_the_provider_and_the_runtime_are_set_and_said_in_one_line(self):
        program = run(
            """
            from meshmw import _runtime as runtime
            telemetry = configure()
            assert propagate.get_global_textmap() is telemetry.propagator is runtime.current().propagator
            assert trace.get_tracer_provider() is telemetry.tracer_provider
            assert telemetry.tracer_provider.resource.attributes["service.version"] == "7"
            assert telemetry.propagator.formats == ("b3", "tracecontext")
            assert runtime.current().exclude.match("/live/now")
            """,
            MESHMW_SERVICE_NAME="check\u00f6ut",
            OTEL_RESOURCE_ATTRIBUTES="service.version=7",
            MESHMW_PROPAGATORS="b3,tracecontext",
            MESHMW_EXPORTER="otlp-http",
            MESHMW_ENDPOINT="127.0.0.1:9/in?key=secret",
            MESHMW_EXCLUDE="/live",
        )
        assert program.returncode == 0, program.stderr
        (line,) = lines(program)
        assert line == (
            r"INFO meshmw meshmw ready: propagator=MeshPropagator formats=b3,tracecontext service=check\xf6ut "
            "exporter=otlp-http endpoint=http://127.0.0.1:9/in provider=own"
        )

    def test_import_configures(self):
        program = run("import meshmw.auto; print(meshmw.auto.telemetry is configure())", MESHMW_EXPORTER="none")
        assert program.stdout == "True\n"
        assert "exporter=none endpoint=- provider=own" in program.stderr

    def test_the_console_shows_spans(self):
        program = run(
            """
            with configure():
                trace.get_tracer("t").start_span("seen").end()
            """,
            MESHMW_EXPORTER="console",
        )
        assert "  seen " in program.stdout

    def test_an_existing_provider_is_kept(self):
        program = run(
            """
            from opentelemetry.sdk.resources import Resource
            from opentelemetry.sdk.trace import TracerProvider
            mine = TracerProvider(resource=Resource({"service.name": "mine"}))
            trace.set_tracer_provider(mine)
            telemetry = configure(Settings(service_name="other"))
            print(trace.get_tracer_provider() is telemetry.tracer_provider is mine, telemetry.force_flush())
            """
        )
        assert program.stdout == "True True\n"
        warning, line = lines(program)
        assert warning == (
            "WARNING meshmw a tracer provider was there before configure(), so these settings have no effect: "
            "service_name; call configure() first, or set the same on that provider"
        )
        assert line == (
            "INFO meshmw meshmw ready: propagator=MeshPropagator formats=tracecontext,baggage service=mine "
            "exporter=- endpoint=- provider=existing"
        )

    def test_a_disabled_sdk_sets_the_propagator_alone(self):
        program = run(
            """
            telemetry = configure()
            assert propagate.get_global_textmap() is telemetry.propagator
            assert not trace.get_tracer("t").start_span("s").is_recording()
            print(type(trace.get_tracer_provider()).__name__, telemetry.force_flush())
            """,
            OTEL_SDK_DISABLED="True",
        )
        assert program.stdout == "ProxyTracerProvider True\n"
        assert "service=unknown_service exporter=- endpoint=- provider=disabled" in program.stderr

    @pytest.mark.parametrize(("value", "warnings"), [("false", 0), ("1", 1), ("yes", 1)])
    def test_whatever_else_the_variable_holds_does_not_disable_it(self, value, warnings):
        program = run(
            """
            configure()
            print(trace.get_tracer("t").start_span("s").is_recording())
            """,
            OTEL_SDK_DISABLED=value,
            MESHMW_EXPORTER="none",
        )
        assert program.stdout == "True\n", program.stderr
        assert [line.partition(",")[0] for line in lines(program) if "WARNING" in line] == (
            [f"WARNING meshmw OTEL_SDK_DISABLED holds '{value}'"] * warnings
        )


class TestSecondCall:
    def test_the_same_handle_comes_back_and_other_settings_are_warned_of(self):
        program = run(
            """
            first = configure(Settings(exporter="none"))
            print(configure() is first, configure(Settings(exporter="none")) is first)
            print(configure(Settings(exporter="console")) is first, first.settings.exporter)
            """
        )
        assert program.stdout == "True True\nTrue none\n"
        assert [line for line in lines(program) if "INFO" not in line] == [
            "WARNING meshmw meshmw is configured already; the settings of the first call stay in force"
        ]
        assert len(lines(program)) == 2

    def test_a_refused_first_call_leaves_room_for_a_good_one(self):
        program = run(
            """
            try:
                configure()
            except ValueError:
                print(configure(Settings(exporter="none")).settings.exporter)
            """,
            MESHMW_EXPORTER="zipkin",
        )
        assert program.stdout == "none\n"

    def test_after_the_end_it_is_said_that_nothing_is_recorded(self):
        program = run(
            """
            first = configure(Settings(exporter="none"))
            first.shutdown()
            print(configure() is first)
            """
        )
        assert program.stdout == "True\n"
        assert lines(program)[1:] == [
            (
                "WARNING meshmw meshmw was shut down; OpenTelemetry sets a provider once in a process, "
                "so nothing is recorded"
            )
        ]


class TestStandardPropagators:
    @pytest.mark.parametrize(
        ("value", "formats", "warnings"),
        [("b3,tracecontext", "b3,tracecontext", 0), ("xray,b3", "b3", 1), ("none", "none", 0)],
    )
    def test_no_other_package_is_needed_for_a_format(self, value, formats, warnings):
        code = "from meshmw._telemetry.configure import configure; configure(); from opentelemetry import propagate"
        program = run(code, prelude="", OTEL_PROPAGATORS=value, MESHMW_EXPORTER="none")
        assert program.returncode == 0, program.stderr
        assert f"formats={formats} " in program.stderr
        assert sum(line.startswith("WARNING") for line in lines(program)) == warnings

    def test_our_own_name_needs_no_code(self):
        code = "from opentelemetry import propagate; print(propagate.get_global_textmap().__class__.__name__)"
        program = run(code, prelude="", OTEL_PROPAGATORS="meshmw")
        assert (program.returncode, program.stdout) == (0, "CompositePropagator\n"), program.stderr
