"""Where log lines go: shown where nobody has set logging up, and left to the application where it has."""

from __future__ import annotations

import re
import sys

import pytest

NO_LOGGING = """
import logging, os, sys
from meshmw._telemetry.configure import configure
from meshmw._notices import LOGGER
"""
FORM = r"\[\d{4}-\d\d-\d\d \d\d:\d\d:\d\d [+-]\d{4}\] \[\d+\] "


@pytest.fixture
def run(run_program):
    """Return a function that runs a program which sets no logging up, and returns what it wrote to standard error."""

    def run(code, **variables):
        variables = {"MESHMW_SERVICE_NAME": "shop", "MESHMW_EXPORTER": "none", "MESHMW_SHOW_LOG": ""} | variables
        done = run_program(code, prelude=NO_LOGGING, **variables)
        assert done.returncode == 0, done.stderr
        return done.stderr.splitlines()

    return run


def test_lines_are_shown_with_time_process_and_level(run):
    ready, refused, again = run(
        """
        configure()
        LOGGER.warning("traceparent refused (%s)", "length")
        LOGGER.info("spans reach it again")
        LOGGER.debug("nobody asked")
        """
    )
    assert re.fullmatch(rf"{FORM}\[INFO\] meshmw ready: .*service=shop.*", ready)
    assert re.fullmatch(rf"{FORM}\[WARNING\] meshmw: traceparent refused \(length\)", refused)
    assert re.fullmatch(rf"{FORM}\[INFO\] meshmw: spans reach it again", again)


@pytest.mark.parametrize("level", ["INFO", "WARNING"])
@pytest.mark.parametrize("is_first", [True, False])
def test_logging_that_the_application_sets_up_decides(run, level, is_first):
    lines = run(
        """
        def setup(): logging.basicConfig(level=os.environ["LEVEL"], format="mine %(levelname)s %(message)s")
        if os.environ["FIRST"]: setup()
        configure()
        if not os.environ["FIRST"]: setup()
        LOGGER.info("later")
        LOGGER.warning("warned")
        """,
        LEVEL=level,
        FIRST="yes" if is_first else "",
    )
    mine = [line for line in lines if line.startswith("mine ")]
    assert mine[-1] == "mine WARNING warned"
    assert ("mine INFO later" in mine) is (level == "INFO")
    assert ("mine INFO meshmw ready" in " ".join(mine)) is (level == "INFO" and is_first)
    # What came before the application spoke was shown as where it says nothing.
    assert len(lines) - len(mine) == (0 if is_first else 1)


def test_a_handler_or_a_level_of_its_own_decides_too(run):
    lines = run(
        """
        LOGGER.setLevel(logging.WARNING)
        configure()
        LOGGER.info("hidden")
        LOGGER.warning("shown")
        mine = logging.StreamHandler()
        mine.setFormatter(logging.Formatter("mine %(message)s"))
        LOGGER.addHandler(mine)
        LOGGER.warning("taken over")
        """
    )
    assert [line.rpartition("] ")[2] for line in lines] == ["meshmw: shown", "mine taken over"]


def test_a_level_that_is_set_later_decides_too(run):
    lines = run(
        """
        configure()
        logging.basicConfig(format="mine %(message)s")
        LOGGER.info("hidden")
        LOGGER.setLevel(logging.INFO)
        LOGGER.info("asked for")
        LOGGER.setLevel(logging.DEBUG)
        LOGGER.debug("too")
        """
    )
    assert [line for line in lines if "ready" not in line] == ["mine asked for", "mine too"]


def test_it_can_be_switched_off(run):
    lines = run("configure(); LOGGER.warning('as Python does by itself')", MESHMW_SHOW_LOG="false")
    assert lines == ["as Python does by itself"]


def test_a_warning_before_configure_has_the_same_form(run):
    lines = run(
        """
        LOGGER.info("as Python does by itself, it is dropped")
        LOGGER.warning("early")
        configure()
        """
    )
    assert re.fullmatch(rf"{FORM}\[WARNING\] meshmw: early", lines[0])
    assert "[INFO] meshmw ready" in lines[1]
    assert len(lines) == 2


def test_a_warning_before_configure_goes_where_the_application_or_its_server_logs(run):
    lines = run(
        """
        server = logging.getLogger("uvicorn")
        server.addHandler(logging.StreamHandler())
        LOGGER.warning("to the server")
        logging.basicConfig(format="mine %(message)s")
        LOGGER.warning("to the application")
        """
    )
    assert lines == ["meshmw: to the server", "mine to the application"]


