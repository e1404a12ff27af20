"""The variables of OTLP's exporters: whatever they hold, the application starts, and a line names what is ignored.

https://opentelemetry.io/docs/specs/otel/protocol/exporter/
"""

from __future__ import annotations

import contextlib
import importlib.util
import logging
import os
import re
from pathlib import Path

import pytest

from meshmw._telemetry.export import build_exporter, otlp_reader
from meshmw._telemetry.provider import build_meter_provider, build_provider
from meshmw.errors import SettingsError
from meshmw.settings import Settings, each_line_once, export_seconds, exporting
from tests.programs import clean_environment

PROTOCOLS = {"grpc": "otlp", "http/protobuf": "otlp-http"}
ALL = "OTEL_EXPORTER_OTLP_"
PARTS = (
    "ENDPOINT INSECURE PROTOCOL CERTIFICATE CLIENT_KEY CLIENT_CERTIFICATE HEADERS TIMEOUT COMPRESSION".split()  # noqa: SIM905
)
PROVIDERS = [
    f"OTEL_PYTHON_EXPORTER_OTLP_{protocol}_{signal}CREDENTIAL_PROVIDER"
    for protocol in ("GRPC", "HTTP")
    for signal in ("", "TRACES_", "METRICS_")
]
NAMES = [
    *(f"{ALL}{signal}{part}" for part in PARTS for signal in ("", "TRACES_", "METRICS_")),
    *PROVIDERS,
    "OTEL_PYTHON_EXPORTER_OTLP_GRPC_RETRYABLE_ERROR_CODES",
    f"{ALL}METRICS_TEMPORALITY_PREFERENCE",
    f"{ALL}METRICS_DEFAULT_HISTOGRAM_AGGREGATION",
]
EMPTY = {"empty": "", "blank": " ", "white space": "\t\n "}
SECRET = "hunter2"
JUNK = {
    "word": "junk",
    "negative": "-1",
    "huge": "9" * 30,
    "thousands of digits": "9" * 5_000,
    "inf": "inf",
    "nan": "nan",
    "exponent": "1e3",
    "unit": "10s",
    "not ASCII": "\xe4\u20ac",
    "other digits": "\uff11\uff10",
    "no text": "a\udcff",
    "line break": "a=b\r\nx: y",
    "broken escape": "%zz%",
    "no path": "/nowhere/" + "x" * 300,
    "a folder": "/",
    "NUL, escaped": "a=%00",
    "secret": f"authorization: Bearer {SECRET}",
    "URL with a password": f"https://user:{SECRET}@c:4317",
    "other scheme": "ftp://c",
    "port": "http://c:99999",
}


@pytest.fixture(autouse=True)
def _clean(monkeypatch, caplog):
    for name in set(os.environ) - set(clean_environment()):
        monkeypatch.delenv(name)
    caplog.set_level(logging.DEBUG)


def build(exporter):
    """Make what `configure()` makes for spans and metrics, end it, and return the SDK's two exporters."""
    settings = Settings(exporter=exporter, metrics="otlp")
    with each_line_once():
        meters = build_meter_provider(settings)
        try:
            _, processor = build_provider(settings)
        finally:
            with contextlib.suppress(Exception):
                meters.shutdown(timeout_millis=1)
    processor.shutdown_seconds = 0
    processor.shutdown()
    return processor.collector._exporter


def said(caplog):
    # A reader that was made here belongs to no provider, and its thread may say so as late as in another test.
    records = [record for record in caplog.records if "MetricReader until it is registered" not in record.msg]
    return [record for record in records if record.name.startswith(("meshmw", "opentelemetry"))]


