"""Settings: where each value comes from, and what a user reads when one cannot be used."""

from __future__ import annotations

import inspect
import logging
from dataclasses import FrozenInstanceError, asdict, dataclass, fields

import pytest

import meshmw
from meshmw import MeshPropagator, asgi, wire, wsgi
from meshmw._notices import Rejections
from meshmw._policy.outbound import HeaderBudget
from meshmw._policy.patterns import BaggageKeys, PathPatterns
from meshmw._policy.trust import TrustPolicy
from meshmw._runtime import Runtime
from meshmw.errors import SettingsError
from meshmw.settings import Settings, hidden, is_set, sdk_disabled
from meshmw.settings._values import setting, text

DEFAULTS = {each.name: each.default for each in fields(Settings)}


def faults_of(**arguments):
    with pytest.raises(SettingsError) as caught:
        Settings(**arguments)
    return caught.value.faults


class TestFaults:
    def test_all_faults_are_named_together_with_what_each_holds_and_takes(self, monkeypatch):
        monkeypatch.setenv("MESHMW_PROPAGATORS", "tracecontext, xray")
        monkeypatch.setenv("MESHMW_EXPORTER", "zipkin")
        monkeypatch.setenv("MESHMW_SAMPLING_RATIO", "nan")
        assert faults_of(warn_window=-1, baggage_max_members="many") == (
            "MESHMW_PROPAGATORS holds 'xray'; it takes a list of tracecontext, baggage, b3, b3multi; or none",
            "argument baggage_max_members holds 'many'; it takes a number from 0 to 1024",
            "MESHMW_EXPORTER holds 'zipkin'; it takes otlp, otlp-http, console or none",
            "MESHMW_SAMPLING_RATIO holds 'nan'; it takes a number from 0 to 1",
            "argument warn_window holds -1; it takes a number of seconds from 0 to 86400",
        )

    def test_the_error_reads_as_one_block(self):
        with pytest.raises(SettingsError, match=r"cannot start with these settings:\n  - argument exporter holds 7;"):
            Settings(exporter=7)

    @pytest.mark.parametrize(
        ("variable", "value"),
        [
            ("MESHMW_SERVICE_NAME", "two\nlines"),
            ("MESHMW_SERVICE_NAME", "x" * 256),
            ("MESHMW_SERVICE_NAME", "\x1b[31m"),
            ("MESHMW_PROPAGATORS", "none,b3"),
            ("MESHMW_TRACEPARENT_POLICY", "lax"),
            ("MESHMW_DUPLICATES", "first"),
            ("MESHMW_PREFER", "both"),
            ("MESHMW_TRUST", "yes"),
            ("MESHMW_TRUSTED_PEERS", "10.0.0.0/33"),
            ("MESHMW_TRUSTED_PEERS", "10.0.0.1/8"),
            ("MESHMW_TRUSTED_PEERS", "mesh"),
            ("MESHMW_TRUSTED_PEERS", "*"),
            ("MESHMW_SAMPLING_OWNER", "child"),
            ("MESHMW_SERVER_SPANS", "on"),
            ("MESHMW_EXCLUDE", "health"),
            ("MESHMW_EXCLUDE", "/a\x07b"),
            ("MESHMW_BAGGAGE_MAX_MEMBERS", "-1"),
            ("MESHMW_BAGGAGE_MAX_MEMBERS", "1025"),
            ("MESHMW_BAGGAGE_MAX_BYTES", "61441"),
            ("MESHMW_BAGGAGE_MAX_BYTES", "8kB"),
            ("MESHMW_BAGGAGE_KEYS", "tenant id"),
            ("MESHMW_BAGGAGE_KEYS", "tenant,![a-z]"),
            ("MESHMW_BAGGAGE_KEYS", "!"),
            ("MESHMW_PROPAGATE_TO", "http://inventory"),
            ("MESHMW_PROPAGATE_TO", "inventory:8080"),
            ("MESHMW_PROPAGATE_TO", "mesh none"),
            ("MESHMW_BAGGAGE_TO", "10.0.*"),
            ("MESHMW_BAGGAGE_TO", "a..b"),
            ("MESHMW_HEADER_BUDGET", "4095"),
            ("MESHMW_HEADER_BUDGET", "8388609/100"),
            ("MESHMW_HEADER_BUDGET", "61440/19"),
            ("MESHMW_HEADER_BUDGET", "61440/10001"),
            ("MESHMW_HEADER_BUDGET", "61440/100/1"),
            ("MESHMW_HEADER_BUDGET", "/100"),
            ("MESHMW_HEADER_BUDGET", "60 KiB"),
            ("MESHMW_BATCHING", "low"),
            ("MESHMW_BATCHING", "auto"),
            ("MESHMW_BATCHING", "high/"),
            ("MESHMW_BATCHING", "high/automatic"),
            ("MESHMW_BATCHING", "high/auto/1"),
            ("MESHMW_BATCHING", "4096"),
            ("MESHMW_PASSTHROUGH_HEADERS", "x request id"),
            ("MESHMW_PASSTHROUGH_HEADERS", "Traceparent"),
            ("MESHMW_PASSTHROUGH_HEADERS", "x-b3-sampled"),
            ("MESHMW_PASSTHROUGH_HEADERS", "content-length"),
            ("MESHMW_PASSTHROUGH_HEADERS", ",".join(f"x-{n}" for n in range(33))),
            ("MESHMW_EXPORTER", "otlp,console"),
            ("MESHMW_ENDPOINT", "ftp://collector:4317"),
            ("MESHMW_ENDPOINT", "http://"),
            ("MESHMW_ENDPOINT", "collector:65536"),
            ("MESHMW_ENDPOINT", "collector:0"),
            ("MESHMW_ENDPOINT", "http://[::1"),
            ("MESHMW_ENDPOINT", "http://col lector"),
            ("MESHMW_ENDPOINT", "http://bücher:4317"),
            ("MESHMW_ENDPOINT", "http://collector/#part"),
            ("MESHMW_SAMPLING_RATIO", "1.01"),
            ("MESHMW_SAMPLING_RATIO", "inf"),
            ("MESHMW_WARN_WINDOW", "86401"),
            ("MESHMW_RANDOM_FLAG", "perhaps"),
        ],
    )
    def test_a_bad_value_is_a_fault_of_its_variable(self, monkeypatch, variable, value):
        monkeypatch.setenv(variable, value)
        (fault,) = faults_of()
        assert fault.startswith(f"{variable} holds ")
        assert fault.isprintable()

    def test_a_long_value_is_shortened(self):
        (fault,) = faults_of(exporter="x" * 5000)
        assert f"holds '{'x' * 60}'... (5000 characters); it takes" in fault

    def test_many_bad_items_are_not_all_listed(self):
        (fault,) = faults_of(propagators="one,two,three,four,five")
        assert "holds 'one', 'two', 'three' and 2 more;" in fault

    def test_credentials_are_refused_and_never_shown(self):
        (fault,) = faults_of(endpoint="https://user:secret@collector")
        assert "https://***@collector" in fault
        assert "secret" not in fault

    def test_an_argument_that_is_no_setting_is_a_fault(self):
        assert faults_of(exporters="none", zzz=1) == (
            "argument exporters is no setting (did you mean exporter?)",
            "argument zzz is no setting",
        )

    def test_a_bad_variable_does_not_matter_under_a_good_argument(self, monkeypatch):
        monkeypatch.setenv("MESHMW_EXPORTER", "zipkin")
        assert Settings(exporter="none").exporter == "none"

    def test_a_list_of_the_wrong_things_is_a_fault(self):
        assert len(faults_of(propagators=3, exclude=[4], passthrough_headers=["x", 5])) == 3
        assert len(faults_of(propagators=None, exclude={}, passthrough_headers=3)) == 3

    def test_a_misspelt_variable_is_warned_of_with_the_nearest_name(self, monkeypatch, caplog):
        monkeypatch.setenv("MESHMW_PROPAGATOR", "b3")
        monkeypatch.setenv("MESHMW_QQ", "1")
        assert Settings().propagators == ("tracecontext", "baggage")
        assert sorted(caplog.messages) == [
            "MESHMW_PROPAGATOR is no setting and is ignored (did you mean MESHMW_PROPAGATORS?)",
            "MESHMW_QQ is no setting and is ignored",
        ]


