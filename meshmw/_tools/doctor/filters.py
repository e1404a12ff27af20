"""What HTTP filters and mutations of an Envoy do to trace headers, as steps; and which of them nobody can judge.

The lists come from Envoy's protos. A filter that runs code, or asks somebody else, can change any header: its
configuration does not say which.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final, Literal, NamedTuple

from meshmw._tools.doctor.configuration import Json, plain, type_of, typed
from meshmw.wire.headers import PROPAGATION_HEADERS

# Those of other tracing systems, which Envoy's own tracers and many applications use.
FOREIGN_HEADERS: Final = frozenset(
    {
        "grpc-trace-bin",
        "sw8",
        "uber-trace-id",
        "x-amzn-trace-id",
        "x-cloud-trace-context",
        "x-datadog-parent-id",
        "x-datadog-sampling-priority",
        "x-datadog-trace-id",
        "x-ot-span-context",
    }
)
FOLLOWED: Final = (*sorted(PROPAGATION_HEADERS), "x-request-id", *sorted(FOREIGN_HEADERS))

Action = Literal["remove", "set", "replace", "append", "add", "repeat", "copy", "owe", "settle", "unjudged"]
# A header's value, or else another's; Envoy can cut it.
_OF_REQUEST: Final = re.compile(r"%REQ(?:UEST_HEADER)?\(([^?)]+)(?:\?([^)]+))?\)(?::(\d{1,18}))?%", re.IGNORECASE)
# What comes after a level's other options.
_LAST: Final = ("append", "repeat")
_FORMATTED: Final = re.compile("%[A-Z_]+[(:%]")
_WORD: Final = re.compile("[a-z0-9-]+")
_LONGEST_IDS: Final = 64
# A comment or a text of Lua's, whichever begins first: neither begins within the other.
_LUA_COMMENT_OR_TEXT: Final = re.compile(
    r"""(?:--)?\[(=*+)\[.*?(?:\]\1\]|\Z)|--[^\r\n]*+"""
    r"""|"(?:\\(?:z\s*+|\r\n|.)|[^"\\\r\n])*+"?|'(?:\\(?:z\s*+|\r\n|.)|[^'\\\r\n])*+'?""",
    re.DOTALL,
)
# Lua's function for requests, and what can make one under another name.
_SEES_REQUESTS: Final = re.compile(r"\b(?:envoy_on_request|_G|_ENV|load\w*|[gs]etfenv|rawset|require|dofile)\b")
# Packages of Envoy's filters that change no request header but their own.
_READERS: Final = frozenset(
    {
        "adaptive_concurrency", "admission_control", "alternate_protocols_cache", "aws_eventstream_parser",
        "aws_lambda", "aws_request_signing", "bandwidth_limit", "bandwidth_share", "body_size_limit", "buffer",
        "cache", "cache_v2", "cdn_loop", "composite", "compressor", "connect_grpc_bridge", "cors", "csrf",
        "custom_response", "decompressor", "dynamic_forward_proxy", "dynamo", "fault", "file_server",
        "file_system_buffer", "filter_chain", "grpc_field_extraction", "grpc_http1_bridge",
        "grpc_http1_reverse_bridge", "grpc_json_reverse_transcoder", "grpc_json_transcoder", "grpc_stats", "grpc_web",
        "gzip", "health_check", "json_to_metadata", "kill_request", "match_delegate", "oauth2", "on_demand",
        "original_src", "proto_api_scrubber", "proto_message_extraction", "proto_message_logging",
        "rbac", "router", "set_filter_state", "set_metadata", "sse_to_metadata", "stateful_session", "tap",
        "thrift_to_metadata", "upstream_codec",
    }
)  # fmt: skip
# These write the headers that they are told to.
_WRITERS: Final = frozenset(
    {
        "api_key_auth", "basic_auth", "credential_injector", "gcp_authn", "geoip", "ip_tagging", "jwt_authn",
        "local_ratelimit", "rate_limit_quota",
    }
)  # fmt: skip
_ACTIONS: Final[Mapping[Any, Action]] = {
    "ADD_IF_ABSENT": "add",
    "OVERWRITE_IF_EXISTS_OR_ADD": "set",
    "OVERWRITE_IF_EXISTS": "replace",
    1: "add",
    2: "set",
    3: "replace",
}


