"""The variables of OpenTelemetry's specification: whatever they hold, the application starts, and one line says why.

https://opentelemetry.io/docs/specs/otel/configuration/sdk-environment-variables/
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
import subprocess
import sys
from dataclasses import fields

import pytest

from meshmw._telemetry.provider import build_meter_provider, build_provider
from meshmw._telemetry.resource import build_resource
from meshmw.errors import IncompatibleError, IncompatibleExporterError, MissingExtraError, SettingsError
from meshmw.settings import Settings, count_in, named_in, readable
from tests.programs import clean_environment

COUNTS = [f"OTEL_{each}_COUNT_LIMIT" for each in ("ATTRIBUTE", "EVENT_ATTRIBUTE", "LINK_ATTRIBUTE")] + [
    f"OTEL_SPAN_{each}_COUNT_LIMIT" for each in ("ATTRIBUTE", "EVENT", "LINK")
]
NUMBERS = [
    *COUNTS,
    "OTEL_ATTRIBUTE_VALUE_LENGTH_LIMIT",
    "OTEL_SPAN_ATTRIBUTE_VALUE_LENGTH_LIMIT",
    "OTEL_BSP_SCHEDULE_DELAY",
    "OTEL_BSP_EXPORT_TIMEOUT",
    "OTEL_BSP_MAX_QUEUE_SIZE",
    "OTEL_BSP_MAX_EXPORT_BATCH_SIZE",
    "OTEL_METRIC_EXPORT_INTERVAL",
    "OTEL_METRIC_EXPORT_TIMEOUT",
]
WORDS = [
    "OTEL_SDK_DISABLED",
    "OTEL_PROPAGATORS",
    "OTEL_TRACES_SAMPLER",
    "OTEL_TRACES_EXPORTER",
    "OTEL_METRICS_EXEMPLAR_FILTER",
    "OTEL_EXPORTER_OTLP_PROTOCOL",
    "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL",
    "OTEL_EXPORTER_OTLP_METRICS_PROTOCOL",
    "OTEL_EXPORTER_OTLP_METRICS_TEMPORALITY_PREFERENCE",
    "OTEL_EXPORTER_OTLP_METRICS_DEFAULT_HISTOGRAM_AGGREGATION",
    "OTEL_EXPERIMENTAL_RESOURCE_DETECTORS",
    "OTEL_PYTHON_SDK_INTERNAL_METRICS_ENABLED",
]
# Any text will do for these, or another process reads them: they are not warned of.
TEXTS = [
    "OTEL_SERVICE_NAME",
    "OTEL_ENTITIES",
    "OTEL_LOG_LEVEL",
    "OTEL_LOGS_EXPORTER",
    "OTEL_METRICS_EXPORTER",
    "OTEL_TRACES_SAMPLER_ARG",
    "OTEL_RESOURCE_ATTRIBUTES",
    "OTEL_BLRP_SCHEDULE_DELAY",
    "OTEL_BLRP_EXPORT_TIMEOUT",
    "OTEL_BLRP_MAX_QUEUE_SIZE",
    "OTEL_BLRP_MAX_EXPORT_BATCH_SIZE",
    "OTEL_LOGRECORD_ATTRIBUTE_COUNT_LIMIT",
    "OTEL_LOGRECORD_ATTRIBUTE_VALUE_LENGTH_LIMIT",
    "OTEL_EXPORTER_ZIPKIN_ENDPOINT",
    "OTEL_EXPORTER_ZIPKIN_TIMEOUT",
    "OTEL_EXPORTER_ZIPKIN_PROTOCOL",
    "OTEL_EXPORTER_PROMETHEUS_HOST",
    "OTEL_EXPORTER_PROMETHEUS_PORT",
    "OTEL_EXPERIMENTAL_CONFIG_FILE",
    "OTEL_SEMCONV_STABILITY_OPT_IN",
    "OTEL_EXPORTER_OTLP_ENDPOINT",
    "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT",
    "OTEL_EXPORTER_OTLP_METRICS_ENDPOINT",
    "OTEL_EXPORTER_OTLP_INSECURE",
    "OTEL_PYTHON_ID_GENERATOR",
]
# The API reads these while meshmw is imported.
AT_IMPORT = ["OTEL_PYTHON_TRACER_PROVIDER", "OTEL_PYTHON_METER_PROVIDER", "OTEL_PYTHON_LOGGER_PROVIDER"]
EMPTY = {"empty": "", "blank": " ", "whitespace": "\t\n ", "commas": " , ,"}
JUNK = {
    "word": "junk",
    "negative": "-1",
    "infinite": "inf",
    "no number": "nan",
    "beyond floats": "1e400",
    "huge": "9" * 30,
    "thousands of digits": "9" * 5_000,
    "fraction": "1.5",
    "line break": "a\x0ab",
    "no text": "a\udcff",
    "long": "x" * 5_000,
}
SETTINGS = {"endpoint": "127.0.0.1:9", "metrics": "otlp"}


@pytest.fixture(autouse=True)
def _clean(monkeypatch):
    for name in set(os.environ) - set(clean_environment()):
        monkeypatch.delenv(name)


def build(**settings):
    """Make what `configure()` makes, end it, and return the span limits and the sampler's description."""
    chosen = Settings(**(SETTINGS | settings))
    meters = build_meter_provider(chosen)
    provider, processor = build_provider(chosen)
    # Nobody listens at the collector's address; what is not sent by then is not looked at.
    with contextlib.suppress(Exception):
        meters.shutdown(timeout_millis=1)
    if processor is not None:
        processor.shutdown_seconds = 0
        processor.shutdown()
    return repr(provider._span_limits), provider.sampler.get_description(), dict(provider.resource.attributes)


