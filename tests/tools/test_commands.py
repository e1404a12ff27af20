"""The `meshmw` command: what it prints and how it ends; what it finds out is tested below it."""

from __future__ import annotations

import gzip
import importlib.util
import io
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
import tomllib
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest

from meshmw import __version__
from meshmw.__main__ import main
from tests.programs import envoy_or_skip

VALID = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
COMMANDS = ("inspect", "doctor", "access-log", "verify", "mesh-config", "demo", "settings")


def line(traceparent: str | None, rid: str = "r", agent: str = "a", path: str = "/a") -> str:
    fields = {"path": path, "method": "GET", "request_id": rid, "user_agent": agent, "traceparent": traceparent}
    return json.dumps(fields) + "\n"


@pytest.fixture
def log(tmp_path):
    path = tmp_path / "edge.log"
    path.write_text(line(VALID) * 8 + line(None) + line("00-xyz"))
    return path


def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "meshmw", *arguments]
    return subprocess.run(
        command, capture_output=True, text=True, timeout=60, check=False, env={**os.environ, **environment}
    )


def test_the_version(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"meshmw {__version__}\n"
    assert main(["--version", "settings"]) == 0
    assert capsys.readouterr().out == f"meshmw {__version__}\n"


@pytest.mark.parametrize("command", COMMANDS)
def test_help_says_what_a_command_does_and_how_it_ends(command, capsys):
    assert main([command, "--help"]) == 0
    out = capsys.readouterr().out
    assert out.startswith(f"Usage: meshmw {command}")
    assert "--json" in out
    assert "Exit codes: 0 nothing is wrong, 1 something was found" in " ".join(out.split())


def test_help_names_every_command(capsys):
    main(["--help"])
    out = capsys.readouterr().out
    assert all(f"\n  {command} " in out for command in COMMANDS)


@pytest.mark.parametrize("arguments", [["unknown"], ["settings", "more"], ["inspect", "--nothing"], ["mesh-config"]])
def test_misuse_ends_with_2_and_the_usage(arguments, capsys):
    assert main(arguments) == 2
    assert "Usage: meshmw" in capsys.readouterr().err


def test_a_bare_install_says_which_extra_brings_the_command(monkeypatch, capsys):
    for name in [name for name in sys.modules if name.startswith("meshmw._tools.")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "typer", None)
    assert main(["settings"]) == 2
    error = "meshmw: the command line is not installed: run  pip install 'meshmw[cli]'\n"
    assert capsys.readouterr().err == error
    assert main(["--version"]) == 0


def test_another_module_that_is_missing_is_no_missing_extra(monkeypatch):
    monkeypatch.delitem(sys.modules, "meshmw._tools.commands", raising=False)
    monkeypatch.setitem(sys.modules, "meshmw._tools.commands", None)
    with pytest.raises(ModuleNotFoundError, match=r"meshmw\._tools\.commands"):
        main(["settings"])


def test_bad_settings_are_printed_and_end_with_2(monkeypatch, capsys):
    monkeypatch.setenv("MESHMW_EXPORTER", "zipkin")
    assert main(["settings"]) == 2
    assert "MESHMW_EXPORTER holds 'zipkin'" in capsys.readouterr().err


def test_the_switch_for_all_telemetry_is_printed_too(monkeypatch, capsys):
    for text, value, origin in ((None, "false", None), ("TRUE", "true", "OTEL_SDK_DISABLED")):
        if text is not None:
            monkeypatch.setenv("OTEL_SDK_DISABLED", text)
        assert main(["settings"]) == 0
        assert f"OTEL_SDK_DISABLED={value}  ({f'from {origin}' if origin else 'default'})" in capsys.readouterr().out
        assert main(["settings", "--json"]) == 0
        entry = json.loads(capsys.readouterr().out)[-1]
        assert (entry["variable"], entry["value"], entry["from"]) == ("OTEL_SDK_DISABLED", value, origin)


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        (None, "", "10 seconds"),
        ("OTEL_EXPORTER_OTLP_TIMEOUT", "10", "10 seconds"),
        ("OTEL_EXPORTER_OTLP_TIMEOUT", "7500", "7.5 seconds"),
        ("OTEL_EXPORTER_OTLP_TRACES_TIMEOUT", "100000", "60 seconds"),
    ],
)
def test_the_time_that_an_export_may_take_is_printed_as_it_was_understood(monkeypatch, capsys, name, text, value):
    if name is not None:
        monkeypatch.setenv(name, text)
    assert main(["settings"]) == 0
    origin = f"from {name}" if name else "default"
    assert f"OTEL_EXPORTER_OTLP_TRACES_TIMEOUT={value}  ({origin})" in capsys.readouterr().out


