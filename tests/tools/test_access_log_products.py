"""Access logs as other people's proxies write them: what each shows is said, and what it cannot show is said too.

Every line is made here, in the shape that the product's documentation or source has.
"""

from __future__ import annotations

import gzip
import json

import pytest

from meshmw.__main__ import main

TRACE = "0af7651916cd43dd8448eb211c80319c"
PARENT = f"00-{TRACE}-b7ad6b7169203331-01"
TIME = "2026-11-22T16:47:30.750Z"
RID = "9acb4236-4cdf-4863-b1e2-5f786b9484ea"


def compact(**fields):
    return json.dumps(fields, separators=(",", ":"))


def envoy(tail="", request="GET /api/orders/17 HTTP/1.1", code="200", rid=RID):
    return f'[{TIME}] "{request}" {code} - 0 271 1 0 "-" "curl/8.5.0" "{rid}" "shop:8000" "10.1.0.7:8000"{tail}'


def istio(tail="", request="GET /api/orders/17 HTTP/1.1", code="200"):
    return (
        f'[{TIME}] "{request}" {code} - via_upstream - "-" 0 271 1 0 "-" "curl/8.5.0" "{RID}" "shop:8000" '
        '"10.1.0.7:8000" inbound|8000|| 127.0.0.6:52658 10.1.0.7:8000 10.1.0.9:56222 outbound_.8000_._.shop default'
        f"{tail}"
    )


TCP = istio(request="- - -", code="0")

ISTIO_JSON = {
    "authority": "shop:8000",
    "bytes_received": 0,
    "bytes_sent": 271,
    "connection_termination_details": None,
    "downstream_local_address": "10.1.0.7:8000",
    "downstream_remote_address": "10.1.0.9:56222",
    "duration": 1,
    "method": "GET",
    "path": "/api/orders/17?x=1",
    "protocol": "HTTP/1.1",
    "request_id": RID,
    "requested_server_name": None,
    "response_code": 200,
    "response_code_details": "via_upstream",
    "response_flags": "-",
    "route_name": "default",
    "start_time": TIME,
    "upstream_cluster": "inbound|8000||",
    "upstream_host": "10.1.0.7:8000",
    "upstream_local_address": "127.0.0.6:52658",
    "upstream_service_time": "0",
    "upstream_transport_failure_reason": None,
    "user_agent": "curl/8.5.0",
    "x_forwarded_for": None,
}
ISTIO_TCP = ISTIO_JSON | dict.fromkeys(("method", "path", "protocol", "authority", "request_id")) | {"response_code": 0}
GATEWAY = {
    "start_time": TIME,
    "method": "GET",
    "x-envoy-origin-path": "/api/orders/17",
    "protocol": "HTTP/1.1",
    "response_code": 200,
    "response_flags": "-",
    "x-forwarded-for": "10.0.0.1",
    "user-agent": "curl/8.5.0",
    "x-request-id": RID,
    ":authority": "shop:8000",
    "upstream_host": "10.1.0.7:8000",
    "upstream_cluster": "httproute/shop/orders/rule/0",
    "route_name": "httproute/shop/orders/rule/0/match/0/shop_example",
}
CONSUL = {
    "authority": "shop.default.dc1.internal",
    "duration": 3,
    "method": "GET",
    "path": "/api/orders/17",
    "protocol": "HTTP/1.1",
    "request_id": RID,
    "response_code": 200,
    "route_name": "-",
    "start_time": TIME,
    "upstream_cluster": "local_app",
    "upstream_host": "127.0.0.1:8000",
    "x_forwarded_for": "10.0.0.1",
}
CONTOUR = {
    "ts": TIME,
    "@timestamp": TIME,
    "authority": "shop.example",
    "method": "GET",
    "path": "/api/orders/17",
    "request_id": RID,
    "response_code": 200,
    "uber_trace_id": None,
    "upstream_cluster": "default_shop_80",
}
GLOO = {
    "protocol": "HTTP/1.1",
    "upstreamHost": "10.1.0.7:8000",
    "duration": "4",
    "upstreamCluster": "default-shop_gloo",
}
KGATEWAY = {
    "authority": "shop.example:8080",
    "backendCluster": "kube_default_shop_80",
    "backendHost": "10.1.0.7:8000",
    "method": "GET",
    "path": "/api/orders/17",
    "req_x_forwarded_for": None,
    "request_id": RID,
    "resp_backend_service_time": "0",
    "response_code": 200,
    "start_time": TIME,
    "total_duration": 1,
}
TRAEFIK = {
    "ClientAddr": "10.0.0.1:4711",
    "DownstreamStatus": 200,
    "Duration": 905000,
    "RequestHost": "shop.example",
    "RequestMethod": "GET",
    "RequestPath": "/api/orders/17",
    "RouterName": "web@kubernetes",
    "ServiceName": "shop@kubernetes",
    "StartUTC": TIME,
    "entryPointName": "web",
    "level": "info",
    "msg": "",
}
NGINX = {
    "time_local": "22/Nov/2026:16:47:30 +0000",
    "remote_addr": "10.0.0.1",
    "request": "GET /api/orders/17 HTTP/1.1",
    "status": 200,
    "request_time": 0.004,
    "http_user_agent": "curl/8.5.0",
}
OTEL = {
    "http.request.method": "GET",
    "url.path": "/api/orders/17",
    "http.response.status_code": 200,
    "server.address": "shop",
    "trace_id": TRACE,
}
LINKERD = {
    "host": "shop",
    "method": "GET",
    "uri": "http://shop/api",
    "status": "200",
    "trace_id": "",
    "version": "HTTP/1.1",
}
AGENT = {"level": "info", "time": TIME, "scope": "FLAGS", "msg": "FLAG: --concurrency=0"}
COMBINED = '10.0.0.1 - - [22/Nov/2026:16:47:30 +0000] "GET /api/orders/17 HTTP/1.1" 200 271 "-" "curl/8.5.0"'
INGRESS = f"{COMBINED} 85 0.004 [shop-orders-80] [] 10.1.0.7:8000 271 0.004 200 {RID.replace('-', '')}"
CLF = f'{COMBINED} 42 "web@docker" "http://10.1.0.7:80" 4ms'