class Step(NamedTuple):
    """What is done to one header, and where; `unjudged` names no header, and `settle` adds what is owed."""

    header: str
    action: Action
    place: str


def removal(name: Any, place: str) -> Iterator[Step]:
    """Yield the removal of a header, if it is one of a trace."""
    yield from _known(str(name).lower(), "remove", place)


def addition(option: Json, place: str) -> Iterator[Step]:
    """Yield what a HeaderValueOption does, if its header is one of a trace."""
    header = option.get("header", {})
    name = str(header.get("key", "")).lower()
    value = str(header.get("value") or header.get("raw_value") or "")
    action = _ACTIONS.get(option.get("append_action"), "append")
    if action == "append" and plain(option.get("append"), True) is False:
        action = "set"
    if not value and not option.get("keep_empty_value"):
        return
    if is_of_itself(value, name):
        # To set a header to its own value changes nothing.
        if action == "append":
            yield from _known(name, "repeat", place)
    elif is_formatted(value) and name in FOLLOWED:
        yield Step("", "unjudged", f"{place}, which writes {name} from {value}")
        yield Step(name, "copy", place)
    else:
        yield from _known(name, action, place)


def is_formatted(value: str) -> bool:
    """Say whether Envoy makes a value of what it knows of a request."""
    return _FORMATTED.search(value) is not None


def is_of_itself(value: str, name: str) -> bool:
    """Say whether a value is the header's own, whole."""
    found = _OF_REQUEST.fullmatch(value)
    return bool(found and found[1].lower() == name and int(found[3] or _LONGEST_IDS) >= _LONGEST_IDS)


def options(level: Json, place: str) -> Iterator[Step]:
    """Yield what one level of a route configuration does.

    Envoy removes first, then overwrites, then adds, in whatever order the options are listed. Whether a header is
    absent it asks before it writes any, so that two of ADD_IF_ABSENT add two lines: what is owed is settled at the end.
    """
    for name in level.get("request_headers_to_remove", ()):
        yield from removal(name, f"request_headers_to_remove of {place}")
    where = f"request_headers_to_add of {place}"
    steps = [step for option in level.get("request_headers_to_add", ()) for step in addition(option, where)]
    owed = [step._replace(action="owe") for step in steps if step.action == "add"]
    yield from owed
    yield from sorted((step for step in steps if step.action != "add"), key=lambda step: step.action in _LAST)
    yield from (step._replace(action="settle") for step in owed)


def _known(name: str, action: Action, place: str) -> Iterator[Step]:
    if name in FOLLOWED:
        yield Step(name, action, place)


def mutations(listed: Sequence[Json], place: str) -> Iterator[Step]:
    """Yield what a list of HeaderMutation does."""
    for each in listed:
        if "remove" in each:
            yield from removal(each["remove"], place)
        if "append" in each:
            yield from addition(each["append"], place)
        yield from _removed_by_pattern(each.get("remove_on_match", {}).get("key_matcher", {}), place)


def _removed_by_pattern(matcher: Json, place: str) -> Iterator[Step]:
    for kind, part in matcher.items():
        text = str(part).lower() if matcher.get("ignore_case") else str(part)
        for name in FOLLOWED:
            matches = {
                "exact": name == text,
                "prefix": name.startswith(text),
                "suffix": name.endswith(text),
                "contains": text in name,
            }
            if matches.get(kind):
                yield Step(name, "remove", place)
        if kind in ("safe_regex", "custom"):
            yield Step("", "unjudged", f"{place}, which removes headers by a pattern")