class TestValues:
    def test_defaults(self):
        settings = Settings()
        assert asdict(settings) == {
            "service_name": None,
            "kubernetes_labels": False,
            "propagators": ("tracecontext", "baggage"),
            "traceparent_policy": "strict",
            "duplicates": "restart",
            "prefer": "w3c",
            "trust": "continue",
            "trusted_peers": (),
            "sampling_owner": "parent",
            "server_spans": "auto",
            "exclude": (),
            "baggage_max_members": 64,
            "baggage_max_bytes": 8192,
            "baggage_keys": ("*",),
            "baggage_attributes": (),
            "propagate_to": ("*",),
            "baggage_to": ("mesh",),
            "passthrough_headers": ("x-request-id",),
            "header_budget": (61_440, 100),
            "messaging_parent": "parent",
            "exporter": "otlp",
            "endpoint": None,
            "sampling_ratio": None,
            "sampling_rules": (),
            "random_flag": True,
            "batching": "moderate",
            "metrics": "none",
            "warn_window": 60.0,
            "show_log": True,
        }

    @pytest.mark.parametrize(
        ("variable", "value", "expected"),
        [
            ("MESHMW_SERVICE_NAME", " checkout ", "checkout"),
            ("MESHMW_PROPAGATORS", " B3 , tracecontext,b3,,", ("b3", "tracecontext")),
            ("MESHMW_PROPAGATORS", "None", ()),
            ("MESHMW_TRACEPARENT_POLICY", "W3C", "w3c"),
            ("MESHMW_DUPLICATES", "Same-Trace", "same-trace"),
            ("MESHMW_PREFER", "AUTO", "auto"),
            ("MESHMW_SAMPLING_RULES", " /health = 0, /api/*=.5", ("/health=0", "/api/*=.5")),
            ("MESHMW_BATCHING", "High", "high"),
            ("MESHMW_BATCHING", " Moderate/Auto", "moderate/auto"),
            ("MESHMW_BATCHING", "HIGH/1048576", "high/1048576"),
            ("MESHMW_METRICS", "Prometheus", "prometheus"),
            ("MESHMW_METRICS", "OTLP", "otlp"),
            ("MESHMW_TRUST", "Restart", "restart"),
            ("MESHMW_TRUSTED_PEERS", "10.0.0.0/8, fd00::/8,192.0.2.7", ("10.0.0.0/8", "fd00::/8", "192.0.2.7")),
            ("MESHMW_SAMPLING_OWNER", "service", "service"),
            ("MESHMW_SERVER_SPANS", "off", "off"),
            ("MESHMW_MESSAGING_PARENT", "Link", "link"),
            ("MESHMW_EXCLUDE", "/live, /metrics,*/Ready", ("/live", "/metrics", "*/Ready")),
            ("MESHMW_BAGGAGE_MAX_MEMBERS", "0", 0),
            ("MESHMW_BAGGAGE_MAX_BYTES", "4096", 4096),
            ("MESHMW_PASSTHROUGH_HEADERS", "X-Request-Id, x-tenant,X-TENANT", ("x-request-id", "x-tenant")),
            ("MESHMW_PASSTHROUGH_HEADERS", "none", ()),
            ("MESHMW_BAGGAGE_KEYS", "tenant, Acme.*,!Acme.secret", ("tenant", "Acme.*", "!Acme.secret")),
            ("MESHMW_BAGGAGE_KEYS", "none", ()),
            ("MESHMW_PROPAGATE_TO", "mesh,.Example.com,*.svc.local", ("mesh", ".Example.com", "*.svc.local")),
            ("MESHMW_BAGGAGE_TO", "None", ()),
            ("MESHMW_HEADER_BUDGET", "98304", (98_304, 100)),
            ("MESHMW_HEADER_BUDGET", "98304 / 200", (98_304, 200)),
            ("MESHMW_EXPORTER", "OTLP-HTTP", "otlp-http"),
            ("MESHMW_ENDPOINT", "collector:4317", "http://collector:4317"),
            ("MESHMW_ENDPOINT", "https://[::1]:4318/in?x=1", "https://[::1]:4318/in?x=1"),
            ("MESHMW_SAMPLING_RATIO", "0.25", 0.25),
            ("MESHMW_WARN_WINDOW", "0", 0.0),
            ("MESHMW_RANDOM_FLAG", "0", False),
        ],
    )
    def test_a_variable_is_read(self, monkeypatch, variable, value, expected):
        monkeypatch.setenv(variable, value)
        name = variable.removeprefix("MESHMW_").lower()
        assert getattr(Settings(), name) == expected
        assert Settings.origins() == {name: variable}

    def test_a_list_may_be_an_argument(self):
        settings = Settings(propagators=["b3", "b3", "b3multi"], exclude=("/a", "/a"))
        assert (settings.propagators, settings.exclude) == (("b3", "b3multi"), ("/a",))

    @pytest.mark.parametrize("blank", ["", "  ", " , ,"])
    def test_a_blank_variable_is_not_set(self, monkeypatch, blank):
        for doc in Settings.documentation():
            for variable in (doc.variable, *doc.standard):
                monkeypatch.setenv(variable, blank)
        assert asdict(Settings()) == DEFAULTS
        assert Settings.origins() == {}

    def test_settings_are_frozen_and_hashable(self):
        settings = Settings()
        for name in ("exporter", "exportr"):
            with pytest.raises(FrozenInstanceError):
                setattr(settings, name, "none")
            with pytest.raises(FrozenInstanceError):
                delattr(settings, name)
        assert len({Settings(service_name="a"), Settings(service_name="a"), Settings(service_name="b")}) == 2

    def test_a_subclass_of_a_subclass_keeps_its_prefix(self, monkeypatch):
        class Mine(Settings, env_prefix="SHOP_"):
            pass

        class Narrower(Mine):
            pass

        monkeypatch.setenv("SHOP_SERVICE_NAME", "shop")
        assert (Narrower().service_name, Settings().service_name) == ("shop", None)

    @pytest.mark.parametrize("value", ["true\n", " yes ", "ON"])
    def test_a_boolean_is_trimmed_as_everything_else(self, value, monkeypatch):
        monkeypatch.setenv("MESHMW_KUBERNETES_LABELS", value)
        assert Settings().kubernetes_labels is True

    def test_a_subclass_reads_its_own_variables_under_its_own_prefix(self, monkeypatch, caplog):
        @dataclass(frozen=True, kw_only=True, init=False)
        class Mine(Settings, env_prefix="SHOP_"):
            color: str = setting(text(str.strip, "a color"), default="red", description="The color.")

        monkeypatch.setenv("SHOP_COLOR", "blue")
        monkeypatch.setenv("SHOP_EXPORTER", "zipkin")
        with pytest.raises(SettingsError, match="SHOP_EXPORTER holds"):
            Mine()
        assert Mine(exporter="none").color == "blue"
        assert Mine.documentation()[-1].variable == "SHOP_COLOR"
        assert Mine.documentation()[-1].takes == "a color"
        assert caplog.messages == []