def test_settings_are_printed_with_their_value_and_where_it_comes_from(monkeypatch, capsys):
    monkeypatch.setenv("MESHMW_PROPAGATORS", "b3,tracecontext")
    monkeypatch.setenv("OTEL_SERVICE_NAME", "checkout")
    assert main(["settings"]) == 0
    out = capsys.readouterr().out
    assert "MESHMW_PROPAGATORS=b3,tracecontext  (from MESHMW_PROPAGATORS)\n" in out
    assert "MESHMW_SERVICE_NAME=checkout  (from OTEL_SERVICE_NAME)\n" in out
    assert "MESHMW_ENDPOINT=(none)  (default)\n" in out
    assert "    Where it is not set: OTEL_PROPAGATORS.\n" in out
    assert main(["settings", "--json"]) == 0
    found = {each["variable"]: each for each in json.loads(capsys.readouterr().out)}
    assert found["MESHMW_SERVICE_NAME"]["from"] == "OTEL_SERVICE_NAME"


def test_inspect(capsys):
    assert main(["inspect", VALID]) == 0
    assert re.search(r"parent-id +b7ad6b7169203331 +the caller's span", capsys.readouterr().out)
    assert main(["inspect", "00-xyz", "baggage: a=1"]) == 1
    out = capsys.readouterr().out
    assert "\n  00-xyz\n     ^ hex: something else than" in out
    assert "\n\nbaggage: valid\n" in out
    assert main(["inspect", "-H", "b3", "0", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)[0]["header"] == "b3"
    assert main(["inspect", "baggage: " + ",".join(f"k{n}=1" for n in range(70))]) == 1
    assert "too_many_members" in capsys.readouterr().out


def test_inspect_reads_lines_and_never_prints_what_they_hold_raw(monkeypatch, capsys):
    raw = f"traceparent: {VALID}\r\n\ntracestate: a=\x1b[31m\n".encode() + b"baggage: a=\xff\n"
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(raw)))
    assert main(["inspect", "-"]) == 1
    out = capsys.readouterr().out
    assert "\x1b" not in out
    assert "a=\\x1b[31m" in out
    assert "a=\\udcff" in out
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"\n")))
    assert main(["inspect", "-"]) == 2
    assert "no header to inspect" in capsys.readouterr().err


def test_a_narrow_terminal_still_puts_the_caret_under_the_fault(monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "30")
    assert main(["inspect", "tracestate: " + "a" * 100 + "=1,B=2"]) == 1
    lines = capsys.readouterr().out.splitlines()
    at = next(index for index, text in enumerate(lines) if "^" in text)
    assert lines[at - 1][lines[at].index("^")] == "B"
    assert main(["inspect", "00-0af7651916cd43dd84448eb21c"]) == 1
    assert "length" in capsys.readouterr().out
    monkeypatch.setenv("COLUMNS", "24")
    assert main(["inspect", "00-0af7651916cd43dd8"]) == 1
    out = capsys.readouterr().out.splitlines()
    assert out[2].index("^") == 22


def test_colours_are_for_terminals_that_want_them(monkeypatch, capsys):
    monkeypatch.setenv("FORCE_COLOR", "1")
    main(["inspect", "00-xyz"])
    assert "\x1b[" in capsys.readouterr().out
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setenv("TERM", "dumb")
    main(["inspect", "00-xyz"])
    assert "\x1b[" not in capsys.readouterr().out


def test_access_log_prints_shares_and_findings(log, capsys):
    assert main(["access-log", f"edge={log}"]) == 1
    out = capsys.readouterr().out
    assert "edge: requests: 10, lines: 10" in out
    assert re.search(r"GET /a +- +10 +80\.0% +10\.0% +10\.0%", out)
    assert "[access-log.malformed]" in out
    assert "malformed: a header that strict readers refuse" in out


