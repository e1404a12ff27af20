"""Words of closed sets: in Python code any other spelling raises, whoever takes the word; in a variable none does."""

from __future__ import annotations

import importlib
import inspect
import sys
from typing import Literal, get_args, get_origin, get_type_hints

import flask
import pytest
from celery import Celery

import meshmw
from meshmw import (
    MeshPropagator,
    Settings,
    SettingsError,
    aiohttp,
    asgi,
    celery,
    grpc,
    kafka,
    rabbitmq,
    server,
    testing,
    wire,
    wsgi,
)
from meshmw import flask as meshmw_flask
from meshmw._policy import words
from meshmw._policy.trust import TrustPolicy
from meshmw._policy.words import hint, listed, one_of

NOWHERE = "127.0.0.1:9"


def start_mesh(**options):
    with testing.start_mesh(testing.Service("shop", "shop:app"), **options):
        raise AssertionError("it started")


# Every public callable that takes a word, the argument, and a call with a word in it.
TAKES = {
    ("meshmw.propagator.MeshPropagator", "propagators"): lambda word: MeshPropagator([word]),
    ("meshmw.propagator.MeshPropagator", "traceparent_policy"): lambda word: MeshPropagator(traceparent_policy=word),
    ("meshmw.propagator.MeshPropagator", "duplicates"): lambda word: MeshPropagator(duplicates=word),
    ("meshmw.propagator.MeshPropagator", "prefer"): lambda word: MeshPropagator(prefer=word),
    ("meshmw.propagator.MeshPropagator", "trust"): lambda word: MeshPropagator(trust=word),
    ("meshmw.wire.traceparent.TraceParent.parse", "policy"): lambda word: wire.TraceParent.parse("", word),
    ("meshmw.wire.traceparent.read_traceparent", "policy"): lambda word: wire.read_traceparent("", word),
    ("meshmw.asgi.TraceContextMiddleware", "trust"): lambda word: asgi.TraceContextMiddleware(None, trust=word),
    ("meshmw.asgi.TraceContextMiddleware", "server_spans"): lambda word: asgi.TraceContextMiddleware(
        None, server_spans=word
    ),
    ("meshmw.wsgi.TraceContextMiddleware", "trust"): lambda word: wsgi.TraceContextMiddleware(None, trust=word),
    ("meshmw.wsgi.TraceContextMiddleware", "server_spans"): lambda word: wsgi.TraceContextMiddleware(
        None, server_spans=word
    ),
    ("meshmw.server.TraceContextBoundary", "trust"): lambda word: server.TraceContextBoundary(trust=word),
    ("meshmw.server.TraceContextBoundary", "server_spans"): lambda word: server.TraceContextBoundary(server_spans=word),
    ("meshmw.aiohttp.TraceContextMiddleware", "trust"): lambda word: aiohttp.TraceContextMiddleware(trust=word),
    ("meshmw.aiohttp.TraceContextMiddleware", "server_spans"): lambda word: aiohttp.TraceContextMiddleware(
        server_spans=word
    ),
    ("meshmw.flask.init_app", "trust"): lambda word: meshmw_flask.init_app(flask.Flask("shop"), trust=word),
    ("meshmw.flask.init_app", "server_spans"): lambda word: meshmw_flask.init_app(
        flask.Flask("shop"), server_spans=word
    ),
    ("meshmw.grpc.TraceContextServerInterceptor", "trust"): lambda word: grpc.TraceContextServerInterceptor(trust=word),
    ("meshmw.grpc.TraceContextServerInterceptor", "server_spans"): lambda word: grpc.TraceContextServerInterceptor(
        server_spans=word
    ),
    ("meshmw.grpc.AsyncTraceContextServerInterceptor", "trust"): lambda word: grpc.AsyncTraceContextServerInterceptor(
        trust=word
    ),
    ("meshmw.grpc.AsyncTraceContextServerInterceptor", "server_spans"): lambda word: (
        grpc.AsyncTraceContextServerInterceptor(server_spans=word)
    ),
    ("meshmw.kafka.instrument", "parent"): lambda word: kafka.instrument(None, parent=word),
    ("meshmw.celery.instrument", "parent"): lambda word: celery.instrument(Celery(), parent=word),
    ("meshmw.kafka.consumer_span", "parent"): lambda word: kafka.consumer_span(None, parent=word),
    ("meshmw.kafka.consume", "parent"): lambda word: kafka.consume([], parent=word),
    ("meshmw.kafka.aconsume", "parent"): lambda word: kafka.aconsume(None, parent=word),
    ("meshmw.rabbitmq.instrument", "parent"): lambda word: rabbitmq.instrument(None, parent=word),
    ("meshmw.rabbitmq.consumer_span", "parent"): lambda word: rabbitmq.consumer_span(None, parent=word),
    ("meshmw.rabbitmq.consume", "parent"): lambda word: rabbitmq.consume([], parent=word),
    ("meshmw.rabbitmq.aconsume", "parent"): lambda word: rabbitmq.aconsume(None, parent=word),
    ("meshmw.testing.Service", "interface"): lambda word: testing.Service("shop", "shop:app", interface=word),
    ("meshmw.testing.Service", "sidecar"): lambda word: testing.Service("shop", "shop:app", sidecar=word),
    ("meshmw.testing.start_mesh", "sidecar"): lambda word: start_mesh(sidecar=word),
    ("meshmw.testing.start_mesh", "edge"): lambda word: start_mesh(edge=word),
    ("meshmw.testing.Tracer", "kind"): lambda word: testing.Tracer(kind=word, collector=NOWHERE),
    ("meshmw.testing.Listener", "direction"): lambda word: testing.Listener(
        name="in", upstream=NOWHERE, direction=word
    ),
}