def test_every_variable_that_the_installed_exporters_read_is_known():
    found = set()
    for package in ("opentelemetry.exporter.otlp.proto.grpc", "opentelemetry.exporter.otlp.proto.http"):
        (folder,) = importlib.util.find_spec(package).submodule_search_locations
        for file in Path(folder).rglob("*.py"):
            found |= set(re.findall(r"\bOTEL_(?:PYTHON_)?EXPORTER_OTLP_\w+", file.read_text()))
    assert len(found) > 30
    assert {name for name in found if "_LOGS_" not in name} - set(NAMES) == set()


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("value", EMPTY.values(), ids=EMPTY)
@pytest.mark.parametrize("name", NAMES)
def test_empty_is_unset_and_nothing_is_said(monkeypatch, caplog, name, value, protocol):
    monkeypatch.setenv(name, value)
    build(PROTOCOLS[protocol])
    assert [record.getMessage() for record in said(caplog) if record.levelno > logging.INFO] == []
    assert os.environ[name] == value


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("value", JUNK.values(), ids=JUNK)
@pytest.mark.parametrize("name", NAMES)
def test_junk_is_ignored_in_our_words_and_no_secret_is_said(monkeypatch, caplog, name, value, protocol):
    monkeypatch.setenv(name, value)
    # Without TLS nobody looks at certificates.
    if "ENDPOINT" not in name:
        monkeypatch.setenv(f"{ALL}ENDPOINT", "https://127.0.0.1:9")
    fault = ""
    try:
        build(PROTOCOLS[protocol])
    except SettingsError as error:
        fault = str(error)
        assert name in PROVIDERS
        assert name in fault
    lines = [record.getMessage() for record in said(caplog) if record.levelno >= logging.WARNING]
    assert {record.name for record in said(caplog) if record.levelno >= logging.WARNING} <= {"meshmw"}
    assert len(set(lines)) == len(lines)
    for line in [*lines, *fault.splitlines()[1:]]:
        assert name in line
        assert line.isascii()
        assert line.isprintable()
        assert len(line) < 600
    assert SECRET not in caplog.text + fault
    assert os.environ[name] == value
    # A variable of the other protocol is nobody's, and what some of them take is junk to others.
    other = "HTTP" if protocol == "grpc" else "GRPC"
    is_read = f"_{other}_" not in name and not (protocol != "grpc" and name.endswith(("INSECURE", "CODES")))
    # The setting says it already.
    if is_read and not fault and name not in (f"{ALL}PROTOCOL", f"{ALL}TRACES_PROTOCOL"):
        # So many letters may be a host's name.
        assert lines or (name.endswith("ENDPOINT") and re.fullmatch("[a-z0-9]{1,63}", value))


def test_what_two_exporters_read_is_said_once(run_program):
    program = run_program(
        "configure(Settings(metrics='otlp', endpoint='127.0.0.1:9')).shutdown(0.1)",
        OTEL_EXPORTER_OTLP_TIMEOUT="300",
        OTEL_EXPORTER_OTLP_HEADERS=SECRET,
        OTEL_EXPORTER_OTLP_METRICS_COMPRESSION="zip",
    )
    assert program.returncode == 0, program.stderr
    assert SECRET not in program.stderr
    lines = [line for line in program.stderr.splitlines() if ALL in line]
    assert [line.split()[2].rstrip(":") for line in lines] == [
        f"{ALL}TIMEOUT",
        f"{ALL}METRICS_COMPRESSION",
        f"{ALL}HEADERS",
    ]