def same(first, second):
    """Whether two processes' telemetry is the same but for the random name of each."""
    return first[:2] == second[:2] and first[2].keys() == second[2].keys()


@pytest.mark.parametrize("value", EMPTY.values(), ids=EMPTY)
@pytest.mark.parametrize("name", NUMBERS + WORDS + TEXTS)
def test_empty_is_unset_and_nothing_is_said(monkeypatch, caplog, name, value):
    expected = build()
    caplog.clear()
    monkeypatch.setenv(name, value)
    assert same(build(), expected)
    # A lone comma is what templates leave of a list; elsewhere it may be junk.
    assert caplog.messages == [] or value == EMPTY["commas"]
    assert os.environ.get(name, value) == value


@pytest.mark.parametrize("value", JUNK.values(), ids=JUNK)
@pytest.mark.parametrize("name", NUMBERS + WORDS)
def test_what_cannot_be_used_counts_as_unset_and_one_line_names_the_variable(monkeypatch, caplog, name, value):
    expected = build()
    caplog.clear()
    monkeypatch.setenv(name, value)
    if name == "OTEL_SDK_DISABLED":
        from meshmw.settings import sdk_disabled

        assert not sdk_disabled()
    assert same(build(), expected)
    said = [record for record in caplog.records if record.name.startswith(("meshmw", "opentelemetry"))]
    # Both providers read the resource's variables, each by itself here.
    assert {record.name for record in said} == {"meshmw"}, caplog.messages
    assert {record.levelno for record in said} == {logging.WARNING}
    for record in said:
        line = record.getMessage()
        assert line.startswith(f"{name} holds '{value[:1].encode('unicode_escape').decode()}")
        assert "ignored" in line
        assert len(line) < 400
        assert line.isascii()
        assert line.isprintable()


@pytest.mark.parametrize("value", JUNK.values(), ids=JUNK)
@pytest.mark.parametrize("name", TEXTS)
def test_nothing_that_stands_elsewhere_stops_it(monkeypatch, name, value):
    monkeypatch.setenv(name, value)
    build()