def test_access_log_of_several_hops(tmp_path, capsys):
    first, second = tmp_path / "a.log", tmp_path / "b.log.gz"
    first.write_text("".join(line(VALID, f"r{n}", path=f"/{'x' * n}") for n in range(1, 9)))
    second.write_bytes(gzip.compress("".join(line(None, f"r{n}") for n in range(1, 9)).encode()))
    assert main(["access-log", str(first), str(second), "--top=3"]) == 1
    out = capsys.readouterr().out
    assert "all 8" in out
    assert re.search(r"a\.log +b\.log\.gz +8 +8 +1 +0 +0", out)
    assert "[access-log.lost]" in out


def test_access_log_says_what_share_was_joined(tmp_path, monkeypatch, capsys):
    from meshmw._tools.access_log import Analysis

    # Fifty thousand ids are many seconds' work.
    defaults = tuple(300 if each == 50_000 else each for each in Analysis.__init__.__defaults__)
    assert 300 in defaults
    monkeypatch.setattr(Analysis.__init__, "__defaults__", defaults)
    path = tmp_path / "a.log"
    path.write_text("".join(line(VALID, f"r{n}") for n in range(400)))
    assert main(["access-log", str(path), f"again={path}"]) == 0
    assert "(one in 2 ids was joined)" in capsys.readouterr().out


def test_access_log_takes_formats_fields_and_standard_input(monkeypatch, capsys):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(f"{VALID} /a\n".encode())))
    assert main(["access-log", "--format", "%REQ(TRACEPARENT)% %REQ(:PATH)%"]) == 0
    assert "stdin: requests: 1" in capsys.readouterr().out
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b'{"labels":{"tp":"-"}}\n')))
    assert main(["access-log", "--field", "traceparent=labels.tp", "--max-missing=5", "-", "--json"]) == 1
    assert json.loads(capsys.readouterr().out)["findings"][0]["code"] == "access-log.missing"
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"/a\n")))
    assert main(["access-log", "--format", "%REQ(:PATH)%"]) == 1
    assert "access-log.not-logged" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "fault"),
    [
        (["--field", "traceparent"], "--field takes FIELD=KEY, not 'traceparent'"),
        (["--format", "nginx"], "format takes auto, json, envoy, istio or an Envoy format string, not 'nginx'"),
        (["--follow", "a", "b"], "--follow takes one log"),
        (["none.log"], "none.log: No such file"),
        (["edge=none.log"], "none.log: No such file"),
    ],
)
def test_access_log_that_cannot_be_read_is_said_in_one_line(arguments, fault, capsys):
    assert main(["access-log", *arguments]) == 2
    error = capsys.readouterr().err
    assert fault in error
    assert error.count("\n") == 1


def test_access_log_of_an_unknown_format(tmp_path, capsys):
    path = tmp_path / "a=b.log"
    path.write_text("what is this\n" * 3)
    assert main(["access-log", str(path)]) == 2
    assert "give the proxy's own format string with --format" in capsys.readouterr().err


def wait_for(what, seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_access_log_is_followed_until_ctrl_c(log, tmp_path):
    told = tmp_path / "told"
    command = [sys.executable, "-m", "meshmw", "access-log", "--follow", "--format=json", str(log)]
    with told.open("wb") as errors:
        following = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors)
        try:
            wait_for(lambda: b"malformed (hex)" in told.read_bytes())
            with log.open("a") as file:
                file.write(line("", path="/new?secret=1") * 2 + line("-", path="-").replace("GET", "-"))
            wait_for(lambda: b"/new" in told.read_bytes())
            following.send_signal(signal.SIGINT)
            out, _ = following.communicate(timeout=60)
        finally:
            following.kill()
            following.wait()
    assert following.returncode == 1
    assert b"requests: 13" in out
    assert told.read_text().splitlines() == [
        "edge.log: missing  GET /a",
        "edge.log: malformed (hex)  GET /a",
        "edge.log: empty  GET /new",
    ]


def test_what_is_printed_while_following_is_bounded_in_each_minute(capsys):
    from meshmw._tools.access_log.command import InvalidRequestNotices
    from meshmw._tools.access_log.counts import LineTrace

    now = [0.0]
    notices = InvalidRequestNotices(lambda: now[0])
    for minute in range(3):
        now[0] = 60.0 * minute
        for number in range(1_000):
            notices("edge", {"path": f"/{number}"}, LineTrace("missing"))
        printed = capsys.readouterr().err.splitlines()
        assert printed[0] == "edge: missing  - /0"
        assert len(printed) < 300