class TestWhichCounts:
    @pytest.mark.parametrize("exporter", PROTOCOLS.values())
    def test_the_variable_of_a_signal_wins_field_by_field(self, monkeypatch, exporter):
        for name, value in {
            "TIMEOUT": "3",
            "TRACES_TIMEOUT": " ",
            "METRICS_TIMEOUT": "4000",
            "COMPRESSION": "gzip",
            "TRACES_COMPRESSION": "junk",
            "METRICS_COMPRESSION": " NONE ",
            "HEADERS": "a=all",
            "TRACES_HEADERS": "b=own",
        }.items():
            monkeypatch.setenv(f"{ALL}{name}", value)
        http = exporter == "otlp-http"
        with exporting("TRACES", http=http, secure=True) as spans:
            assert (spans.timeout, spans.compression, spans.headers) == (3, "gzip", {"b": "own"})
        with exporting("METRICS", http=http, secure=True) as meters:
            assert (meters.timeout, meters.compression, meters.headers) == (4, "none", {"a": "all"})

    @pytest.mark.parametrize("exporter", PROTOCOLS.values())
    def test_the_exporter_is_given_what_they_say(self, monkeypatch, exporter):
        for name, value in {"TIMEOUT": "7000", "COMPRESSION": "GZIP", "HEADERS": "X-Key=a%20b,x-bin=c"}.items():
            monkeypatch.setenv(f"{ALL}{name}", value)
        found = vars(build(exporter)) if exporter == "otlp" else vars(build(exporter)._client)
        assert found["_timeout"] == 7
        headers = dict(found["_headers"])
        assert headers["x-key"] == "a b"
        assert headers["x-bin"] == (b"c" if exporter == "otlp" else "c")
        assert found["_compression"].name.lower() == "gzip"

    def test_codes_after_which_grpc_tries_again(self, monkeypatch, caplog):
        name = "OTEL_PYTHON_EXPORTER_OTLP_GRPC_RETRYABLE_ERROR_CODES"
        monkeypatch.setenv(name, " unavailable, teapot,,")
        assert {code.name for code in build("otlp")._retryable_error_codes} == {"UNAVAILABLE"}
        (line,) = [record.getMessage() for record in said(caplog)]
        assert line == f"{name} holds 'TEAPOT', which is ignored; it takes gRPC's status codes"

    def test_deflate_is_of_http_alone(self, monkeypatch, caplog):
        monkeypatch.setenv(f"{ALL}COMPRESSION", "deflate")
        build("otlp-http")
        assert said(caplog) == []
        build("otlp")
        (line,) = [record.getMessage() for record in said(caplog)]
        assert line.endswith("which is ignored; it takes gzip or none; so it is none")

    def test_json_is_sent_as_protobuf_to_the_same_address(self, monkeypatch, caplog):
        monkeypatch.setenv(f"{ALL}PROTOCOL", "HTTP/json")
        assert Settings().exporter == "otlp-http"
        (line,) = caplog.messages
        instead = "meshmw does not send; it sends http/protobuf; so exporter is otlp-http"
        assert line == f"{ALL}PROTOCOL holds 'http/json', which {instead}"

    def test_a_path_for_spans_over_http_is_said_to_be_none_of_metrics_over_grpc(self, monkeypatch, caplog):
        monkeypatch.setenv(f"{ALL}ENDPOINT", "http://127.0.0.1:9/base")
        monkeypatch.setenv(f"{ALL}METRICS_PROTOCOL", "grpc")
        reader = otlp_reader(Settings(exporter="otlp-http"))
        reader.shutdown(timeout_millis=1)
        assert f"{ALL}ENDPOINT holds a path, '/base', which is ignored: gRPC has none" in caplog.messages

    def test_without_tls_nobody_looks_at_certificates(self, monkeypatch, caplog):
        monkeypatch.setenv(f"{ALL}CERTIFICATE", "/nowhere")
        monkeypatch.setenv("OTEL_PYTHON_EXPORTER_OTLP_GRPC_CREDENTIAL_PROVIDER", "absent")
        build_exporter(Settings(endpoint="http://127.0.0.1:9")).shutdown()
        assert said(caplog) == []