@pytest.mark.parametrize("exporter", ["otlp", "otlp-http", "console", "none"])
@pytest.mark.parametrize("value", ["", " ", "junk", "-1", "9" * 30, "nan"])
def test_a_program_starts_with_all_of_them_at_once(exporter, value):
    names = [*NUMBERS, *WORDS, *TEXTS, *AT_IMPORT]
    program = """
import logging; logging.basicConfig()
import meshmw.auto
from opentelemetry import trace
with trace.get_tracer("a").start_as_current_span("b") as span:
    print(span.is_recording())
meshmw.auto.telemetry.shutdown(0.1)
"""
    done = subprocess.run(
        [sys.executable, "-c", program],
        env=clean_environment()
        | dict.fromkeys(names, value)
        | {"MESHMW_EXPORTER": exporter, "MESHMW_METRICS": "otlp", "MESHMW_ENDPOINT": "127.0.0.1:9"},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith("True\n") or exporter == "console"
    lines = [line for line in done.stderr.splitlines() if "OTEL_" in line and " holds " in line]
    assert len(set(lines)) == len(lines), "the same is said twice"
    assert "Traceback" not in done.stderr
    if not value.strip():
        assert "OTEL_" not in done.stderr


class TestWhatIsRead:
    @pytest.mark.parametrize("value", ["7", " 7 ", "\uff17", "0"])
    @pytest.mark.parametrize("name", COUNTS)
    def test_a_limit(self, monkeypatch, caplog, name, value):
        monkeypatch.setenv(name, value)
        assert f"={int(value)}" in build()[0]
        assert caplog.messages == []
        assert os.environ[name] == value

    @pytest.mark.parametrize(
        ("sampler", "share", "expected"),
        [
            (" Always_OFF ", "junk", "AlwaysOffSampler"),
            ("traceidratio", None, "TraceIdRatioBased{1.0}"),
            ("ParentBased_TraceIdRatio", " 0.25 ", "ParentBased{root:TraceIdRatioBased{0.25}"),
            ("traceidratio", "0", "TraceIdRatioBased{0.0}"),
            (None, "0.5", "ParentBased{root:AlwaysOnSampler"),
        ],
    )
    def test_a_sampler_in_any_case(self, monkeypatch, caplog, sampler, share, expected):
        for name, value in {"OTEL_TRACES_SAMPLER": sampler, "OTEL_TRACES_SAMPLER_ARG": share}.items():
            if value is not None:
                monkeypatch.setenv(name, value)
        assert build()[1].startswith(expected)
        assert caplog.messages == []

    @pytest.mark.parametrize("share", ["2", "-0.1", "nan", "inf", "junk", "1,0"])
    def test_a_share_that_is_none_is_ignored(self, monkeypatch, caplog, share):
        monkeypatch.setenv("OTEL_TRACES_SAMPLER", "traceidratio")
        monkeypatch.setenv("OTEL_TRACES_SAMPLER_ARG", share)
        assert build()[1] == "TraceIdRatioBased{1.0}"
        assert caplog.messages == [
            f"OTEL_TRACES_SAMPLER_ARG holds '{share}', which is ignored; it takes a share from 0 to 1; so it is 1.0"
        ]

    def test_a_sampler_beside_the_setting_is_not_looked_at(self, monkeypatch, caplog):
        monkeypatch.setenv("OTEL_TRACES_SAMPLER", "junk")
        assert "0.5" in build(sampling_ratio=0.5)[1]
        assert caplog.messages == []

    def test_a_timeout_of_zero_is_no_limit(self, monkeypatch):
        monkeypatch.setenv("OTEL_METRIC_EXPORT_TIMEOUT", "0")
        with readable("OTEL_METRIC_EXPORT_TIMEOUT"):
            assert os.environ["OTEL_METRIC_EXPORT_TIMEOUT"] == "2147483647"
        assert os.environ["OTEL_METRIC_EXPORT_TIMEOUT"] == "0"

    def test_detectors_that_are_installed(self, monkeypatch, caplog):
        monkeypatch.setenv("OTEL_EXPERIMENTAL_RESOURCE_DETECTORS", "absent, process,*")
        assert "process.pid" in build_resource(Settings()).attributes
        (line,) = caplog.messages
        assert line.startswith("OTEL_EXPERIMENTAL_RESOURCE_DETECTORS holds 'absent', which is ignored; no such")

    def test_a_warning_says_what_counts_instead(self, monkeypatch, caplog):
        monkeypatch.setenv("OTEL_PROPAGATORS", "xray,b3")
        monkeypatch.setenv("OTEL_TRACES_EXPORTER", "zipkin")
        monkeypatch.setenv("OTEL_SERVICE_NAME", "a\nb")
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "ftp://c/?token=secret")
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://c:1?token=secret")
        Settings()
        assert [line.rpartition("; so ")[2] for line in caplog.messages] == [
            "service_name is left unset",
            "propagators is b3",
            "exporter is otlp",
            "endpoint is http://c:1",
        ]
        assert "secret" not in caplog.text
        caplog.clear()
        monkeypatch.setenv("OTEL_BSP_MAX_QUEUE_SIZE", "none")
        assert count_in("OTEL_BSP_MAX_QUEUE_SIZE") is None
        assert caplog.messages[0].endswith("a number from 1 to 1048576; its default is used")


