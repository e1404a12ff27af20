"""What requests alone can be asked: adapters, files that bodies are read from, retries, what it shows of a request."""

import copy
import gc
import io
import json
import pickle
import shutil
import weakref
from unittest.mock import Mock

import pytest
import requests
import urllib3
from opentelemetry.trace import StatusCode
from requests.adapters import BaseAdapter, HTTPAdapter
from requests.structures import CaseInsensitiveDict
from urllib3.util import Retry

import meshmw.requests
from meshmw import MeshPropagator
from meshmw import _runtime as runtime
from tests.contracts.client.every_client import RequestsClient, Server


@pytest.fixture
def client(address):
    return RequestsClient(address)


@pytest.fixture
def session(client):
    with client.ours() as made:
        yield made


class Answers(BaseAdapter):
    """Answers without a network, with a body that is read from what it is given."""

    def __init__(self, raw=None):
        self.raw, self.asked, self.is_closed = raw, [], False

    def send(self, request, **options):
        self.asked.append(request)
        response = requests.Response()
        response.status_code, response.raw, response.request = 200, self.raw, request
        return response

    def close(self):
        self.is_closed = True


def adapter(client, inner):
    return meshmw.requests.TraceContextAdapter(inner, **client.options)


def test_the_callers_request_is_not_changed_and_is_the_responses(client, session):
    request = session.prepare_request(requests.Request("POST", f"{client.address}/items/7", json={"item": 7}))
    headers, before = request.headers, dict(request.headers)
    for _ in range(2):
        response = session.send(request)
        assert response.request is request
    assert request.headers is headers
    assert dict(headers) == before
    assert [span.attributes.get("http.request.resend_count") for span in client.spans] == [None, 1]


def test_a_request_whose_hooks_cannot_be_changed_is_sent_all_the_same(client, session):
    request = session.prepare_request(requests.Request("GET", f"{client.address}/items/7"))
    request.hooks = None
    assert adapter(client, Answers()).send(request).status_code == 200
    assert "http.request.resend_count" not in client.span.attributes


def test_headers_of_bytes_and_of_other_kinds_go_out_as_they_are(client):
    request = requests.Request("GET", "http://shop.internal/").prepare()
    request.headers = CaseInsensitiveDict({b"X-Own": b"\xfc", "x-number": 7, "Traceparent": "junk"})
    inner = Answers()
    adapter(client, inner).send(request)
    assert {**inner.asked[0].headers}.items() >= {b"X-Own": b"\xfc", "x-number": 7}.items()
    assert inner.asked[0].headers["traceparent"] != "junk"


def test_what_urllib3_sends_again_within_the_adapter_is_one_span_that_says_how_often(client):
    retry = Retry(total=3, status_forcelist=[503], backoff_factor=0)
    with requests.Session() as session:
        session.mount("http://", adapter(client, HTTPAdapter(max_retries=retry)))
        assert session.get(f"{client.address}/flaky").status_code == 200
    assert len(Server.got) == 3
    assert client.span.attributes["http.request.resend_count"] == 2
    assert {dict(lines)["traceparent"][3:35] for _, lines in Server.got} == {f"{client.span.context.trace_id:032x}"}


def test_a_request_that_digest_authentication_sends_again_has_a_span_too(client, session):
    assert session.get(f"{client.address}/digest", auth=requests.auth.HTTPDigestAuth("user", "pass")).ok
    assert [span.attributes["http.response.status_code"] for span in client.spans] == [401, 200]
    assert [span.attributes.get("http.request.resend_count") for span in client.spans] == [None, 1]
    assert [dict(lines)["traceparent"][36:52] for _, lines in Server.got] == [
        f"{span.context.span_id:016x}" for span in client.spans
    ]


@pytest.mark.parametrize(
    "read",
    [
        lambda raw: raw.read(),
        lambda raw: b"".join(iter(lambda: raw.read(1), b"")),
        lambda raw: raw.data,
        lambda raw: b"".join(raw),
        lambda raw: b"".join(raw.stream(1)),
        lambda raw: b"".join(raw.readlines()),
        lambda raw: io.BufferedReader(raw).read(),
    ],
    ids=["read", "read by and by", "data", "iterate", "stream", "readlines", "BufferedReader"],
)
def test_the_span_ends_however_the_body_is_read(client, session, read):
    with session.get(f"{client.address}/items/7", stream=True) as response:
        assert not client.spans
        assert read(response.raw) == b"in stock"
        assert len(client.spans) == 1