def words_in(annotation):
    if get_origin(annotation) is Literal:
        return get_args(annotation)
    # A callable returns its words to us, and what it returns is looked at where it is called.
    if get_origin(annotation) is not None and "Callable" in str(get_origin(annotation)):
        return ()
    return tuple(word for each in get_args(annotation) for word in words_in(each))


def public_callables():
    """Yield each function, class and class method of the public modules under the name by which a user knows it."""
    for short in (*meshmw._MODULES, "wire.traceparent"):
        module = importlib.import_module(f"meshmw.{short}")
        own = [name for name, value in vars(module).items() if getattr(value, "__module__", "") == module.__name__]
        for name in getattr(module, "__all__", own):
            found = getattr(module, name)
            if name.startswith("_") or not callable(found) or get_origin(found) is not None:
                continue
            yield f"{module.__name__}.{name}", found
            for method, value in vars(found).items() if inspect.isclass(found) else ():
                if isinstance(value, (classmethod, staticmethod)) and not method.startswith("_"):
                    yield f"{module.__name__}.{name}.{method}", getattr(found, method)


def parameters_with_words(found):
    # A class may inherit how it is made, with names that its own module does not know.
    inherited = getattr(found.__init__, "__globals__", {}) if inspect.isclass(found) else {}
    names = inherited | vars(sys.modules[found.__module__])
    try:
        parameters = inspect.signature(found).parameters.values()
    except ValueError:  # what is made in C
        return
    for parameter in parameters:
        if parameter.kind is parameter.VAR_KEYWORD and "Unpack" in str(parameter.annotation):
            (options,) = get_args(eval(parameter.annotation, dict(names)))
            yield from ((name, words_in(each)) for name, each in get_type_hints(options).items() if words_in(each))
            continue
        try:
            annotation = eval(parameter.annotation, dict(names)) if isinstance(parameter.annotation, str) else None
        except NameError:  # imported for type checkers alone
            continue
        if allowed := words_in(annotation):
            yield parameter.name, allowed


WORDS = {
    (name, argument): allowed
    for name, found in public_callables()
    for argument, allowed in parameters_with_words(found)
}


def test_every_public_callable_that_takes_a_word_is_listed_here():
    # The re-exports of `meshmw.wire` are those of its modules; what `meshmw.testing` hands out, nobody makes.
    other = ("wire.TraceParent", "wire.read_", "testing.Finding", "testing.Hop", "testing.Journey")
    found = {key for key in WORDS if not key[0].removeprefix("meshmw.").startswith(other)}
    assert found == set(TAKES)