class TestOwnVariables:
    @pytest.mark.parametrize("value", EMPTY.values(), ids=EMPTY)
    @pytest.mark.parametrize("setting", Settings.documentation(), ids=lambda each: each.variable)
    def test_empty_is_unset(self, monkeypatch, setting, value):
        monkeypatch.setenv(setting.variable, value)
        assert all(getattr(Settings(), each.name) == each.default for each in fields(Settings))
        assert setting.name not in Settings.origins()

    @pytest.mark.parametrize("value", ["\x01", "a\nb", "-1", "nan", "inf", "1e400", "x" * 5_000])
    @pytest.mark.parametrize("setting", Settings.documentation(), ids=lambda each: each.variable)
    def test_junk_is_taken_or_a_settings_error_in_our_words(self, monkeypatch, setting, value):
        monkeypatch.setenv(setting.variable, value)
        fault = ""
        try:
            Settings()
        except SettingsError as error:
            fault = str(error)
        assert fault.startswith(f"meshmw cannot start with these settings:\n  - {setting.variable} holds ") or not fault
        assert len(fault) < 600
        assert fault.replace("\n", "").isprintable()


class TestResourceAttributes:
    @pytest.mark.parametrize(
        ("value", "expected"),
        [
            ("a=1,b=2", {"a": "1", "b": "2"}),
            (" a = 1 ,, b=2 ,", {"a": "1", "b": "2"}),
            ("a%2Cb%3D=c%2Cd%3D", {"a,b=": "c,d="}),
            ("%C3%A4=%E2%82%AC", {"\xe4": "\u20ac"}),
            ("\xe4=\u20ac", {"\xe4": "\u20ac"}),
            ("a=b=c", {"a": "b=c"}),
            ("a=b;c=d", {"a": "b;c=d"}),
            ("a=1+2", {"a": "1+2"}),
            ("a=1,a=2,a=", {"a": "2"}),
            ("a=,b=2", {"a": "", "b": "2"}),
            ("%61=1,a=2", {"a": "2"}),
        ],
    )
    def test_keys_and_values_are_percent_decoded(self, monkeypatch, caplog, value, expected):
        before = build_resource(Settings()).attributes
        monkeypatch.setenv("OTEL_RESOURCE_ATTRIBUTES", value)
        assert dict(build_resource(Settings()).attributes) == dict(before) | expected
        assert caplog.messages == []

    @pytest.mark.parametrize(
        "broken", ["key", "=value", " = ", "a=%", "a=%4", "a=%zz", "%zz=1", "a=%ff", "%C3=1", "x" * 999]
    )
    def test_a_broken_pair_discards_the_variable_and_is_said(self, monkeypatch, caplog, broken):
        before = build_resource(Settings()).attributes
        monkeypatch.setenv("OTEL_RESOURCE_ATTRIBUTES", f"service.name=shop,{broken},b=2")
        settings = Settings()
        assert settings.service_name is None
        assert dict(build_resource(settings).attributes) == dict(before)
        (line,) = caplog.messages
        assert line.startswith(f"OTEL_RESOURCE_ATTRIBUTES holds '{broken.strip()[:60]}'")
        assert line.endswith(
            ", which is no key=value pair with valid percent-encoding; all of it is ignored, as OpenTelemetry's "
            "specification asks"
        )

    def test_the_services_name_of_its_own_variable_stays(self, monkeypatch):
        monkeypatch.setenv("OTEL_RESOURCE_ATTRIBUTES", "broken")
        monkeypatch.setenv("OTEL_SERVICE_NAME", "shop")
        assert build_resource(Settings()).attributes["service.name"] == "shop"

    def test_a_name_that_the_settings_refuse_is_not_the_sdks_either(self, monkeypatch):
        monkeypatch.setenv("OTEL_SERVICE_NAME", "a\nb")
        assert build_resource(Settings()).attributes["service.name"].startswith("unknown_service")