def test_what_stands_for_the_body_is_what_it_stands_for(client, session):
    response = session.get(f"{client.address}/items/7", stream=True)
    assert isinstance(response.raw, urllib3.HTTPResponse)
    assert response.raw.version == 11
    # As google-cloud-storage puts a decoder there, which sums up what it reads.
    response.raw.own = 7
    assert response.raw._stream.own == 7
    into = io.BytesIO()
    with response.raw as raw:
        shutil.copyfileobj(raw, into)
    assert into.getvalue() == b"in stock"
    assert len(client.spans) == 1


def test_chunks_can_be_read_as_the_server_has_sent_them(client, session):
    response = session.get(f"{client.address}/stream", stream=True)
    assert list(response.raw.read_chunked()) == [b"a", b"b"]
    assert len(client.spans) == 1


def test_an_error_of_what_a_body_is_read_from_passes_unchanged_and_marks_the_span(client):
    error = OSError("gone")

    class Broken(io.BytesIO):
        def read(self, *args):
            raise error

    with requests.Session() as session:
        session.mount("mock://", adapter(client, Answers(Broken())))
        with pytest.raises(OSError, match="gone") as caught:
            session.get("mock://shop/")
    assert caught.value is error
    assert client.span.attributes["error.type"] == "OSError"
    assert client.span.status.status_code is StatusCode.ERROR


def test_a_body_that_is_any_file_ends_the_span_with_its_last_byte(client):
    with requests.Session() as session:
        session.mount("mock://", adapter(client, Answers(io.BytesIO(b"in stock"))))
        assert session.get("mock://shop/").content == b"in stock"
    assert len(client.spans) == 1


def test_a_double_of_what_is_read_from_does_as_well(client):
    double = Mock(stream=lambda *_, **options: iter([b"in stock"]), _original_response=None)
    with requests.Session() as session:
        session.mount("mock://", adapter(client, Answers(double)))
        assert session.get("mock://shop/").content == b"in stock"
    assert "http.request.resend_count" not in client.span.attributes


def test_an_answer_that_has_nothing_to_read_from_ends_the_span(client):
    adapter(client, Answers()).send(requests.Request("GET", "http://shop.internal/").prepare())
    assert len(client.spans) == 1


@pytest.mark.parametrize("ask", [lambda raw: raw.read(0), lambda raw: raw.read(amt=0), lambda raw: raw.readinto(b"")])
def test_who_asks_for_nothing_has_not_come_to_the_end(client, session, ask):
    with session.get(f"{client.address}/items/7", stream=True) as response:
        assert not ask(response.raw)
        assert not client.spans
        assert response.content == b"in stock"
    assert len(client.spans) == 1


def test_a_body_that_is_parsed_or_read_line_by_line_ends_the_span(client, session):
    response = session.get(f"{client.address}/items/7", stream=True)
    with pytest.raises(json.JSONDecodeError):
        response.raw.json()
    assert client.span.status.status_code is StatusCode.UNSET
    client.exporter.clear()
    response = session.get(f"{client.address}/items/7", stream=True)
    assert next(response.raw) == b"in stock"
    with pytest.raises(StopIteration):
        next(response.raw)
    assert client.span.status.status_code is StatusCode.UNSET


def test_data_that_breaks_off_marks_the_span(client, session):
    response = session.get(f"{client.address}/broken", stream=True)
    with pytest.raises(urllib3.exceptions.ProtocolError):
        _ = response.raw.data
    assert client.span.attributes["error.type"] == "urllib3.exceptions.ProtocolError"


def test_what_stands_for_the_body_can_be_copied(client, session):
    response = session.get(f"{client.address}/items/7", stream=True)
    assert copy.copy(response.raw).read() == b"in stock"
    assert len(client.spans) == 1


def test_the_span_goes_on_where_the_body_is_read_after_the_session_has_closed(client):
    """As `requests.get(stream=True)` reads each: a session closes the connections that nobody uses."""
    with client.ours() as session:
        response = session.get(f"{client.address}/slow", stream=True)
    assert not client.spans
    Server.goes_on.set()
    assert response.content == b"ab"
    assert len(client.spans) == 1


@pytest.mark.parametrize("status", [None, "200"])
def test_a_status_that_is_no_number_is_the_librarys_concern(client, status):
    class Odd(Answers):
        def send(self, request, **options):
            response = super().send(request, **options)
            response.status_code = status
            return response

    request = requests.Request("GET", "http://shop.internal/").prepare()
    response = adapter(client, Odd(io.BytesIO())).send(request)
    assert response.status_code == status
    response.close()
    assert "http.response.status_code" not in client.span.attributes


def test_the_hooks_of_a_request_that_was_sent_are_good_for_another(client, session):
    sent = session.get(f"{client.address}/items/7").request
    assert sent.hooks == {"response": []}
    assert requests.Request("GET", client.address, hooks=sent.hooks).prepare().hooks == {"response": []}
    assert type(pickle.loads(pickle.dumps(sent.hooks))) is dict