def test_a_reader_that_has_enough_is_no_error(log):
    script = f"{sys.executable} -m meshmw mesh-config envoy | head -n 1; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_closed_pipe_is_no_error(monkeypatch):
    from meshmw._tools import output

    read, write = os.pipe()
    os.close(read)
    with open(write, "w") as closed:
        monkeypatch.setattr(sys, "stdout", closed)

        @output.as_command
        def command() -> int:
            raise BrokenPipeError

        with pytest.raises(output.typer.Exit) as ended:
            command()
    assert ended.value.exit_code == 0


def test_ctrl_c_ends_with_130(monkeypatch, capsys):
    from meshmw._tools import inspect as command

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(command, "inspect_header", interrupt)
    assert main(["inspect", "x"]) == 130
    assert capsys.readouterr().err == "stopped\n"


def test_doctor_without_an_application(monkeypatch, capsys):
    monkeypatch.setenv("MESHMW_EXPORTER", "none")
    assert main(["doctor"]) == 1
    out = capsys.readouterr().out
    assert "this process, without an application" in out
    assert "[exporter.nowhere]" in out
    assert re.search(r"\n\d to mend\n$", out)


def test_doctor_loads_an_application_and_reads_a_dump(tmp_path, monkeypatch, capsys):
    (tmp_path / "some_shop.py").write_text("import sys\nprint('noise')\nsys.path.pop(0)\nasync def app(*_): ...\n")
    dump = tmp_path / "dump.json"
    manager = {
        "@type": "x.HttpConnectionManager",
        "use_remote_address": True,
        "early_header_mutation_extensions": [{"typed_config": {"mutations": [{"remove": "traceparent"}]}}],
    }
    manager["tracing"] = {
        "provider": {"name": "opentelemetry", "typed_config": {"sampler": {"name": "a.parent_based"}}}
    }
    chains = [{"filters": [{"typed_config": manager}]}]
    dump.write_text(
        json.dumps({"configs": [{"static_listeners": [{"listener": {"name": "in", "filter_chains": chains}}]}]})
    )
    monkeypatch.setenv("MESHMW_EXPORTER", "none")
    monkeypatch.setenv("COLUMNS", "200")
    arguments = ["doctor", "some_shop:app", f"--app-dir={tmp_path}", f"--config-dump={dump}"]
    assert main(arguments) == 1
    printed = capsys.readouterr()
    out = " ".join(printed.out.split())
    assert printed.err == "noise\n"
    assert "some_shop:app" in out
    assert "noise" not in out
    assert "[middleware.missing]" in out
    assert "[headers.removed-early]" in out
    assert "of unknown version" in out
    assert "made, samples, replaced" in out
    monkeypatch.delitem(sys.modules, "some_shop")


def test_doctor_that_cannot_look_is_said_in_one_line(capsys):
    for arguments, fault in ((["nothing"], "is not MODULE:APP"), (["--envoy-admin", "127.0.0.1:9"], "cannot be asked")):
        assert main(["doctor", *arguments]) == 2
        assert fault in capsys.readouterr().err