def with_key(fields, **more):
    return compact(**fields, **more)


def cri(line, mark="F", stream="stdout"):
    return f"2026-11-22T16:47:30.750123456Z {stream} {mark} {line}"


def docker(line, end="\n", stream="stdout"):
    return compact(log=line + end, stream=stream, time="2026-11-22T16:47:30.750123456Z")


def codes(tmp_path, capsys, lines, *options):
    """Return the exit status, the codes of what was found, and the first log as JSON."""
    log = tmp_path / "log"
    log.write_text("".join(f"{line}\n" for line in lines))
    status = main(["access-log", str(log), "--json", *options])
    if status == 2:
        return status, capsys.readouterr().err, None
    found = json.loads(capsys.readouterr().out)
    return status, {each["code"].partition(".")[2] for each in found["findings"]}, found["hops"][0]


# The lines, what is found, and the route that is shown.
UNLOGGED = {
    "istio": ([istio()], "GET /api/orders/*"),
    "istio-json": ([compact(**ISTIO_JSON)], "GET /api/orders/*"),
    "envoy": ([envoy()], "GET /api/orders/*"),
    "envoy-gateway": ([compact(**GATEWAY)], "httproute/shop/orders/rule/0/match/0/shop_example"),
    "consul": ([compact(**CONSUL)], "GET /api/orders/*"),
    "contour": ([compact(**CONTOUR)], "GET /api/orders/*"),
    "contour-text": ([envoy()], "GET /api/orders/*"),
    # Jaeger's header and a trace id say nothing of traceparent.
    "contour-others": (
        [compact(**CONTOUR | {"uber_trace_id": f"{TRACE}:1:0:1", "trace_id": TRACE})],
        "GET /api/orders/*",
    ),
    "kgateway": ([compact(**KGATEWAY)], "GET /api/orders/*"),
    "gloo": ([compact(**GLOO)], "-"),
    "traefik": ([compact(**TRAEFIK)], "web@kubernetes"),
    "traefik-text": ([CLF], "web@docker"),
    "nginx-json": ([json.dumps(NGINX)], "GET /api/orders/*"),
    "nginx": ([COMBINED], "GET /api/orders/*"),
    "ingress-nginx": ([INGRESS], "GET /api/orders/*"),
    "otel": ([compact(**OTEL)], "GET /api/orders/*"),
    "linkerd": ([compact(**LINKERD)], "GET http://shop/api"),
    "b3-only": ([with_key(ISTIO_JSON, x_b3_traceid=TRACE)], "GET /api/orders/*"),
    "short-keys": ([compact(ts=TIME, method="GET", path="/a", code="200", dst="10.1.0.7:8000")], "GET /a"),
}