def filter_steps(name: str, config: Json) -> Iterator[Step]:
    """Yield what one HTTP filter does to trace headers.

    Args:
        name: Its name, for messages, and for filters whose configuration has no type.
        config: Its configuration, or that of a route for it.
    """
    package, place = _package_of(name, config), f"filter {name}"
    if package == "header_mutation":
        yield from mutations(config.get("mutations", {}).get("request_mutations", ()), place)
    elif package == "transform":
        # It waits for a body, and takes JSON alone.
        changes = config.get("request_transformation", {}).get("headers_mutations", ())
        yield from mutations(changes, f"{place}, of requests with a JSON body")
    elif package == "header_to_metadata":
        for rule in config.get("request_rules", ()):
            if rule.get("remove"):
                yield from removal(rule.get("header"), place)
    elif package in _WRITERS:
        if named := named_in(config):
            yield Step("", "unjudged", f"{place}, which writes {', '.join(named)}")
    elif package not in _READERS and not _is_harmless(package, config):
        named = named_in(config)
        yield Step("", "unjudged", f"{place}, which names {', '.join(named)}" if named else place)
    # Filters may lie within filters: behind a matcher, or as one action of several. Those of the router come later.
    for inner in _filters_within(config) if package != "router" else ():
        yield from filter_steps(f"{name}: {type_of(inner)}", inner)


def _package_of(name: str, config: Json) -> str:
    """Return the package of a filter's type, such as `lua`; its name without a type, as the second API had it."""
    kind = str(config.get("@type", "")).rpartition("/")[2]
    if kind.endswith(("ExtensionWithMatcher", "ExtensionWithMatcherPerRoute")):
        return "match_delegate"
    _, http, rest = kind.partition(".http.")
    if kind.startswith("envoy.") and http:
        return rest.partition(".")[0]
    last = name.partition(" of ")[0].rpartition(".")[2]
    # Istio's own filters write metadata and statistics.
    if kind.startswith(("stats.", "io.istio.", "istio.")) or name.startswith("istio"):
        return "set_metadata"
    return last if not kind or kind.startswith("google.protobuf.") else kind


def _is_harmless(package: str, config: Json) -> bool:
    if package == "lua":
        return _does_nothing_to_requests(config)
    if package == "wasm":
        # Istio's own extensions, which are compiled into its Envoy.
        vm = config.get("config", {}).get("vm_config", {})
        return bool(vm.get("runtime") == "envoy.wasm.runtime.null")
    if package == "ext_authz":
        answer = config.get("http_service", {}).get("authorization_response", {})
        return "http_service" in config and not any(name.startswith("allowed_upstream_headers") for name in answer)
    if package == "ext_proc":
        mode = config.get("processing_mode", {})
        skips = mode.get("request_header_mode") == "SKIP" and mode.get("request_body_mode", "NONE") == "NONE"
        return skips and not config.get("allow_mode_override")
    return False


def _does_nothing_to_requests(lua: Json) -> bool:
    """Say whether all code of a Lua filter is here, and has no function for requests.

    Contour gives each proxy one with a comment alone, and Envoy Gateway and others write such as see responses only.
    """
    sources = [lua[name] for name in ("default_source_code", "source_code") if name in lua]
    sources += lua.get("source_codes", {}).values()
    texts = [lua["inline_code"]] if "inline_code" in lua else []
    texts += [source.get("inline_string", "envoy_on_request") for source in sources]
    return bool(texts) and not any(_SEES_REQUESTS.search(_without_comments(text)) for text in texts)


def _without_comments(lua: str) -> str:
    """Return the code of a Lua script, with its texts, which may name a function too."""
    return _LUA_COMMENT_OR_TEXT.sub(lambda found: " " if found[0].startswith("--") else found[0], lua)


def named_in(config: Any) -> list[str]:
    """Return which trace headers a configuration names, as whole words: hashes hold `b3` too."""
    words = {word for text in texts_in(config) for word in _WORD.findall(text.lower())}
    return [name for name in FOLLOWED if name in words]


def texts_in(value: Any) -> Iterator[str]:
    """Yield each text of a configuration, keys included."""
    if isinstance(value, Mapping):
        for key, each in value.items():
            # Some filters have headers for keys.
            yield str(key)
            yield from texts_in(each)
    elif isinstance(value, list):
        for each in value:
            yield from texts_in(each)
    elif isinstance(value, str):
        yield value


def _filters_within(config: Any, *, outermost: bool = True) -> Iterator[Json]:
    if isinstance(config, Mapping):
        inner = typed(config)
        if not outermost and (".filters.http." in str(inner.get("@type", "")) or inner is not config):
            yield inner
            return
        for each in config.values():
            yield from _filters_within(each, outermost=False)
    elif isinstance(config, list):
        for each in config:
            yield from _filters_within(each, outermost=False)