class TestPathOfAGrpcEndpoint:
    @pytest.mark.parametrize("name", ["OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"])
    def test_it_is_said_to_be_ignored(self, monkeypatch, caplog, name):
        monkeypatch.setenv(name, "http://c:4317/v1/traces?key=secret")
        build(endpoint=Settings().endpoint)
        assert [line for line in caplog.messages if "path" in line][:1] == [
            f"{name} holds a path, '/v1/traces', which is ignored: gRPC has none; so endpoint is http://c:4317"
        ]
        assert "secret" not in caplog.text

    def test_metrics_say_it_of_their_own(self, monkeypatch, caplog):
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_METRICS_ENDPOINT", "http://127.0.0.1:9/v1/metrics")
        build()
        assert caplog.messages == [
            "OTEL_EXPORTER_OTLP_METRICS_ENDPOINT holds a path, '/v1/metrics', which is ignored: gRPC has none"
        ]

    @pytest.mark.parametrize("exporter", ["otlp", "otlp-http"])
    def test_our_own_setting_says_it_too(self, caplog, exporter):
        build(endpoint="http://127.0.0.1:9/x", exporter=exporter)
        line = "endpoint (MESHMW_ENDPOINT) holds a path, '/x', which is ignored: gRPC has none"
        assert caplog.messages == ([line] if exporter == "otlp" else [])

    @pytest.mark.parametrize("address", ["c:4317", "http://c:4317", "https://c:4317/"])
    def test_an_address_without_one_is_not_spoken_of(self, monkeypatch, caplog, address):
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", address)
        Settings()
        assert caplog.messages == []

    def test_http_uses_it(self, monkeypatch, caplog):
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://c:4318/x")
        assert Settings(exporter="otlp-http").endpoint == "http://c:4318/x/v1/traces"
        assert caplog.messages == []