def test_mesh_config(capsys):
    assert main(["mesh-config", "istio", "--sampling=25"]) == 0
    assert "randomSamplingPercentage: 25\n" in capsys.readouterr().out
    assert main(["mesh-config", "nginx", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["text"].startswith("# A server block")
    assert main(["mesh-config", "consul"]) == 2
    assert "or k8s, not 'consul'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "fault"),
    [
        (["--variant", "zipkin"], "--variant takes w3c, unsampled, malformed, b3 or both, not 'zipkin'"),
        (["--header", "nonsense"], "--header takes 'NAME: VALUE'"),
        (["--format", "nginx"], "an Envoy format string, not 'nginx'"),
        (["--header", "Authorization: Bearer geheim\nx"], "--header 'Authorization': its value holds a control"),
        (["--otlp", "x"], "--otlp takes one or two port numbers"),
        (["--otlp", "999999"], "--otlp takes one or two port numbers"),
        (["--access-log", "/proc/1"], "/proc/1: Is a directory"),
        ([], "did not answer"),
    ],
)
def test_verify_that_cannot_be_run_is_said(arguments, fault, capsys):
    assert main(["verify", "http://127.0.0.1:9/", "--header", "X: 1", *arguments]) == 2
    said = capsys.readouterr().err
    assert fault in said
    assert "geheim" not in said


def test_verify_does_not_share_a_port(capsys):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert main(["verify", "http://127.0.0.1:9/", "--otlp", f"0,{port}"]) == 2
        assert main(["verify", "http://127.0.0.1:9/", "--otlp", str(port)]) == 2
    assert capsys.readouterr().err.count("a port cannot be opened") == 2


@pytest.fixture
def echo():
    """A server that answers with the headers that it got, and is what an application and a backend are."""
    import http.server
    import threading

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            text = json.dumps({"headers": {name.lower(): value for name, value in self.headers.items()}}).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text)

        def log_message(self, format: str, *args: object) -> None:
            """Stay silent."""

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def test_verify_by_an_echo_alone(echo, tmp_path, capsys):
    assert main(["verify", f"{echo}/"]) == 0
    out = capsys.readouterr().out
    assert out.endswith("ONE trace: 1 sighting of its headers, all of one trace\n")
    assert "00-00000000000000000000000000000001-0000000000000001-01" in out.replace("\n", "").replace(" ", "")
    assert main(["verify", f"{echo}/", "--variant=b3"]) == 0
    assert "b3 " in capsys.readouterr().out
    assert main(["verify", f"{echo}/", "--header", "traceparent: 00-xyz", f"--report={tmp_path}"]) == 2
    assert "Is a directory" in capsys.readouterr().err
    assert main(["verify", f"{echo}/", "--header", "traceparent: 00-xyz"]) == 1
    out = capsys.readouterr().out
    assert "UNKNOWN: the traceparent that was sent is malformed" in out
    assert main(["verify", f"{echo}/", "--variant=malformed"]) == 1
    assert "UNKNOWN: the traceparent that was sent is malformed" in capsys.readouterr().out


def test_verify_asks_backends(echo, tmp_path, capsys):
    log_path = tmp_path / "edge.log"
    log_path.write_text(line(None))
    arguments = ["--jaeger", echo, "--tempo", echo, "--otlp", "0", "-a", str(log_path), "--timeout=0.2"]
    assert main(["verify", f"{echo}/", *arguments]) == 1
    out = capsys.readouterr().out
    assert "[verify.no-spans]" in out
    assert "access log edge: 0 hops" in out


@pytest.mark.parametrize("option", ["--jaeger", "--tempo"])
def test_a_backend_that_cannot_be_asked_is_no_break(echo, option, capsys):
    assert main(["verify", f"{echo}/", option, "http://127.0.0.1:9", "--timeout=0"]) == 2
    out = capsys.readouterr().out
    assert "[verify.backend]" in out
    assert "ONE trace: 1 sighting of its headers, all of one trace, as far as is known: nothing more of " in out
    assert "BROKEN" not in out
    # What is broken is broken, whatever else is known.
    arguments = ["--header", "tracestate: a=1", "--variant=b3", option, "http://127.0.0.1:9", "--timeout=0"]
    assert main(["verify", f"{echo}/", *arguments]) == 2


def test_a_log_that_is_not_there_is_said(echo, tmp_path, capsys):
    gone = tmp_path / "gone.log"
    assert main(["verify", f"{echo}/", "-a", f"edge={gone}", "--timeout=0"]) == 1
    out = capsys.readouterr().out.replace("\n", "").replace(" ", "")
    assert f"thereisnofile{gone}" in out
    assert "[verify.no-log]" in out


def test_headers_for_backends_are_sent_to_them_alone_and_never_printed(echo, capsys):
    tenant = ["--backend-header", "X-Scope-OrgID: geheim", "--backend-header", "Authorization: Bearer geheim"]
    assert main(["verify", f"{echo}/", "--tempo", echo, *tenant, "--timeout=0"]) == 1
    assert main(["verify", f"{echo}/", "--jaeger", "http://127.0.0.1:9", *tenant, "--timeout=0", "--json"]) == 2
    for wrong in ("geheim", "geheim: Bearer\x07 x", "a b: geheim"):
        assert main(["verify", f"{echo}/", "--tempo", echo, "--backend-header", wrong]) == 2
    captured = capsys.readouterr()
    assert "--backend-header takes 'NAME: VALUE'" in captured.err
    assert "Bearer" not in captured.out + captured.err


def test_a_link_is_one_line_in_a_narrow_terminal(capsys, monkeypatch):
    from meshmw._tools.verify.command import print_journey
    from meshmw._tools.verify.journey import Journey

    monkeypatch.setenv("COLUMNS", "40")
    link = f"http://127.0.0.1:16686/trace/{1:032x}"
    print_journey(Journey(title="GET /", verdict="one", summary="ONE trace", links=(link,)))
    assert capsys.readouterr().out.endswith(f"ONE trace\nsee it at {link}\n")


