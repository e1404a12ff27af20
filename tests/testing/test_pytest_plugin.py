"""The plugin as a user's test run sees it."""

import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Literal, get_origin

import pytest

pytest_plugins = ["pytester"]

QUIET = ("-p", "no:asyncio")  # which warns where no configuration says its loop scope
USES_EVERYTHING = """
    from meshmw.testing import Listener, Proxy

    def test_it(envoys, otlp_receiver, strict_context):
        listener = Listener(name="in", upstream="127.0.0.1:9")
        first, second = envoys(Proxy("a", [listener]), Proxy("b", [listener]))
        (third,) = envoys(Proxy("c", [listener]))
        assert len({first.port(), second.port(), third.port()}) == 3
        assert otlp_receiver.spans == []
"""


def test_the_fixtures_are_there_without_any_import(pytester):
    pytester.makepyfile(USES_EVERYTHING)
    pytester.runpytest(*QUIET).assert_outcomes(passed=1)


def test_a_leaked_context_fails_the_test(pytester):
    pytester.makepyfile(
        """
        from opentelemetry import context

        def test_leak(strict_context):
            context.attach(context.set_value("colour", "red"))

        def test_next_one(strict_context):
            assert context.get_value("colour") is None
        """
    )
    result = pytester.runpytest(*QUIET)
    result.assert_outcomes(passed=2, errors=1)
    result.stdout.fnmatch_lines(["*A context is still attached: no span, keys ?'colour'?*"])


RELAY = Path(__file__).parent / "services" / "relay.py"
REPORTED = f"""
import sys
from pathlib import Path
from meshmw.testing import Service

def test_it(envoy_mesh):
    echo = Service("echo", command=[sys.executable, {str(RELAY)!r}, "{{port}}"])
    first, unused, second = envoy_mesh(echo), envoy_mesh(echo, edge=None), envoy_mesh(echo, sidecar="none")
    assert first.get("/").status == second.get("/").status == 200
    assert False, "as it should"

def test_without_a_mesh():
    pass
"""


@pytest.mark.usefixtures("envoys")
@pytest.mark.parametrize("wanted", [True, False])
def test_reports_are_written_while_the_mesh_is_up_and_named_beside_the_failure(pytester, wanted):
    pytester.makepyfile(REPORTED)
    result = pytester.runpytest(*QUIET, *(["--meshmw-report=reports"] * wanted))
    result.assert_outcomes(passed=1, failed=1)
    written = sorted(path.name for path in pytester.path.glob("reports/*"))
    stem = "test-reports-are-written-while-the-mesh-is-up-and-named-beside-the-failure.py-test-it"
    assert written == ([f"{stem}-2.html", f"{stem}.html"] if wanted else [])
    for name in written:
        assert "<h1>One trace</h1>" in (pytester.path / "reports" / name).read_text()
        result.stdout.fnmatch_lines([f"*{name}"])


def test_a_report_that_cannot_be_written_costs_no_test_its_outcome(pytester):
    pytester.makepyfile(
        """
        from meshmw.testing import pytest_plugin

        class Gone:
            was_asked = True

            def journey(self, timeout):
                raise OSError("no space left")

        def test_it(request):
            request.node.stash[pytest_plugin._MESHES] = [Gone()]
            assert False

        def test_another(request):
            request.node.stash[pytest_plugin._MESHES] = [Gone()]

        def test_without():
            pass
        """
    )
    result = pytester.runpytest(*QUIET, "--meshmw-report=reports")
    result.assert_outcomes(passed=2, failed=1)
    result.stdout.fnmatch_lines(["not written: OSError: no space left"])
    result.stdout.fnmatch_lines(["meshmw report of *::test_another not written: OSError: no space left"])


def test_a_mark_that_would_do_nothing_is_refused(pytester):
    pytester.makepyfile(
        """
        import pytest

        @pytest.mark.meshmw_headers("w3c")
        def test_it():
            pass
        """
    )
    result = pytester.runpytest(*QUIET)
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines(["*meshmw_headers chooses cases for `trace_headers`, which this test does not use*"])


def test_a_mark_of_a_whole_module_is_for_the_tests_that_take_the_headers(pytester):
    pytester.makepyfile(
        """
        import pytest

        pytestmark = pytest.mark.meshmw_headers("w3c", "b3")

        def test_it(trace_headers):
            pass

        def test_another():
            pass
        """
    )
    pytester.runpytest(*QUIET).assert_outcomes(passed=3)


@pytest.mark.parametrize("fixture", ["envoys", "otlp_receiver", "envoy_mesh"])
@pytest.mark.parametrize(("options", "outcome"), [([], "skipped"), (["--meshmw-require-envoy"], "errors")])
def test_what_is_not_installed_skips_unless_it_is_required(pytester, monkeypatch, fixture, options, outcome):
    monkeypatch.setenv("PATH", str(pytester.path))
    monkeypatch.setitem(sys.modules, "envoy", None)
    monkeypatch.setitem(sys.modules, "grpc", None)
    pytester.makepyfile(f"def test_it({fixture}): pass")
    result = pytester.runpytest(*QUIET, "-rsE", *options)
    result.assert_outcomes(**{outcome: 1})
    result.stdout.fnmatch_lines(["*is not installed: run  pip install 'meshmw?testing?'*"])


def test_loading_the_plugin_loads_neither_grpc_nor_opentelemetry():
    code = "import sys, meshmw.testing.pytest_plugin\nprint({'grpc', 'http.server'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "set()\n"


def test_tests_need_nothing_of_the_command_line():
    """`pip install 'meshmw[testing]'` brings neither; a report needs Jinja2 when it is written."""
    code = """
        import sys
        sys.modules.update(dict.fromkeys(["typer", "rich", "jinja2"]))
        import meshmw.testing
        for name in meshmw.testing.__all__:
            getattr(meshmw.testing, name)
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(code)], check=True, timeout=60)


def test_every_public_name_is_there():
    import meshmw.testing

    assert dir(meshmw.testing) == sorted(meshmw.testing.__all__)
    for name in meshmw.testing.__all__:
        found = getattr(meshmw.testing, name)
        assert get_origin(found) is Literal or getattr(found, "__name__", name) == name
    with pytest.raises(AttributeError, match=r"'meshmw.testing' has no attribute 'Sidecar'"):
        meshmw.testing.Sidecar  # noqa: B018 - the access is the test