@pytest.mark.parametrize("name", UNLOGGED)
def test_a_log_in_which_no_line_has_traceparent_is_not_silent(name, tmp_path, capsys):
    lines, route = UNLOGGED[name]
    status, found, hop = codes(tmp_path, capsys, lines)
    assert (status, found) == (1, {"not-logged"})
    assert [each["route"] for each in hop["routes"]] == [route]
    assert not hop["logs_traceparent"]


LOGGED = {
    "istio-json": with_key(ISTIO_JSON, traceparent=PARENT),
    "istio": istio(f" traceparent={PARENT}"),
    "envoy-gateway": with_key(GATEWAY, traceparent=PARENT),
    "contour": with_key(CONTOUR, traceparent=PARENT),
    "contour-text": envoy(f" traceparent={PARENT}"),
    "contour-others": with_key(CONTOUR, x_trace_id="a", contour_config_kind="HTTPProxy", traceparent=PARENT),
    "kgateway": with_key(KGATEWAY, traceparent=PARENT),
    "gloo": with_key(GLOO, traceParent=PARENT),
    "traefik": with_key(TRAEFIK, request_Traceparent=PARENT),
    "nginx-json": with_key(NGINX, http_traceparent=PARENT),
    "nginx": f'{COMBINED} "{PARENT}"',
    "otel": with_key(OTEL, **{"http.request.header.traceparent": [PARENT]}),
    "nested": compact(request={"method": "GET", "uri": "/a", "headers": {"Traceparent": [PARENT]}}, ts=1.5),
    "cloud": compact(jsonPayload={"method": "GET", "path": "/a", "traceparent": PARENT}),
}


@pytest.mark.parametrize("name", LOGGED)
def test_a_header_is_found_under_each_products_key(name, tmp_path, capsys):
    status, found, hop = codes(tmp_path, capsys, [LOGGED[name]] * 3)
    assert (status, found, hop["total"]["valid"]) == (0, set(), 3)


def test_kgateways_upstream_is_found(tmp_path, capsys):
    _, _, hop = codes(tmp_path, capsys, [with_key(KGATEWAY, traceparent=PARENT)])
    assert [each["upstream"] for each in hop["routes"]] == ["kube_default_shop_80"]


def test_a_responses_header_is_not_the_requests(tmp_path, capsys):
    line = with_key(TRAEFIK, downstream_Traceparent=PARENT, origin_Traceparent=PARENT)
    assert codes(tmp_path, capsys, [line])[:2] == (1, {"not-logged"})


def test_a_time_is_no_tracestate(tmp_path, capsys):
    lines = [with_key(CONTOUR, traceparent=None), with_key(CONTOUR, traceparent=PARENT)]
    status, found, hop = codes(tmp_path, capsys, lines)
    assert (status, found, hop["total"]["stripped"]) == (0, set(), 0)


def test_where_no_request_has_the_header_nothing_can_be_judged(tmp_path, capsys):
    for lines in ([istio(" traceparent=-")], [with_key(ISTIO_JSON, traceparent=None)]):
        status, found, hop = codes(tmp_path, capsys, lines)
        assert (status, found, hop["total"]["missing"]) == (1, {"no-trace"}, 1)
    more = [with_key(ISTIO_JSON, traceparent=None, x_b3_traceid=TRACE, b3=None)]
    assert codes(tmp_path, capsys, more)[:2] == (1, {"b3"})


def test_where_no_line_is_a_requests_nothing_can_be_judged(tmp_path, capsys):
    assert codes(tmp_path, capsys, [])[:2] == (1, {"no-requests"})
    status, found, hop = codes(tmp_path, capsys, [TCP, TCP])
    assert (status, found, hop["tcp"], hop["total"]["requests"]) == (1, {"no-requests"}, 2, 0)
    assert main(["access-log", str(tmp_path / "log")]) == 1
    assert "requests: 0, TCP connections: 2, lines: 2" in capsys.readouterr().out