def test_spans_are_drawn_with_proxies_and_orphans(capsys):
    from meshmw._tools.verify.command import print_journey
    from meshmw._tools.verify.journey import Hop, Journey, JourneySpan, with_orphans

    spans = [
        JourneySpan(trace_id="a" * 32, span_id="1", service="edge", kind="SERVER", name="ingress", maker="proxy"),
        JourneySpan(trace_id="a" * 32, span_id="2", parent_id="1", service="shop", name="GET"),
        JourneySpan(trace_id="b" * 32, span_id="3", parent_id="9", service="stock\x1b", name="GET"),
    ]
    hop = Hop(name="edge", kind="proxy", received={"traceparent": None, "b3": "0"}, sent={"b3": None})
    print_journey(Journey(title="GET /", verdict="broken", summary="BROKEN", hops=(hop,), spans=with_orphans(spans)))
    out = capsys.readouterr().out
    assert "└── edge SERVER ingress 0.0 ms  proxy\n    └── shop INTERNAL GET 0.0 ms" in out
    assert "stock\\x1b INTERNAL GET 0.0 ms  orphan: its parent 9 is missing" in out
    assert "GET /: no answer" in out


def test_spans_that_are_deep_or_each_others_parents_are_drawn_once(capsys):
    from meshmw._tools.verify.command import print_journey
    from meshmw._tools.verify.journey import Journey, JourneySpan, with_orphans

    deep = [JourneySpan(trace_id="a" * 32, span_id=str(n), parent_id=str(n - 1), start_ns=n) for n in range(1, 2000)]
    # As Zipkin's shared spans, whose ids a client and its server have in common.
    deep += [JourneySpan(trace_id="a" * 32, span_id=str(n), parent_id=str(n - 1), kind="SERVER") for n in range(1, 99)]
    ring = [
        JourneySpan(trace_id="b" * 32, span_id="1", parent_id="2"),
        JourneySpan(trace_id="b" * 32, span_id="2", parent_id="1"),
    ]
    spans = with_orphans([*deep, *ring], "0")
    print_journey(Journey(title="GET /", verdict="broken", summary="BROKEN", spans=spans))
    out = capsys.readouterr().out
    assert out.count(" ms") == len(spans)
    assert f"trace {'b' * 32}\n└── " in out


def test_what_a_terminal_cannot_print_and_what_no_disk_takes_is_no_crash(tmp_path):
    odd = json.dumps({"path": "/\u4e2d", "method": "GET", "traceparent": f"00-{1:032x}-{1:016x}-01"})
    (tmp_path / "log").write_text(odd)
    done = run("access-log", str(tmp_path / "log"), PYTHONIOENCODING="ascii")
    assert (done.returncode, done.stderr) == (0, "")
    assert "GET /\\u4e2d" in done.stdout
    for redirected, code, said in ((">&-", 1, ""), (">/dev/full", 2, "meshmw: [Errno 28] No space left on device\n")):
        command = ["sh", "-c", f'"$0" -m meshmw inspect 00-xyz {redirected}', sys.executable]
        ended = subprocess.run(command, stderr=subprocess.PIPE, text=True, timeout=60, check=False)
        assert (ended.returncode, ended.stderr) == (code, said)


def test_the_demo_serves_one_trace_until_ctrl_c(request):
    envoy_or_skip(request)
    command = [sys.executable, "-m", "meshmw", "demo", "--serve"]
    # With nothing on the PATH it leaves RabbitMQ out, whose start takes longer than all the rest.
    environment = {**os.environ, "PYTHONUNBUFFERED": "1", "PATH": ""}
    serving = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=environment)
    try:
        lines = iter(serving.stdout.readline, b"")
        assert any(b"ONE trace: " in text for text in lines)
        assert any(b"Ctrl-C stops everything." in text for text in lines)
        serving.send_signal(signal.SIGINT)
        serving.communicate(timeout=60)
    finally:
        serving.kill()
        serving.wait()
    assert serving.returncode == 130