@pytest.mark.parametrize("key", TAKES, ids=lambda key: f"{key[0].removeprefix('meshmw.')}-{key[1]}")
@pytest.mark.parametrize("misspelt", ["lower", "title", "blank", "empty", "none", "other"])
def test_another_spelling_of_a_word_raises_and_names_the_words(key, misspelt):
    word = next(word for word in WORDS[key] if word not in ("w3c", "b3", "b3multi"))
    wrong = {
        "lower": word.upper(),
        "title": word.title(),
        "blank": f"{word} ",
        "empty": "",
        "none": 7,
        "other": "zzz",
    }[misspelt]
    with pytest.raises(ValueError, match=rf"{key[1]} takes .*{word}.*, not {wrong!r}") as caught:
        TAKES[key](wrong)
    if key[0].startswith("meshmw.wire"):  # which knows nothing above itself
        return
    assert str(caught.value).endswith(f"(did you mean {word}?)") == (misspelt in ("lower", "title", "blank"))


@pytest.mark.parametrize("word", ["Continue", "RESTART", "ignore "])
def test_a_policy_of_trust_takes_exact_words(word):
    with pytest.raises(ValueError, match=rf"or a callable, not {word!r} \(did you mean {word.strip().lower()}\?"):
        TrustPolicy(word)


def settings_with_words():
    for name, annotation in get_type_hints(Settings).items():
        for word in words_in(annotation):
            yield name, word, (word,) if get_origin(annotation) is tuple else word


@pytest.mark.parametrize(("name", "word", "value"), list(settings_with_words()))
def test_a_setting_takes_a_word_in_any_case_from_a_variable_and_exactly_from_code(monkeypatch, name, word, value):
    assert getattr(Settings(**{name: value}), name) == value
    for wrong in (word.upper(), word.title(), f" {word}", f"{word}\t"):
        given = (wrong,) if isinstance(value, tuple) else wrong
        with pytest.raises(SettingsError) as caught:
            Settings(**{name: given})
        (fault,) = caught.value.faults
        assert fault.startswith(f"argument {name} holds ")
        assert fault.endswith(f"(did you mean {word}?)")
    for text in (word.upper(), word.title(), f" {word}\t"):
        monkeypatch.setenv(f"MESHMW_{name.upper()}", text)
        assert getattr(Settings(), name) == value


def test_none_is_a_word_too(monkeypatch):
    assert Settings(propagate_to="none").propagate_to == ()
    with pytest.raises(SettingsError, match=r"argument propagate_to holds 'None'; it takes a list of .*; or none"):
        Settings(propagate_to="None")
    monkeypatch.setenv("MESHMW_PROPAGATE_TO", " None,")
    assert Settings().propagate_to == ()


def test_the_check_returns_the_word():
    assert one_of(words.Trust, "ignore", "trust") == "ignore"
    with pytest.raises(ValueError, match=r"^trust takes continue, restart or ignore, not \[\]$"):
        one_of(words.Trust, [], "trust")
    with pytest.raises(ValueError, match=r"not 'x{60}'\.\.\. \(5000 characters\)$"):
        one_of(words.Trust, "x" * 5000, "trust")


@pytest.mark.parametrize("name", ["propagators", "baggage_keys", "propagate_to", "baggage_to", "passthrough_headers"])
def test_a_text_is_no_list_of_its_characters(name):
    with pytest.raises(ValueError, match=f"^{name} takes a list, not 'mesh'$"):
        MeshPropagator(**{name: "mesh"})


def test_words_as_a_sentence_lists_them():
    assert [listed(each) for each in (["a"], ["a", "b"], ["a", "b", "c"])] == ["a", "a or b", "a, b or c"]


def test_a_hint_names_the_nearest_word_as_it_is_spelt():
    assert hint("Restrat", ["RESTART"], "MESHMW_") == " (did you mean MESHMW_RESTART?)"
    assert hint("same_trace", ["restart", "same-trace"]) == " (did you mean same-trace?)"
    assert hint("zzz", ["restart"]) == hint("a", []) == ""