class TestPrecedence:
    """An argument beats MESHMW_*, which beats OTEL_*, which beats the default."""

    CASES = (
        ("service_name", "OTEL_SERVICE_NAME", "standard", "standard", "own", "argument"),
        ("propagators", "OTEL_PROPAGATORS", "b3", ("b3",), "b3multi", ("baggage",)),
        ("exporter", "OTEL_TRACES_EXPORTER", "console", "console", "none", "otlp"),
        ("endpoint", "OTEL_EXPORTER_OTLP_ENDPOINT", "a:1", "https://a:1", "http://b:1", "http://c:1"),
        ("metrics", "OTEL_METRICS_EXPORTER", "prometheus", "prometheus", "none", "prometheus"),
    )

    @pytest.mark.parametrize(("name", "standard", "text", "expected", "own", "argument"), CASES)
    def test_each_step(self, monkeypatch, name, standard, text, expected, own, argument):
        default = getattr(Settings(), name)
        monkeypatch.setenv(standard, text)
        assert getattr(Settings(), name) == expected != default
        assert Settings.origins()[name] == standard
        monkeypatch.setenv(f"MESHMW_{name.upper()}", own)
        own_value = getattr(Settings(), name)
        assert own_value == getattr(Settings(**{name: own}), name) != expected
        assert Settings.origins()[name] == f"MESHMW_{name.upper()}"
        assert getattr(Settings(**{name: argument}), name) == argument != own_value

    def test_the_service_name_variable_beats_the_resource_attribute(self, monkeypatch):
        monkeypatch.setenv("OTEL_RESOURCE_ATTRIBUTES", "service.name=first,,service.name = b%20c ,service.name=")
        assert Settings().service_name == "b c"
        monkeypatch.setenv("OTEL_SERVICE_NAME", "d")
        assert Settings().service_name == "d"