@pytest.mark.parametrize(
    "lines",
    [
        [istio(f" traceparent={PARENT}"), TCP + " traceparent=-"],
        [with_key(ISTIO_JSON, traceparent=PARENT), with_key(ISTIO_TCP, traceparent=None)],
        [compact(method="GET", path="/", tp=PARENT), compact(access_log_type="TcpConnectionEnd", path=None)],
    ],
)
def test_connections_are_counted_apart(lines, tmp_path, capsys):
    status, found, hop = codes(tmp_path, capsys, lines)
    assert (status, found, hop["tcp"], hop["total"]["requests"]) == (0, set(), 1, 1)
    assert hop["total"]["refused"] == 0


def test_a_request_that_was_never_read_is_no_connection(tmp_path, capsys):
    lines = [
        istio(f" traceparent={PARENT}"),
        istio(" traceparent=-", request="- - HTTP/1.1", code="400"),
        with_key(ISTIO_TCP | {"response_code": 400}, traceparent=None),
    ]
    for chosen in (lines[:2], [with_key(ISTIO_JSON, traceparent=PARENT), lines[2]]):
        hop = codes(tmp_path, capsys, chosen)[2]
        assert (hop["tcp"], hop["total"]["refused"], hop["total"]["valid"]) == (0, 1, 1)


LINES = [istio(f" traceparent={PARENT}"), istio(" traceparent=-")]
IN_JSON = [with_key(ISTIO_JSON, traceparent=PARENT), with_key(ISTIO_JSON, traceparent=None)]
WRAPPED = {
    "cri": lambda line: [cri(line)],
    "cri-tags": lambda line: [cri(line, "F:x")],
    "cri-parts": lambda line: [cri(line[:50], "P"), cri("a warning", stream="stderr"), cri(line[50:])],
    "docker": lambda line: [docker(line)],
    "docker-parts": lambda line: [docker(line[:50], ""), docker("a warning", stream="stderr"), docker(line[50:])],
    "shipper": lambda line: [compact(log=line, kubernetes={"pod_name": "shop-1"})],
    "cloud": lambda line: [compact(textPayload=line, insertId="1")],
    "stern": lambda line: [f"shop-7d4b9c istio-proxy {line}"],
    "stern-all": lambda line: [f"\x1b[35mshop\x1b[0m \x1b[32mshop-7d4b9c\x1b[0m istio-proxy {line}"],
    "kubectl": lambda line: [f"[pod/shop-7d4b9c/istio-proxy] {line}"],
    "kubectl-times": lambda line: [f"2026-11-22T16:47:30.750123456Z {line}"],
    "compose": lambda line: [f"envoy-1  | {line}"],
    "journal": lambda line: [f"Nov 22 16:47:30 node-1 envoy[812]: {line}"],
    "crlf": lambda line: [f"{line}\r"],
}


@pytest.mark.parametrize("name", WRAPPED)
@pytest.mark.parametrize("lines", [LINES, IN_JSON], ids=["text", "json"])
def test_what_is_around_lines_is_taken_off(name, lines, tmp_path, capsys):
    wrapped = [each for line in lines for each in WRAPPED[name](line)]
    status, found, hop = codes(tmp_path, capsys, wrapped)
    assert (status, hop["total"]["valid"], hop["total"]["missing"]) == (0, 1, 1)
    assert found <= {"broken"}


def test_the_lines_of_nginx_are_found_behind_a_prefix(tmp_path, capsys):
    assert codes(tmp_path, capsys, [f"web-1  | {COMBINED}"])[:2] == (1, {"not-logged"})


def test_a_given_format_is_read_in_its_wrapper(tmp_path, capsys):
    line = cri(f"GET /a {PARENT}")
    status, _, hop = codes(tmp_path, capsys, [line], "--format", "%REQ(:METHOD)% %PATH(NQ:ORIG)% %REQ(TRACEPARENT)%")
    assert (status, hop["routes"][0]["route"], hop["total"]["valid"]) == (0, "GET /a", 1)


def test_a_given_format_is_found_behind_what_the_proxy_says_first(tmp_path, capsys):
    start = [cri("2026-11-22T16:47:30Z\tinfo\tFLAG: --concurrency")] * 4000
    options = "--format", "%REQ(:METHOD)% %PATH(NQ:ORIG)% %REQ(TRACEPARENT)%"
    status, _, hop = codes(tmp_path, capsys, [*start, cri(f"GET /a {PARENT}")], *options)
    assert (status, hop["total"]["valid"], hop["broken"]) == (1, 1, 4000)
    assert codes(tmp_path, capsys, start * 6, *options)[:2] == (1, {"no-requests", "ambiguous"})