class TestHeaders:
    def read(self, text, monkeypatch, http=True):
        monkeypatch.setenv(f"{ALL}HEADERS", text)
        with exporting("TRACES", http=http, secure=False) as options:
            assert SECRET not in repr(options)
            return options.headers

    @pytest.mark.parametrize(
        ("text", "expected"),
        [
            ("a=1,b=2", {"a": "1", "b": "2"}),
            (" A = 1 ,, B=2 ,", {"a": "1", "b": "2"}),
            ("a=b=c==", {"a": "b=c=="}),
            ("a=%2C%3D%20x", {"a": ",= x"}),
            ("%41=1", {"a": "1"}),
            ("authorization=Bearer x", {"authorization": "Bearer x"}),
            ("a=1+2;b", {"a": "1+2;b"}),
            ("a=", {"a": ""}),
        ],
    )
    @pytest.mark.parametrize("http", [True, False])
    def test_pairs_are_percent_decoded_and_names_are_in_lower_case(self, monkeypatch, caplog, text, expected, http):
        assert self.read(text, monkeypatch, http) == expected
        assert caplog.messages == []

    @pytest.mark.parametrize(
        ("item", "http", "said"),
        [
            (SECRET, True, "item 2 of 3 is no key=value pair, and is ignored"),
            (f"authorization: Bearer {SECRET}", True, "item 2 of 3 is no key=value pair, and is ignored"),
            (f"Basic {SECRET}=", True, "item 2 of 3 is no key=value pair, and is ignored"),
            (f"={SECRET}", True, "item 2 of 3 is no key=value pair, and is ignored"),
            (f"%zz={SECRET}", True, "item 2 of 3 is no key=value pair, and is ignored"),
            (f"a!={SECRET}", False, "item 2 of 3 is no key=value pair, and is ignored"),
            (f":path={SECRET}", False, "item 2 of 3 is no key=value pair, and is ignored"),
            (
                f"x=%0d%0a{SECRET}",
                True,
                "item 2 of 3, x, has a value with characters that no header holds, and is ignored",
            ),
            (
                f"x=\u20ac{SECRET}",
                True,
                "item 2 of 3, x, has a value with characters that no header holds, and is ignored",
            ),
            (f"Te={SECRET}", False, "item 2 of 3 names te, which the exporter writes itself, and is ignored"),
            (
                f"content-type={SECRET}",
                True,
                "item 2 of 3 names content-type, which the exporter writes itself, and is ignored",
            ),
            (
                f"grpc-timeout={SECRET}",
                False,
                "item 2 of 3 names grpc-timeout, which the exporter writes itself, and is ignored",
            ),
        ],
    )
    def test_what_is_none_is_ignored_alone_and_not_quoted(self, monkeypatch, caplog, item, http, said):
        assert self.read(f"a=1,{item},c=3", monkeypatch, http) == {"a": "1", "c": "3"}
        assert caplog.messages == [f"{ALL}HEADERS: {said}"]
        assert SECRET not in caplog.text

    @pytest.mark.parametrize("value", ["100%", "%zz", "%ff"])
    def test_a_value_that_is_no_percent_encoding_is_sent_as_it_stands(self, monkeypatch, caplog, value):
        assert self.read(f"a={value}", monkeypatch) == {"a": value}
        assert caplog.messages == [
            f"{ALL}HEADERS: item 1 of 1, a, has a value that is not percent-encoded rightly: it is sent as it stands"
        ]

    def test_a_name_that_is_there_twice_is_said(self, monkeypatch, caplog):
        assert self.read(f"a={SECRET},A=2", monkeypatch) == {"a": "2"}
        assert caplog.messages == [f"{ALL}HEADERS: item 2 of 2, a, is there twice; the last one counts"]


