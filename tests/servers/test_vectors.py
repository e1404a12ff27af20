"""The rules of W3C Trace Context Level 2 and W3C Baggage on real servers, byte for byte, under both policies.

A vector holds the header lines of a request and what follows from them:

- `{trace}`, `{other}`, `{parent}` are fresh ids, `{TRACE}`, `{PARENT}` the same in upper case; `<ab*3>` is `ababab`,
  and `<k#=#*3>` is `k1=1,k2=2,k3=3`.
- `decision`: `continue` the trace or `restart`, for both policies or for each.
- `flags`: of the outgoing traceparent if the trace is continued, `01` where nothing else is said.
- `tracestate`, `baggage`: what goes out; absent means none. tracestate never outlives a restart.
- `refused_by`: the servers that answer such a request themselves, before any application sees it.
"""

import json
import re
from pathlib import Path

import pytest

GRAMMAR = re.compile(r"00-(?!0{32})([0-9a-f]{32})-(?!0{16})([0-9a-f]{16})-([0-9a-f]{2})")
REPEATED = re.compile(r"<([^<>]*)\*(\d+)>")
EVERY_PROPAGATION_HEADER = {"traceparent", "tracestate", "baggage"}


def read(name):
    path = Path(__file__).parent / "vectors" / f"{name}.json"
    return [pytest.param(each, id=f"{name}-{each['id']}") for each in json.loads(path.read_text())]


VECTORS = [*read("traceparent"), *read("tracestate"), *read("baggage")]


def repeat(match):
    text, count = match[1], int(match[2])
    return ",".join(text.replace("#", str(n)) for n in range(1, count + 1)) if "#" in text else text * count


def expand(text, ids):
    if text is None:
        return None
    text = REPEATED.sub(repeat, text)
    for name, value in ids.items():
        text = text.replace(f"{{{name}}}", value)
    return text


def values(pairs, name):
    return [value for found, value in pairs if found.lower() == name]


def in_force(vector, policy):
    decision = vector["decision"]
    return decision if isinstance(decision, str) else decision[policy]


@pytest.mark.parametrize("vector", VECTORS)
def test_what_comes_in_decides_what_goes_out(service, vector, new_ids):
    trace, parent = new_ids()
    ids = {"trace": trace, "parent": parent, "other": new_ids()[0], "TRACE": trace.upper(), "PARENT": parent.upper()}
    answer = service.ask(*(expand(line, ids) for line in vector["lines"]))

    if service.server in vector.get("refused_by", ()):
        assert answer.status == 400
        return
    report = answer.report
    seen, sent = report["seen"], report["sent"]
    [traceparent] = values(sent, "traceparent")
    sent_trace, sent_parent, sent_flags = GRAMMAR.fullmatch(traceparent).groups()
    assert {name for name, _ in sent} <= EVERY_PROPAGATION_HEADER
    assert sent_trace == report["trace_id"]
    assert sent_parent != parent
    assert sent_parent not in [span["span_id"] for span in report["server_spans"]]

    if in_force(vector, service.policy) == "continue":
        assert sent_trace == trace
        assert sent_flags == vector.get("flags", "01")
        # A span that is not sampled is not recorded.
        parents = [parent] if int(sent_flags, 16) & 1 else []
        assert [span["parent_id"] for span in report["server_spans"]] == parents
        state = expand(vector.get("tracestate"), ids)
        assert values(sent, "tracestate") == ([] if state is None else [state])
        assert [value.strip() for value in values(seen, "traceparent")] == [seen_parent(vector, ids)]
        if state is None:
            assert "".join(values(seen, "tracestate")).strip(", \t") == ""
    else:
        assert sent_trace not in (trace, ids["other"])
        assert sent_flags in ("01", "03")
        assert [span["parent_id"] for span in report["server_spans"]] == [None]
        assert values(sent, "tracestate") == []
        assert values(seen, "traceparent") == values(seen, "tracestate") == []

    baggage = expand(vector.get("baggage"), ids)
    assert values(sent, "baggage") == ([] if baggage is None else [baggage])


def seen_parent(vector, ids):
    """Return what the application sees of a traceparent that is trusted: the sender's own text."""
    [line] = [line for line in vector["lines"] if line.lower().startswith("traceparent:")]
    return expand(line, ids).partition(":")[2].strip()