def test_a_given_format_is_kept_where_no_line_is_in_it(tmp_path, capsys):
    # More than are looked at before the question is closed.
    lines = ["a line of nothing"] * 20_400
    status, fault, _ = codes(tmp_path, capsys, lines, "--format", "%REQ(:METHOD)% %PATH(NQ:ORIG)% %REQ(TRACEPARENT)%")
    assert (status, fault) == (1, {"ambiguous", "no-requests"})


def test_a_named_key_is_found_in_its_wrapper(tmp_path, capsys):
    lines = [docker(compact(**ISTIO_JSON, labels={"tp": PARENT}))] * 2
    status, found, hop = codes(tmp_path, capsys, lines, "--field", "traceparent=labels.tp")
    assert (status, found, hop["total"]["valid"]) == (0, set(), 2)


def test_parts_that_are_too_long_or_never_end_are_counted(tmp_path, capsys):
    long = "x" * 200_000
    lines = [cri(long, "P"), cri(long, "P"), cri(long), cri(LINES[0]), cri(long, "P"), cri(long), cri(LINES[1], "P")]
    status, found, hop = codes(tmp_path, capsys, lines)
    assert (status, hop["total"]["valid"], hop["broken"]) == (0, 1, 2)
    assert (found, hop["total"]["missing"]) == ({"broken"}, 1)


def test_what_others_write_to_the_same_place_is_no_request(tmp_path, capsys):
    agent = [compact(**AGENT)] * 1200
    status, found, hop = codes(tmp_path, capsys, [*agent, *IN_JSON, "{}", "[]"])
    assert (status, found) == (1, {"broken"})
    assert (hop["total"]["requests"], hop["broken"]) == (2, 1202)
    text = ["2026-11-22T16:47:30Z\tinfo\tFLAG: --concurrency"] * 1200
    assert codes(tmp_path, capsys, [*text, *LINES])[2]["total"]["requests"] == 2
    assert codes(tmp_path, capsys, agent)[0] == 2


def test_a_field_that_is_named_and_not_there_is_an_error(tmp_path, capsys):
    status, found, _ = codes(tmp_path, capsys, IN_JSON, "--field", "traceparent=labels.tp")
    assert (status, found) == (1, {"no-such-key"})
    status, found, _ = codes(tmp_path, capsys, IN_JSON, "--field", "route=labels.route")
    assert (status, found) == (1, {"no-such-key"})
    assert codes(tmp_path, capsys, IN_JSON, "--field", "traceprent=tp")[0] == 2
    status, fault, _ = codes(tmp_path, capsys, LINES, "--field", "traceparent=tp", "--format", "istio")
    assert (status, "JSON alone" in fault) == (2, True)
    labels = [compact(**ISTIO_JSON, labels={"tp": value}) for value in (PARENT, None)]
    assert codes(tmp_path, capsys, labels, "--field", "traceparent=labels.tp")[:2] == (0, set())
    dotted = [compact(**{"labels.tp": PARENT, "traceparent": "no"})]
    assert codes(tmp_path, capsys, dotted, "--field", "traceparent=labels.tp")[:2] == (0, set())


@pytest.mark.parametrize(
    ("source", "line"),
    [
        ("%REQ(TRACEPARENT):35% %PATH%", f"{PARENT[:35]} /a"),
        ("%REQ(TRACEPARENT):44% %PATH%", f"{PARENT[:44]} /a"),
        ("%REQ(traceparent?x-traceparent)% %REQ_WITHOUT_QUERY(X-ENVOY-ORIGINAL-PATH?:PATH)%", f"{PARENT} /a"),
        ("%REQ(X-ORIGINAL?TRACEPARENT)% %REQUEST_HEADER(:PATH)%", f"{PARENT} /a"),
        ("%CEL(request.headers['traceparent'])% %CEL(request.url_path)%", f"{PARENT} /a"),
        ('"$http_traceparent" $uri', f'"{PARENT}" /a'),
        ('"${http_traceparent}" $request_uri', f'"{PARENT}" /a?b=1'),
    ],
)
def test_operators_that_print_the_header_in_other_words(source, line, tmp_path, capsys):
    status, found, hop = codes(tmp_path, capsys, [line], "--format", source)
    assert (status, found, hop["total"]["valid"]) == (0, set(), 1)
    assert hop["routes"][0]["route"] == "/a"