class TestStandardVariables:
    @pytest.mark.parametrize(
        ("value", "expected"),
        [
            ("tracecontext,baggage,b3", ("tracecontext", "baggage", "b3")),
            ("B3Multi , tracecontext,b3multi", ("b3multi", "tracecontext")),
            ("meshmw", ("tracecontext", "baggage")),
            ("b3,meshmw", ("b3", "tracecontext", "baggage")),
            ("none", ()),
            ("tracecontext,none", ()),
        ],
    )
    def test_propagators(self, monkeypatch, caplog, value, expected):
        monkeypatch.setenv("OTEL_PROPAGATORS", value)
        assert Settings().propagators == expected
        assert caplog.messages == []

    @pytest.mark.parametrize(
        ("variables", "expected"),
        [
            ({"OTEL_TRACES_EXPORTER": "otlp"}, "otlp"),
            ({"OTEL_TRACES_EXPORTER": "otlp", "OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf"}, "otlp-http"),
            ({"OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf"}, "otlp-http"),
            (
                {"OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf", "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL": "GRPC"},
                "otlp",
            ),
            ({"OTEL_TRACES_EXPORTER": "otlp_proto_http"}, "otlp-http"),
            ({"OTEL_TRACES_EXPORTER": "none", "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"}, "none"),
        ],
    )
    def test_exporter(self, monkeypatch, caplog, variables, expected):
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        assert Settings().exporter == expected
        assert caplog.messages == []

    @pytest.mark.parametrize(
        ("exporter", "variables", "expected"),
        [
            ("otlp", {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://c:4317"}, "http://c:4317"),
            ("otlp-http", {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://c:4318"}, "http://c:4318/v1/traces"),
            ("otlp-http", {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://c:4318/x/"}, "http://c:4318/x/v1/traces"),
            ("otlp-http", {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://c:4318/x?k=s"}, "http://c:4318/x/v1/traces?k=s"),
            ("otlp-http", {"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://c:4318?k=s"}, "http://c:4318/?k=s"),
            ("otlp-http", {"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://c:4318/x"}, "http://c:4318/x"),
            ("otlp-http", {"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://c:4318"}, "http://c:4318/"),
            (
                "otlp",
                {"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "t:1", "OTEL_EXPORTER_OTLP_ENDPOINT": "all:1"},
                "https://t:1",
            ),
            ("otlp", {"OTEL_EXPORTER_OTLP_ENDPOINT": "c:1", "OTEL_EXPORTER_OTLP_INSECURE": "False"}, "https://c:1"),
            (
                "otlp",
                {
                    "OTEL_EXPORTER_OTLP_ENDPOINT": "c:1",
                    "OTEL_EXPORTER_OTLP_INSECURE": "false",
                    "OTEL_EXPORTER_OTLP_TRACES_INSECURE": "true",
                },
                "http://c:1",
            ),
        ],
    )
    def test_endpoint(self, monkeypatch, exporter, variables, expected):
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        assert Settings(exporter=exporter).endpoint == expected
        monkeypatch.setenv("MESHMW_EXPORTER", exporter)
        assert Settings().endpoint == expected

    def test_the_endpoint_follows_the_standard_exporter(self, monkeypatch):
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_PROTOCOL", "http/protobuf")
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://c:4318")
        assert Settings().endpoint == "http://c:4318/v1/traces"

    @pytest.mark.parametrize(
        ("variables", "warning"),
        [
            ({"OTEL_SERVICE_NAME": "a\nb"}, r"OTEL_SERVICE_NAME holds 'a\nb', which is ignored"),
            ({"OTEL_SERVICE_NAME": "x" * 256}, "which is ignored; meshmw takes 1 to 255 printable characters"),
            ({"OTEL_RESOURCE_ATTRIBUTES": "service.name=a%0ab"}, r"OTEL_RESOURCE_ATTRIBUTES holds 'a\nb', which"),
            (
                {"OTEL_PROPAGATORS": "xray"},
                "OTEL_PROPAGATORS holds 'xray', which is ignored; meshmw takes tracecontext",
            ),
            ({"OTEL_TRACES_EXPORTER": "zipkin"}, "OTEL_TRACES_EXPORTER holds 'zipkin', which is ignored"),
            ({"OTEL_EXPORTER_OTLP_PROTOCOL": "http/xml"}, "OTEL_EXPORTER_OTLP_PROTOCOL holds 'http/xml', which"),
            (
                {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://u:p@c"},
                "OTEL_EXPORTER_OTLP_ENDPOINT holds 'http://***@c', which",
            ),
        ],
    )
    def test_an_unknown_value_is_warned_of_once_and_ignored(self, monkeypatch, caplog, variables, warning):
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        assert asdict(Settings()) == DEFAULTS
        assert [record.levelno for record in caplog.records] == [logging.WARNING]
        assert warning in caplog.text

    def test_what_is_known_beside_an_unknown_value_is_kept(self, monkeypatch, caplog):
        monkeypatch.setenv("OTEL_PROPAGATORS", "xray,b3")
        monkeypatch.setenv("OTEL_TRACES_EXPORTER", "console,otlp")
        assert (Settings().propagators, Settings().exporter) == (("b3",), "console")

    def test_a_value_that_is_decided_elsewhere_is_not_warned_of(self, monkeypatch, caplog):
        monkeypatch.setenv("OTEL_PROPAGATORS", "xray")
        Settings(propagators="b3")
        assert caplog.messages == []

    def test_hidden_variables_come_back(self, monkeypatch):
        monkeypatch.setenv("OTEL_SDK_DISABLED", "true")
        monkeypatch.setenv("OTEL_SERVICE_NAME", " ")
        with hidden("OTEL_SDK_DISABLED", "OTEL_PROPAGATORS"):
            assert not is_set("OTEL_SDK_DISABLED")
        assert is_set("OTEL_SDK_DISABLED")
        assert not is_set("OTEL_SERVICE_NAME")
        assert not is_set("OTEL_PROPAGATORS")


def test_dir_shows_what_a_user_imports():
    assert dir(meshmw.settings) == ["SettingDoc", "Settings"]
    assert dir(meshmw.propagator) == ["Extraction", "MeshPropagator", "Rejections"]


def test_every_setting_is_documented_in_one_sentence():
    for doc in Settings.documentation():
        assert doc.description.endswith(".")
        assert doc.description.count(". ") == 0
        assert doc.takes
    first = Settings.documentation()[0]
    assert (first.name, first.variable, first.default) == ("service_name", "MESHMW_SERVICE_NAME", "")


class TestPipeline:
    @pytest.mark.parametrize(
        ("variable", "value", "name", "expected"),
        [
            ("OTEL_METRICS_EXPORTER", "console,Prometheus,otlp", "metrics", "prometheus"),
            ("OTEL_METRICS_EXPORTER", "otlp,prometheus", "metrics", "otlp"),
            ("OTEL_METRICS_EXPORTER", "none", "metrics", "none"),
            ("OTEL_METRICS_EXPORTER", "console", "metrics", "none"),
        ],
    )
    def test_a_standard_variable_of_the_pipeline_is_read(self, monkeypatch, caplog, variable, value, name, expected):
        monkeypatch.setenv(variable, value)
        assert getattr(Settings(), name) == expected
        assert caplog.messages == []

    @pytest.mark.parametrize("rule", ["/a", "/a=2", "/a=nan", "/a=often", "a=1", "=1", "/a=-0.1"])
    def test_a_rule_without_a_path_or_a_share_is_a_fault(self, rule):
        (fault,) = faults_of(sampling_rules=["/fine=1", rule])
        assert fault == (
            f"argument sampling_rules holds {rule!r}; it takes a list of paths or patterns, each with a share, "
            "such as /health=0,/api/*=0.5"
        )

    @pytest.mark.parametrize("size", ["0", "few", "-1", "1048577", "1.5", "9" * 5_000])
    def test_a_queue_of_no_size_is_one_fault(self, size):
        (fault,) = faults_of(batching=f"high/{size}")
        assert fault.startswith(f"argument batching holds 'high/{size[:55]}'")
        assert "; it takes moderate or high; with /auto " in fault


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (98_304, (98_304, 100)),
        ("98304", (98_304, 100)),
        ("98304/200", (98_304, 200)),
        ((98_304, 200), (98_304, 200)),
        ([98_304, 200], (98_304, 200)),
    ],
)
def test_a_header_budget_is_two_numbers_of_which_the_second_may_be_left_out(given, expected):
    assert Settings(header_budget=given).header_budget == expected


@pytest.mark.parametrize("given", [None, 4_095, (), (98_304, 200, 1), "many", {"bytes": 98_304}])
def test_a_header_budget_that_is_none_is_a_fault(given):
    (fault,) = faults_of(header_budget=given)
    assert "; it takes bytes from 4096 to 8388608, alone or with /20 to /10000 headers" in fault


@pytest.mark.parametrize("name", ["header_budget", "baggage_keys", "batching", "propagators", "endpoint"])
def test_a_default_can_be_written_into_its_variable_as_it_is_shown(monkeypatch, name):
    doc = next(doc for doc in Settings.documentation() if doc.name == name)
    monkeypatch.setenv(doc.variable, doc.default)
    assert asdict(Settings()) == DEFAULTS


class TestDisabled:
    """Whether the SDK is disabled is for the standard variable to say, in the specification's words."""

    @pytest.mark.parametrize(
        ("value", "disabled", "warned"),
        [
            ("true", True, False),
            ("TRUE", True, False),
            (" True ", True, False),
            ("false", False, False),
            ("False", False, False),
            ("", False, False),
            (" ", False, False),
            ("1", False, True),
            ("yes", False, True),
            ("on", False, True),
        ],
    )
    def test_true_alone_disables_it_and_what_is_no_boolean_is_warned_of(
        self, monkeypatch, caplog, value, disabled, warned
    ):
        monkeypatch.setenv("OTEL_SDK_DISABLED", value)
        assert sdk_disabled() is disabled
        expected = (
            f"OTEL_SDK_DISABLED holds '{value}', which is ignored; meshmw takes true or false; it counts as false"
        )
        assert caplog.messages == ([expected] if warned else [])

    def test_without_the_variable_it_is_not_disabled(self, monkeypatch, caplog):
        monkeypatch.delenv("OTEL_SDK_DISABLED", raising=False)
        assert not sdk_disabled()
        assert caplog.messages == []


# What takes a value that a setting stands for: its arguments by the setting's name.
TAKERS = {
    MeshPropagator: {
        "propagators": "propagators",
        "traceparent_policy": "traceparent_policy",
        "duplicates": "duplicates",
        "prefer": "prefer",
        "trust": "trust",
        "baggage_max_members": "baggage_max_members",
        "baggage_max_bytes": "baggage_max_bytes",
        "baggage_keys": "baggage_keys",
        "propagate_to": "propagate_to",
        "baggage_to": "baggage_to",
        "header_budget": "header_budget",
        "passthrough_headers": "passthrough_headers",
        "warn_window": "warn_window",
    },
    BaggageKeys: {"patterns": "baggage_keys"},
    TrustPolicy: {"trust": "trust", "trusted_peers": "trusted_peers"},
    PathPatterns: {"patterns": "exclude"},
    Rejections: {"window": "warn_window"},
    Runtime: {
        "server_spans": "server_spans",
        "messaging_parent": "messaging_parent",
        "trusted_peers": "trusted_peers",
    },
    asgi.BaggageSizeFilter: {
        "max_members": "baggage_max_members",
        "max_bytes": "baggage_max_bytes",
        "warn_window": "warn_window",
    },
    wsgi.BaggageSizeFilter: {
        "max_members": "baggage_max_members",
        "max_bytes": "baggage_max_bytes",
        "warn_window": "warn_window",
    },
    wire.parse_baggage: {"max_members": "baggage_max_members", "max_bytes": "baggage_max_bytes"},
    wire.format_baggage: {"max_members": "baggage_max_members", "max_bytes": "baggage_max_bytes"},
    wire.read_traceparent: {"policy": "traceparent_policy"},
    wire.TraceParent.parse: {"policy": "traceparent_policy"},
}


@pytest.mark.parametrize("taker", TAKERS, ids=lambda taker: taker.__qualname__)
def test_whoever_is_told_nothing_does_what_the_settings_do_by_default(taker):
    parameters = inspect.signature(taker).parameters
    defaults = {argument: parameters[argument].default for argument in TAKERS[taker]}
    assert defaults == {argument: DEFAULTS[name] for argument, name in TAKERS[taker].items()}


def test_a_propagator_takes_the_settings_names_and_no_others():
    taken = TAKERS[MeshPropagator]
    assert list(taken) == list(taken.values()) == list(inspect.signature(MeshPropagator).parameters)


def test_a_budget_by_itself_is_the_settings_default():
    parameters = inspect.signature(HeaderBudget).parameters.values()
    assert tuple(parameter.default for parameter in parameters) == DEFAULTS["header_budget"]


def test_a_propagator_made_of_default_settings_is_one_made_of_nothing():
    made = MeshPropagator.from_settings(Settings())
    assert (made.formats, made.passthrough, made.trust) == (("tracecontext", "baggage"), ("x-request-id",), "continue")