def test_the_demo_hands_on_arguments_output_and_exit_code(tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "sample_apps").mkdir()
    (tmp_path / "sample_apps" / "__init__.py").touch()
    (tmp_path / "sample_apps" / "__main__.py").write_text("import sys\nprint(*sys.argv[1:])\nsys.exit(1)\n")
    monkeypatch.setattr("meshmw._tools.commands.SAMPLE_FOLDERS", (tmp_path,))
    assert main(["demo", "--without-meshmw", "--json"]) == 1
    assert capfd.readouterr().out == "--without-meshmw --json --port=0\n"
    assert main(["demo", "--with-contrib"]) == 1
    assert capfd.readouterr().out == "--with-contrib --port=0\n"
    assert main(["demo", "--jaeger=http://j:1"]) == 1
    assert capfd.readouterr().out == "--port=0 --jaeger=http://j:1\n"
    assert main(["demo", "--port=8080", "--report=report.html"]) == 1
    assert capfd.readouterr().out == f"--port=8080 --report={tmp_path / 'report.html'}\n"


def test_the_demo_that_cannot_run_says_why(tmp_path, capsys):
    from meshmw._tools.commands import SAMPLE_FOLDERS, find_samples
    from meshmw._tools.output import CannotRunError

    assert main(["demo", "--with-contrib", "--without-meshmw"]) == 2
    assert "choose one" in capsys.readouterr().err
    assert main(["demo", "--json", "--serve"]) == 2
    assert "--json prints one request" in capsys.readouterr().err
    with pytest.raises(CannotRunError, match="are not where they should be"):
        find_samples((tmp_path,))
    assert (find_samples(SAMPLE_FOLDERS) / "sample_apps" / "mesh.py").exists()
    (tmp_path / "sample_apps").mkdir()
    (tmp_path / "sample_apps" / "__main__.py").touch()
    assert find_samples((tmp_path, *SAMPLE_FOLDERS)) == tmp_path
    assert Path(tmp_path).is_dir()


def test_the_command_runs_as_a_module_under_its_own_name():
    assert run("--version").stdout == f"meshmw {__version__}\n"
    done = run("inspect", "00-xyz", COLUMNS="20", TERM="dumb")
    assert (done.returncode, done.stderr) == (1, "")
    assert run("inspect", "--nothing").stderr.startswith("Usage: meshmw inspect ")
    assert importlib.util.find_spec("meshmw.cli") is None


def test_the_script_is_the_same_command():
    with (Path(__file__).parents[2] / "pyproject.toml").open("rb") as file:
        (name, target), *others = tomllib.load(file)["project"]["scripts"].items()
    assert (name, others) == ("meshmw", [])
    assert EntryPoint(name, target, "console_scripts").load() is main
    # What an installer writes into the script.
    module, _, function = target.partition(":")
    script = f"import sys; from {module} import {function}; sys.argv[0] = '/bin/meshmw'; sys.exit({function}())"
    for arguments, code, printed in (
        (["--version"], 0, f"meshmw {__version__}\n"),
        (["--help"], 0, "Usage: meshmw [OPTIONS] COMMAND"),
        (["inspect", "00-xyz"], 1, "traceparent: malformed\n"),
    ):
        done = subprocess.run(
            [sys.executable, "-c", script, *arguments], capture_output=True, text=True, timeout=60, check=False
        )
        assert (done.returncode, done.stderr) == (code, "")
        assert done.stdout.startswith(printed)


@pytest.mark.parametrize(
    ("arguments", "code", "out", "error"),
    [
        (["--version"], 0, f"meshmw {__version__}\n", ""),
        (["settings"], 2, "", "meshmw: the command line is not installed: run  pip install 'meshmw[cli]'\n"),
        ([], 2, "", "meshmw: the command line is not installed: run  pip install 'meshmw[cli]'\n"),
    ],
)
@pytest.mark.parametrize("missing", ["typer", "rich"])
def test_a_bare_install_answers_in_one_line(arguments, code, out, error, missing):
    hidden = f"import runpy, sys; sys.modules[{missing!r}] = None; runpy.run_module('meshmw', run_name='__main__')"
    done = subprocess.run(
        [sys.executable, "-c", hidden, *arguments], capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (code, out, error)


def test_a_stream_that_is_no_file_is_printed_to_as_well(monkeypatch):
    import io

    printed = io.StringIO()
    monkeypatch.setattr(sys, "stdout", printed)
    assert main(["inspect", f"traceparent: {VALID}"]) == 0
    assert "traceparent: valid" in printed.getvalue()