def test_a_header_that_is_cut_before_its_trace_ends_says_nothing(tmp_path, capsys):
    status, found, _ = codes(tmp_path, capsys, [f"{PARENT[:20]} /a"], "--format", "%REQ(TRACEPARENT):20% %PATH%")
    assert (status, found) == (1, {"not-logged"})
    bad = f"{PARENT[:20]}xyz{PARENT[23:40]} /a"
    status, found, _ = codes(tmp_path, capsys, [bad], "--format", "%REQ(TRACEPARENT):40% %PATH%")
    assert (status, found) == (1, {"malformed"})


def test_what_envoys_tracer_would_have_mended_it_did_not_see(tmp_path, capsys):
    log = tmp_path / "log"
    log.write_text(with_key(ISTIO_JSON, traceparent=PARENT.upper()))
    assert main(["access-log", str(log), "--json"]) == 1
    (finding,) = json.loads(capsys.readouterr().out)["findings"]
    assert "would have mended case, so this proxy does not trace by it" in finding["why"]
    assert "passes it on" not in finding["why"]
    log.write_text(
        with_key(ISTIO_JSON, traceparent="00-xyz") + "\n" + with_key(ISTIO_JSON, traceparent="ff" + PARENT[2:])
    )
    main(["access-log", str(log), "--json"])
    (finding,) = json.loads(capsys.readouterr().out)["findings"]
    assert "passes it on and makes no span; an OpenTelemetry tracer" in finding["why"]
    assert "would have mended version_ff" in finding["why"]


@pytest.mark.parametrize(
    ("own", "differs"),
    [
        (TRACE, False),
        (TRACE[16:], False),
        (f"1-{TRACE[:8]}-{TRACE[8:]}", False),
        ("-", False),
        ("", False),
        ("not a trace id ..", False),
        (None, False),
        ("f" * 32, True),
        ("e" * 16, True),
    ],
)
def test_a_proxy_that_traces_in_a_trace_of_its_own_is_said(own, differs, tmp_path, capsys):
    status, found, hop = codes(tmp_path, capsys, [with_key(ISTIO_JSON, traceparent=PARENT, trace_id=own)] * 2)
    assert (status, found) == ((1, {"other-trace"}) if differs else (0, set()))
    assert hop["other_traces"] == 2 * differs
    if own and " " not in own:
        status, found, hop = codes(tmp_path, capsys, [istio(f" trace_id={own} traceparent={PARENT}")])
        assert hop["other_traces"] == (differs and "1-" not in own)


def test_a_log_of_pods_may_be_compressed(tmp_path, capsys):
    log = tmp_path / "0.log.20261122.gz"
    log.write_bytes(gzip.compress("".join(f"{cri(line)}\n" for line in LINES * 500).encode()))
    assert main(["access-log", str(log), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["hops"][0]["total"]["valid"] == 500


def test_fields_that_only_a_parser_reads(tmp_path, capsys):
    lines = [
        with_key(NGINX | {"request": "-"}, http_traceparent=PARENT),
        with_key(NGINX | {"request": "\\x16\\x03"}, http_traceparent=""),
        compact(path='/\n"', b3=1),
        compact(method="GET", path="/spaced", traceparent=f" {PARENT} "),
        compact(**{"x" * 200: 1, "method": "GET", "traceparent": PARENT}),
        compact(method=None, path=None, response_code=0, details='a "quoted" reason'),
    ]
    hop = codes(tmp_path, capsys, lines)[2]
    assert (hop["broken"], hop["total"]["valid"], hop["total"]["empty"], hop["total"]["b3"]) == (0, 3, 1, 1)
    assert hop["tcp"] == 1


def test_lines_of_many_makes_are_read(tmp_path, capsys):
    makes = [[compact(method="GET", **{f"k{kind}": 1}, traceparent=PARENT)] * 300 for kind in range(8)]
    odd = [compact(method="GET", **{f"x{number}": 1}, traceparent=PARENT) for number in range(300)]
    hop = codes(tmp_path, capsys, [*odd, *(line for make in makes for line in make)])[2]
    assert (hop["total"]["valid"], hop["broken"]) == (2700, 0)


def test_a_log_of_something_else_is_not_read_to_its_end(tmp_path, capsys):
    assert codes(tmp_path, capsys, ["x"] * 50_000)[0] == 2
