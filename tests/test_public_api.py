"""What `import meshmw` offers, and what it costs."""

import ast
import functools
import importlib
import inspect
import os
import pkgutil
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

import opentelemetry.util.types
import pytest

import meshmw
from tests.programs import UNTRACED, run_parts

# Every name that a user can import, by module. Whoever adds one, or takes one away, says so here and in CHANGELOG.
NAMES = {
    "meshmw": """
        InvalidHeaderError MeshPropagator MeshmwError MissingExtraError RequestView Settings SettingsError
        Telemetry Trust __version__ configure extract inject server_span set_route
    """,
    "meshmw.aiohttp": """
        ClientOptions ClientSession ServerOptions TraceContextClientMiddleware TraceContextMiddleware
    """,
    "meshmw.asgi": """
        BaggageSizeFilter ServerOptions TraceContextMiddleware
    """,
    "meshmw.baggage": """
        get get_all properties using with_member without_member without_members
    """,
    "meshmw.celery": """
        Options instrument
    """,
    "meshmw.concurrency": """
        ProcessPoolExecutor Scope Thread ThreadPoolExecutor bind detached linked run_in_executor to_thread
    """,
    "meshmw.django": """
        route_middleware
    """,
    "meshmw.errors": """
        EnvoyError IncompatibleError IncompatibleExporterError InvalidHeaderError
        MeshError MeshmwError MissingExtraError SettingsError
    """,
    "meshmw.flask": """
        ServerOptions init_app
    """,
    "meshmw.frames": """
        BytesGetter BytesSetter JSON_KEY decode encode extract_json inject_json using
    """,
    "meshmw.grpc": """
        AsyncTraceContextServerInterceptor ClientOptions ServerOptions TraceContextClientInterceptor
        TraceContextServerInterceptor client_interceptors message_scope
    """,
    "meshmw.httpx": """
        AsyncClient AsyncTraceContextTransport Client ClientOptions TraceContextTransport
    """,
    "meshmw.httpx2": """
        AsyncClient AsyncTraceContextTransport Client ClientOptions TraceContextTransport
    """,
    "meshmw.kafka": """
        Delivery KafkaGetter KafkaSetter Options aconsume batch_span consume consumer_span extract inject
        instrument producer_span
    """,
    "meshmw.logs": """
        FORMAT JsonFormatter TraceContextFilter add_trace_context ids_of
    """,
    "meshmw.propagator": """
        Extraction MeshPropagator Rejections
    """,
    "meshmw.rabbitmq": """
        Delivery Options RabbitMQGetter aconsume batch_span consume consumer_span extract inject instrument
        producer_span
    """,
    "meshmw.requests": """
        ClientOptions Session TraceContextAdapter
    """,
    "meshmw.server": """
        ServerOptions ServerSpan TraceContextBoundary server_span set_route
    """,
    "meshmw.settings": """
        SettingDoc Settings
    """,
    "meshmw.streams": """
        stream
    """,
    "meshmw.testing": """
        Answer Envoy EnvoyMesh Event Fault FaultProxy Finding HEADER_MATRIX HeaderCase Hop Journey JourneySpan Link
        LinkerdLike Listener OtlpReceiver Proxy ReceivedSpan Route Service Tracer assert_chain
        assert_child_of assert_one_trace children dies_with_parent find_envoy find_span find_spans free_port
        from_sdk render_tree roots start_envoys start_mesh start_process stop_processes strict_context
        write_report
    """,
    "meshmw.wire": """
        B3Context B3Fault BaggageValue REASONS TraceParent TraceState examine_b3 format_baggage format_member
        format_traceparent parse_baggage parse_member read_b3 read_traceparent
    """,
    "meshmw.wire.b3": """
        B3Context B3Fault REASONS examine_b3 read_b3
    """,
    "meshmw.wire.baggage": """
        BaggageValue MAX_BYTES MAX_MEMBERS REASONS format_baggage format_member parse_baggage parse_member
    """,
    "meshmw.wire.headers": """
        B3_HEADERS HEXDIGLC NOT_HEXDIGLC NOT_PRINTABLE_ASCII OWS PROPAGATION_HEADERS SENT_HEADER
        TRACE_HEADERS trimmed
    """,
    "meshmw.wire.traceparent": """
        FLAG_RANDOM FLAG_SAMPLED KNOWN_FLAGS REASONS TraceParent TraceParentPolicy format_traceparent
        read_traceparent
    """,
    "meshmw.wire.tracestate": """
        MAX_CHARS MAX_MEMBERS Member REASONS TraceState
    """,
    "meshmw.wsgi": """
        BaggageSizeFilter ServerOptions TraceContextMiddleware
    """,
}
OPTIONAL = [
    "aiohttp",
    "fastapi",
    "starlette",
    "django",
    "flask",
    "werkzeug",
    "httpx2",
    "requests",
    "aiohttp",
    "grpc",
    "confluent_kafka",
    "aiokafka",
    "pika",
    "aio_pika",
    "celery",
]