class TestTimeout:
    @pytest.mark.parametrize(
        ("value", "seconds", "level", "words"),
        [
            ("10", 10, "INFO", "10 seconds, as Python's SDK reads it"),
            ("0.5", 0.5, "INFO", "0.5 seconds, as Python's SDK reads it"),
            ("60", 60, "INFO", "60 seconds, as Python's SDK reads it"),
            ("61", 60, "WARNING", "61 seconds, as Python's SDK reads it; 60 seconds are used, the most that"),
            ("120", 60, "WARNING", "120 seconds, as Python's SDK reads it; 60 seconds are used"),
            (
                "121",
                0.121,
                "WARNING",
                "0.121 seconds, as the specification's milliseconds; where you mean seconds, write",
            ),
            ("300", 0.3, "WARNING", "where you mean seconds, write 300000"),
            ("1000", 1, "INFO", "1 seconds, as the specification's milliseconds"),
            ("10000", 10, "INFO", "10 seconds, as the specification's milliseconds"),
            ("60000", 60, "INFO", "60 seconds, as the specification's milliseconds"),
            ("60001", 60, "WARNING", "60 seconds are used, the most that one export may take"),
            ("2147483647", 60, "WARNING", "60 seconds are used"),
            ("0", 60, "WARNING", "no limit, for which 60 seconds stand"),
        ],
    )
    @pytest.mark.parametrize("name", ["TIMEOUT", "TRACES_TIMEOUT"])
    def test_milliseconds_and_seconds_are_told_apart(self, monkeypatch, caplog, name, value, seconds, level, words):
        monkeypatch.setenv(f"{ALL}{name}", value)
        with exporting("TRACES", http=False, secure=False) as options:
            assert options.timeout == seconds
        assert export_seconds("TRACES", http=True) == seconds
        (record,) = caplog.records
        assert record.levelname == level
        assert record.getMessage().startswith(f"{ALL}{name} holds {value}: ")
        assert words in record.getMessage()

    @pytest.mark.parametrize("value", ["", "soon", "-1", "2147483648", "1e3", "1_000", "10s", "nan", ".5"])
    def test_what_is_no_number_is_the_specifications_ten_seconds(self, monkeypatch, value):
        monkeypatch.setenv(f"{ALL}TIMEOUT", value)
        assert export_seconds("TRACES", http=False) == 10

    @pytest.mark.parametrize(
        ("signal", "name"), [("TRACES", "OTEL_BSP_EXPORT_TIMEOUT"), ("METRICS", "OTEL_METRIC_EXPORT_TIMEOUT")]
    )
    @pytest.mark.parametrize(
        ("value", "seconds"), [("2000", 2), ("500", 0.5), ("30", 10), ("5", 5), ("30000", 10), ("0", 10), ("junk", 10)]
    )
    def test_what_a_batch_may_take_holds_for_its_export(self, monkeypatch, signal, name, value, seconds):
        monkeypatch.setenv(name, value)
        assert export_seconds(signal, http=False) == seconds

    @pytest.mark.parametrize(
        ("name", "words"),
        [
            ("OTEL_BSP_EXPORT_TIMEOUT", "30 seconds; it takes milliseconds, so write 30000"),
            ("OTEL_METRIC_EXPORT_TIMEOUT", "30 seconds; it takes milliseconds, so write 30000"),
            ("OTEL_METRIC_EXPORT_INTERVAL", "30 milliseconds; where you mean seconds, write 30000"),
            ("OTEL_BSP_SCHEDULE_DELAY", "30 milliseconds; where you mean seconds, write 30000"),
        ],
    )
    def test_so_few_milliseconds_that_seconds_may_be_meant_are_said(self, monkeypatch, caplog, name, words):
        monkeypatch.setenv(name, "30")
        build("otlp")
        assert caplog.messages == [f"{name} holds 30: {words}"]
        caplog.clear()
        monkeypatch.setenv(name, "121")
        build("otlp")
        assert caplog.messages == []


class Making:
    """An entry point of a credential provider."""

    def __init__(self, made):
        self.made = made

    def load(self):
        return self.make

    def make(self):
        if isinstance(self.made, Exception):
            raise self.made
        return self.made


class TestCredentialProviders:
    def provide(self, monkeypatch, made, **variables):
        monkeypatch.setattr("importlib.metadata.entry_points", lambda **_: (Making(made),))
        for name, value in variables.items():
            monkeypatch.setenv(f"OTEL_PYTHON_EXPORTER_OTLP_{name}_CREDENTIAL_PROVIDER", value)

    def test_a_session_is_the_exporters(self, monkeypatch):
        from requests import Session

        self.provide(monkeypatch, session := Session(), HTTP_TRACES="mine")
        exporter = build_exporter(Settings(exporter="otlp-http", endpoint="https://127.0.0.1:9"))
        assert exporter._client._transport._session is session

    def test_credentials_are_the_exporters(self, monkeypatch):
        import grpc

        self.provide(monkeypatch, found := grpc.ssl_channel_credentials(), GRPC="mine")
        exporter = build_exporter(Settings(endpoint="https://127.0.0.1:9"))
        assert exporter._credentials is found
        exporter.shutdown()

    @pytest.mark.parametrize(
        ("made", "words"),
        [
            (OSError("no vault"), "which raises OSError: no vault"),
            ("a text", "which makes a str, and not a ChannelCredentials"),
        ],
    )
    def test_one_that_does_not_work_is_named(self, monkeypatch, made, words):
        self.provide(monkeypatch, made, GRPC_TRACES="mine", GRPC="")
        with pytest.raises(SettingsError, match=f"GRPC_TRACES_CREDENTIAL_PROVIDER holds .*: 'mine', {words}"):
            build_exporter(Settings(endpoint="https://127.0.0.1:9"))