class TestWhoIsToBlame:
    @pytest.mark.parametrize("part", ["PromptBatchSpanProcessor", "TracerProvider", "otlp_reader", "MeterProvider"])
    def test_an_internal_error_is_not_a_variables(self, monkeypatch, part):
        def broken(*_, **__):
            raise AttributeError("'BatchSpanProcessor' object has no attribute '_batch_processor'")

        # A name that the error quotes too.
        monkeypatch.setenv("OTEL_SERVICE_NAME", "_batch_processor")
        monkeypatch.setattr(f"meshmw._telemetry.provider.{part}", broken)
        with pytest.raises(IncompatibleError, match=r"AttributeError: .*_batch_processor") as caught:
            build()
        assert "OTEL_" not in str(caught.value)

    @pytest.mark.parametrize(
        ("text", "expected"),
        [
            ("could not convert string to float: 'soon'", "OTEL_A"),
            ('Invalid value "SOON"', "OTEL_A"),
            ("bad OTEL_B", "OTEL_B"),
            ("no soon here", None),
            ("'7' is not it", None),
            ("'mine'", None),
        ],
    )
    def test_a_text_names_a_variable_or_quotes_it(self, monkeypatch, text, expected):
        for name, value in {"OTEL_A": "soon", "OTEL_B": "7", "OTHER": "mine"}.items():
            monkeypatch.setenv(name, value)
        assert named_in(text) == expected

    @pytest.mark.parametrize("protocol", ["grpc", "http"])
    @pytest.mark.parametrize(
        ("failure", "expected"),
        [
            ("raise TypeError('Descriptors cannot be created directly')", "TypeError"),
            ("from opentelemetry.trace import not_there", "ImportError"),
            ("import opentelemetry.sdk.not_there", "ModuleNotFoundError"),
            ("import not_installed_here", None),
        ],
    )
    def test_an_exporter_that_cannot_be_imported_is_not_called_absent(
        self, monkeypatch, tmp_path, protocol, failure, expected
    ):
        package = f"opentelemetry.exporter.otlp.proto.{protocol}"
        __import__(package)
        (tmp_path / "trace_exporter.py").write_text(failure)
        monkeypatch.setattr(sys.modules[package], "__path__", [str(tmp_path)])
        monkeypatch.delitem(sys.modules, f"{package}.trace_exporter", raising=False)
        exporter = "otlp" if protocol == "grpc" else "otlp-http"
        with pytest.raises(IncompatibleExporterError if expected else MissingExtraError) as caught:
            build_provider(Settings(exporter=exporter, endpoint="127.0.0.1:9"))
        if expected:
            assert f"is installed, and does not fit the OpenTelemetry that is ({expected}: " in str(caught.value)
            assert caught.value.extra == "otlp"
        else:
            assert "pip install 'meshmw[otlp]'" in str(caught.value)


class TestProvidersThatVariablesName:
    @pytest.mark.parametrize("kind", ["TRACER", "METER"])
    def test_one_that_is_not_installed_is_ignored_and_said(self, kind):
        name = f"OTEL_PYTHON_{kind}_PROVIDER"
        done = subprocess.run(
            [sys.executable, "-c", "import meshmw.asgi, meshmw; meshmw.configure()"],
            env=clean_environment() | {name: "absent", "MESHMW_EXPORTER": "none"},
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert done.returncode == 0, done.stderr
        remedy = "unset it, or install its package"
        line = f"[WARNING] meshmw: {name} holds 'absent', which is ignored: no such provider is installed; {remedy}\n"
        assert line in done.stderr


class TestContextThatAVariableNames:
    @pytest.mark.parametrize(
        ("value", "said"),
        [
            ("absent", "'absent'"),
            ("a\nb", "'a\\nb'"),
            (" ", ""),
            ("", ""),
            ("contextvars_context", ""),
        ],
    )
    @pytest.mark.parametrize("module", ["meshmw.asgi", "meshmw.settings", "meshmw"])
    def test_one_that_is_not_installed_is_ignored_and_said_without_a_traceback(self, module, value, said):
        done = self.run(f"import {module}, meshmw; meshmw.configure()", value)
        why = "which is ignored: no such context is installed; unset it"
        line = f"[WARNING] meshmw: OTEL_PYTHON_CONTEXT holds {said}, {why}\n"
        assert re.sub(r"^\[\S+ \S+ \S+\] \[\d+\] ", "", done.stderr) == (line if said else "")

    def test_where_the_api_is_there_first_it_has_said_so_itself(self):
        done = self.run("import opentelemetry.context, meshmw; meshmw.configure()", "absent")
        assert done.stderr.startswith("Failed to load context: absent")
        assert "meshmw" not in done.stderr

    def run(self, program, value):
        done = subprocess.run(
            [sys.executable, "-c", program],
            env=clean_environment()
            | {"OTEL_PYTHON_CONTEXT": value, "MESHMW_EXPORTER": "none", "MESHMW_SHOW_LOG": "false"},
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert done.returncode == 0, done.stderr
        return done