def test_lines_follow_standard_error_wherever_it_goes_and_whatever_it_is(run):
    lines = run(
        """
        import io
        configure()
        sys.stderr = io.StringIO()
        LOGGER.warning("elsewhere")
        kept, sys.stderr = sys.stderr.getvalue(), None
        LOGGER.warning("nowhere")
        sys.stderr = sys.__stderr__
        print("kept:", kept, end="", file=sys.stderr)
        """
    )
    assert [line.rpartition("meshmw")[2] for line in lines[1:]] == [": elsewhere"]


def test_where_standard_error_is_closed_a_line_is_lost_and_nothing_raises(run):
    code = "configure(); sys.stderr.close(); LOGGER.warning('nowhere'); print('served', file=sys.stdout)"
    assert len(run(code)) == 1


def test_a_servers_level_decides_what_it_writes(run):
    lines = run(
        """
        server = logging.getLogger("uvicorn")
        server.addHandler(logging.StreamHandler())
        server.handlers[0].setLevel(logging.WARNING)
        configure()
        LOGGER.warning("warned")
        """
    )
    assert lines == ["meshmw: warned"]


def test_a_second_call_adds_nothing(run):
    lines = run(
        """
        from meshmw._log_output import show_log
        configure()
        show_log()
        print(len(LOGGER.handlers), file=sys.stderr)
        """
    )
    assert lines[1:] == ["1"]


class TestOnceATree:
    def test_a_process_that_it_starts_does_not_say_it_again(self, run):
        lines = run(
            f"""
            import subprocess
            configure()
            again = "from meshmw._telemetry.configure import configure; configure()"
            for name in ("shop", "other"):
                environment = os.environ | {{"MESHMW_SERVICE_NAME": name}}
                subprocess.run([{sys.executable!r}, "-c", again], check=True, env=environment)
            """
        )
        assert [re.search("service=([a-z]+)", line)[1] for line in lines] == ["shop", "other"]

    def test_another_program_that_it_starts_says_it_too(self, run):
        lines = run(
            f"""
            import subprocess
            configure()
            other = "from meshmw._telemetry.configure import configure; configure()"
            subprocess.run([{sys.executable!r}, "-c", other, "worker"], check=True)
            """
        )
        assert len(lines) == 2

    def test_of_siblings_one_says_it(self, run):
        lines = run(
            f"""
            import subprocess
            again = "from meshmw._telemetry.configure import configure; configure(); print(flush=True); input()"
            workers = [
                subprocess.Popen([{sys.executable!r}, "-c", again], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
                for _ in range(3)
            ]
            for worker in workers: worker.stdout.readline()
            for worker in workers: worker.communicate(b"\\n")
            """
        )
        assert len(lines) == 1

    def test_in_containers_that_share_a_network_each_says_it(self, run):
        # In each of them the first process has the number 1, and its parent the number 0.
        lines = run(
            """
            found = os.stat
            def stat(path, **options):
                got = found(path, **options)
                return os.stat_result((0, inode, *got[2:])) if path == "/proc/self/ns/pid" else got
            os.stat = stat
            inode = 1
            from meshmw._log_output import once_in_tree, show_log
            show_log()
            for inode in (1, 1, 2):
                os.environ.clear()
                LOGGER.info("begun in %d", inode, extra=once_in_tree("begun"))
            """
        )
        assert [line[-1] for line in lines] == ["1", "2"]

    def test_where_a_sandbox_refuses_names_each_says_it(self, run):
        lines = run(
            """
            import socket
            def refused(*_): raise PermissionError(1, "Operation not permitted")
            socket.socket = refused
            configure()
            """
        )
        assert len(lines) == 1

    def test_where_no_name_can_be_taken_each_says_it(self, run):
        lines = run("sys.platform = 'darwin'; configure()")
        assert len(lines) == 1

    def test_a_server_numbers_its_workers(self, run):
        lines = run(
            """
            import multiprocessing
            logging.getLogger("uvicorn").addHandler(logging.StreamHandler())
            multiprocessing.current_process().name = "SpawnProcess-2"
            configure()
            """
        )
        assert lines == []


class TestServiceWithoutAName:
    def test_it_is_said_with_the_line_to_add(self, run):
        (line,) = run("configure()", MESHMW_SERVICE_NAME="", MESHMW_EXPORTER="console")[1:]
        assert re.fullmatch(
            rf"{FORM}\[WARNING\] meshmw: this service has no name, and its spans say unknown_service\S*: "
            "set MESHMW_SERVICE_NAME=my-service",
            line,
        )

    @pytest.mark.parametrize("variables", [{"MESHMW_EXPORTER": "none"}, {"OTEL_SDK_DISABLED": "true"}])
    def test_nothing_is_said_where_no_span_goes_out(self, run, variables):
        assert len(run("configure()", MESHMW_SERVICE_NAME="", **variables)) == 1