@pytest.mark.parametrize("name", NAMES)
def test_a_module_offers_these_names_and_shows_no_others(name):
    module = importlib.import_module(name)
    assert sorted(module.__all__) == NAMES[name].split()
    shown = set(dir(module)) - (set(meshmw._MODULES) if name == "meshmw" else set())
    assert shown == set(module.__all__)
    assert all(hasattr(module, each) for each in module.__all__)


def test_the_module_that_configures_on_import_shows_its_handle_alone():
    script = "import meshmw.auto; print(dir(meshmw.auto), meshmw.auto.__all__)"
    done = subprocess.run(
        [sys.executable, "-c", script],
        env={**os.environ, "MESHMW_EXPORTER": "none"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout == "['telemetry'] ['telemetry']\n", done.stderr


def test_every_module_without_an_underscore_is_public():
    found = {each.name for each in pkgutil.walk_packages(meshmw.__path__, "meshmw.") if "._" not in each.name}
    # The first configures on import, pytest runs the second.
    assert found | {"meshmw"} == {*NAMES, "meshmw.auto", "meshmw.testing.pytest_plugin"}


def test_dir_shows_the_modules_and_other_names_raise():
    assert set(dir(meshmw)) == {*meshmw.__all__, *meshmw._MODULES}
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        _ = meshmw.nonsense


def test_every_public_object_says_what_it_does():
    for name in meshmw.__all__:
        found = getattr(meshmw, name)
        # A closed set of words has no docstring of its own.
        assert inspect.getdoc(found) or get_args(found), name


def test_type_checkers_and_the_program_find_the_same_names():
    tree = ast.parse(Path(meshmw.__file__).read_text())
    block = next(node for node in tree.body if isinstance(node, ast.If))
    imported = {alias.name for node in block.body for alias in node.names} - {"Context"}
    defined = {node.name for node in tree.body if isinstance(node, ast.FunctionDef) and not node.name.startswith("_")}
    assert imported | defined | {"__version__"} == {*meshmw.__all__, *meshmw._MODULES, "auto"}


def test_to_look_at_the_package_configures_nothing():
    program = """
import inspect, meshmw
from opentelemetry import trace
inspect.getmembers(meshmw)
assert type(trace.get_tracer_provider()).__name__ == "ProxyTracerProvider"
assert meshmw.auto.telemetry is meshmw.configure()
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_one_import_is_enough_for_every_public_module():
    used = "; ".join(f"meshmw.{name}" for name in meshmw._MODULES)
    done = subprocess.run([sys.executable, "-c", f"import meshmw; {used}"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    "name",
    ["meshmw", "meshmw.asgi", "meshmw.wsgi", "meshmw.httpx", "meshmw.propagator", "meshmw.kafka", "meshmw.rabbitmq"],
)
def test_a_bare_import_needs_no_extra(name):
    """The optional packages are hidden, as in an installation without any extra."""
    hidden = f"import sys; sys.modules.update(dict.fromkeys({OPTIONAL!r}))"
    use = "meshmw.configure; meshmw.MeshPropagator(); meshmw.Settings" if name == "meshmw" else "pass"
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", f"{hidden}\nimport {name}\nimport meshmw\n{use}"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("name", "package", "extra"),
    [
        ("meshmw.aiohttp", "aiohttp", "aiohttp"),
        ("meshmw.celery", "celery", "celery"),
        ("meshmw.flask", "flask", "flask"),
        ("meshmw.grpc", "grpc", "grpc"),
        ("meshmw.httpx2", "httpx2", "httpx2"),
    ],
)
def test_a_missing_extra_is_named_with_the_command_that_brings_it(name, package, extra):
    done = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.modules[{package!r}] = None\nimport {name}"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert f"pip install 'meshmw[{extra}]'" in done.stderr.splitlines()[-1]


def test_importing_the_package_alone_loads_no_sdk():
    done = subprocess.run(
        [sys.executable, "-c", "import sys, meshmw; sys.exit('opentelemetry.sdk' in sys.modules)"],
        check=False,
    )
    assert done.returncode == 0


# Each of them takes its part of the processor time of a start, which has no use for it.
NOT_AT_A_START = {
    "httpx",
    "logging.config",
    "meshmw._policy.xfcc",
    "meshmw._redaction",
    "meshmw._telemetry.http_session",
    "meshmw._telemetry.remedies",
    "meshmw._tools",
    "meshmw._transports",
    "meshmw.wsgi",
    "multiprocessing",
    "opentelemetry.configuration",
    "opentelemetry.instrumentation",
    "pydantic",
    "requests",
    "starlette",
    "unittest",
    "urllib.request",
}


def test_a_configured_asgi_service_has_imported_nothing_that_it_has_no_use_for():
    program = "import sys, meshmw.auto, meshmw.asgi\nprint(*sys.modules)"
    imported = set(run_parts(program, **UNTRACED, MESHMW_SERVICE_NAME="items").stdout.split())
    assert {"meshmw.asgi", "opentelemetry.exporter.otlp.proto.grpc.exporter"} <= imported
    assert not NOT_AT_A_START & imported


@pytest.mark.parametrize(
    "name",
    [
        "meshmw.baggage",
        "meshmw.celery",
        "meshmw.concurrency",
        "meshmw.errors",
        "meshmw.frames",
        "meshmw.httpx",
        "meshmw.httpx2",
        "meshmw.streams",
        "meshmw.wire",
        "meshmw.wire.b3",
        "meshmw.wire.baggage",
        "meshmw.wire.headers",
        "meshmw.wire.traceparent",
        "meshmw.wire.tracestate",
    ],
)
def test_dir_of_a_module_shows_what_it_offers_and_each_says_what_it_does(name):
    module = importlib.import_module(name)
    assert dir(module) == sorted(module.__all__)
    for each in module.__all__:
        offered = getattr(module, each)
        assert inspect.getdoc(offered) or not (inspect.isclass(offered) or inspect.isroutine(offered)), each


# The operators by which a user gets at an object, beside its methods.
OPERATORS = {"__init__", "__call__", "__enter__", "__aenter__", "__iter__", "__aiter__", "__next__", "__anext__"}
# Nobody but our own iterators makes these, so what their constructors take need have no public name.
MADE_HERE = {"meshmw.kafka.Delivery", "meshmw.rabbitmq.Delivery", "meshmw.server.ServerSpan"}


# The steps by which these send have yet to become private.
@functools.cache
def names_in(module_name: str) -> dict[str, Any]:
    """Return a module's names, with those that it imports for type checkers alone."""
    module = importlib.import_module(module_name)
    found = {**vars(opentelemetry.util.types), **vars(module)}
    for node in ast.parse(inspect.getsource(module)).body:
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            # Not the public modules themselves, of which `meshmw.auto` would configure this process.
            imports = [each for each in node.body if getattr(each, "module", None) != "meshmw"]
            exec(compile(ast.Module(imports, []), f"<{module_name}>", "exec"), found)
    return found


def annotations_of(thing: object) -> Iterator[tuple[str, Any]]:
    """Yield the annotations of a function, or of a class's methods, properties and attributes; of a value its class."""
    if not inspect.isclass(thing):
        hints = function_hints(thing) if inspect.isroutine(thing) else {"value": type(thing)}
        yield from hints.items()
        return
    for cls in (each for each in thing.__mro__ if each.__module__.startswith("meshmw")):
        for name, text in [*inspect.get_annotations(cls).items(), *set_by_constructor(cls)]:
            if not name.startswith("_"):
                yield name, eval(text, names_in(cls.__module__)) if isinstance(text, str) else text
        for name, member in vars(cls).items():
            if not name.startswith("_") or name in OPERATORS:
                for each in functions_of(member):
                    yield from ((f"{name}({hint})", kind) for hint, kind in function_hints(each).items())


def set_by_constructor(cls: type) -> Iterator[tuple[str, str]]:
    """Yield the attributes that a class's constructor sets, with their annotation, or with the class that it calls."""
    for constructor in functions_of(vars(cls).get("__init__")):
        if is_generated(constructor):
            continue
        for node in ast.walk(ast.parse(textwrap.dedent(inspect.getsource(constructor)))):
            if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Attribute):
                yield node.target.attr, ast.unparse(node.annotation)
            elif isinstance(node, ast.Assign) and isinstance(target := node.targets[0], ast.Attribute):
                called = ast.unparse(node.value.func) if isinstance(node.value, ast.Call) else ""
                if inspect.isclass(names_in(cls.__module__).get(called)):
                    yield target.attr, called


def is_generated(function: Callable[..., object]) -> bool:
    """Say whether a function has no source, as the constructor that a dataclass makes of its annotations."""
    return function.__code__.co_filename == "<string>"


def functions_of(member: object) -> list[Callable[..., object]]:
    """Return the functions behind a member of a class: a method's one, or a property's."""
    if isinstance(member, property):
        return [each for each in (member.fget, member.fset) if each is not None]
    function = member.__func__ if isinstance(member, classmethod | staticmethod) else member
    return [function] if inspect.isfunction(function) else []


def function_hints(function: Callable[..., object]) -> dict[str, Any]:
    function = inspect.unwrap(function)
    return {} if is_generated(function) else get_type_hints(function, names_in(function.__module__))


def classes_in(hint: Any) -> Iterator[type]:
    """Yield the classes that a type hint is made of."""
    if isinstance(hint, list | tuple):
        for each in hint:
            yield from classes_in(each)
    elif isinstance(hint, TypeVar):
        yield from classes_in(hint.__bound__)
    elif get_origin(hint) is not Literal:
        origin = get_origin(hint) or hint
        if inspect.isclass(origin):
            yield origin
        yield from classes_in(get_args(hint))


def public_objects() -> dict[str, object]:
    modules = {name: importlib.import_module(name) for name in NAMES}
    return {f"{name}.{each}": getattr(module, each) for name, module in modules.items() for each in module.__all__}


@pytest.mark.parametrize("path", public_objects())
def test_nothing_public_hands_out_or_takes_a_type_that_has_no_public_name(path):
    """A user who writes type hints must be able to name whatever they get, and whatever they are asked for.

    import-linter cannot say this: it sees which module imports which, and a public module imports private ones for its
    work. It does not see which of the imported types stand in a signature.
    """
    offered = public_objects()
    named = {id(each) for each in offered.values()}
    unnamed = {
        f"{where}: {cls.__module__}.{cls.__qualname__}"
        for where, hint in annotations_of(offered[path])
        if not (path in MADE_HERE and where.startswith("__init__"))
        for cls in classes_in(hint)
        if cls.__module__.startswith("meshmw") and id(cls) not in named
    }
    assert not unnamed