def test_a_class_between_ours_and_the_librarys_sends_too(client):
    class Noting(requests.Session):
        def send(self, request, **options):
            self.noted = request.url
            return super().send(request, **options)

    class Both(meshmw.requests.Session, Noting):
        pass

    with client.mounted(Both()) as session:
        session.get(f"{client.address}/items/7")
        assert session.noted == f"{client.address}/items/7"
    assert len(client.spans) == 1


def test_an_adapter_has_what_the_one_in_it_has_and_can_be_pickled():
    with meshmw.requests.Session() as session:
        found = session.get_adapter("http://shop.internal")
        assert found.max_retries is session.adapters["http://"].max_retries
        with pytest.raises(AttributeError, match="no_such_name"):
            _ = found.no_such_name
    again = pickle.loads(pickle.dumps(meshmw.requests.TraceContextAdapter(HTTPAdapter(max_retries=3))))
    assert again.max_retries.total == 3
    with requests.Session() as session:
        session.mount("http://", meshmw.requests.TraceContextAdapter())
        assert type(copy.deepcopy(session).adapters["http://"]) is meshmw.requests.TraceContextAdapter


@pytest.mark.parametrize("given", [HTTPAdapter, MeshPropagator(), "http://"])
def test_what_is_no_adapter_is_refused_at_once(given):
    with pytest.raises(TypeError, match=r"TraceContextAdapter\(\) takes an adapter"):
        meshmw.requests.TraceContextAdapter(given)


@pytest.mark.parametrize("url", ["http://shop.internal:99999/", "http://[shop/"])
def test_what_is_no_url_is_refused_by_requests_and_not_by_us(client, url):
    request = requests.Request("GET", "http://shop.internal/").prepare()
    request.url = url
    with pytest.raises(ValueError, match=r"URL|Port") as refused:
        adapter(client, HTTPAdapter()).send(request)
    assert refused.traceback[-1].path.parts[-2] in {"requests", "urllib"}
    assert client.span.attributes["error.type"].endswith(type(refused.value).__name__)


@pytest.fixture(autouse=True)
def as_it_was(monkeypatch):
    monkeypatch.setattr(runtime, "_installed", None)
    monkeypatch.setattr(runtime, "_fallback", runtime.Runtime(propagator=MeshPropagator()))


def test_a_session_uses_each_of_its_adapters_in_one_of_ours_also_one_that_is_mounted_later():
    with meshmw.requests.Session() as session:
        late = Answers()
        first = session.get_adapter("https://shop.internal")
        session.mount("https://late", late)
        other = session.get_adapter("HTTPS://late.internal")
        assert {type(first), type(other)} == {meshmw.requests.TraceContextAdapter}
        assert first._adapter is session.adapters["https://"]
        assert other._adapter is late
        assert session.get_adapter("https://shop.internal") is first
        files = Answers()
        session.mount("file://", files)
        assert session.get_adapter("file:///etc/hostname") is files
        assert isinstance(pickle.loads(pickle.dumps(requests.Session())), requests.Session)
    assert late.is_closed
    assert type(pickle.loads(pickle.dumps(meshmw.requests.Session()))) is meshmw.requests.Session


def test_a_deep_copy_of_a_session_sends_with_the_same_options(client, session):
    copied = copy.deepcopy(session)
    ours, theirs = (each.get_adapter(client.address) for each in (session, copied))
    assert theirs is not ours
    assert theirs._adapter is not ours._adapter
    assert theirs._propagator is ours._propagator
    with copied:
        assert copied.get(f"{client.address}/items/7").text == "in stock"
    assert len(client.spans) == 1


def test_what_is_set_on_an_adapter_is_set_where_it_is_looked_at(client):
    inner = HTTPAdapter()
    ours = adapter(client, inner)
    ours.max_retries = Retry(total=3, status_forcelist=[503], backoff_factor=0)
    ours.own = 7
    assert inner.max_retries.total == 3
    assert not hasattr(inner, "own")
    # As a test replaces it.
    sent, ours.send = ours.send, lambda *args, **options: sent(*args, **options)
    with requests.Session() as session:
        session.mount("http://", ours)
        assert session.get(f"{client.address}/flaky").status_code == 200
    assert client.span.attributes["http.request.resend_count"] == 2
    del ours.send, ours.own, ours.max_retries
    assert not hasattr(inner, "max_retries")


def test_an_adapter_in_whose_place_another_is_mounted_is_let_go_of():
    with meshmw.requests.Session() as session:
        kept = session.get_adapter("https://shop.internal")
        replaced = weakref.ref(session.adapters["http://"])
        session.get_adapter("http://shop.internal")
        session.mount("http://", HTTPAdapter())
        gc.collect()
        assert replaced() is None
        assert session.get_adapter("https://shop.internal") is kept
