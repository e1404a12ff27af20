"""The standard library's server for a WSGI application."""

import http.client
import signal
import subprocess
import sys
import time

import pytest

from meshmw.testing import free_port
from meshmw.testing._processes import serve_wsgi

APP = """
import atexit, sys
print("loaded", flush=True)
atexit.register(lambda: print("exit handlers ran", flush=True))

class Nested:
    @staticmethod
    def app(environ, start_response):
        found = environ.get("HTTP_TRACEPARENT", "-"), environ["REQUEST_METHOD"], environ["PATH_INFO"]
        body = "|".join(found).encode()
        start_response("200 OK", [("Content-Length", str(len(body)))])
        return [body]

app = Nested.app
"""


@pytest.mark.parametrize("reference", ["served", "served:Nested.app"])
def test_it_serves_and_ends_with_its_exit_handlers(tmp_path, reference):
    (tmp_path / "served.py").write_text(APP)
    port = free_port()
    command = [sys.executable, "-m", "meshmw.testing._processes", "--port", str(port), reference]
    process = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        assert process.stdout.readline() == "loaded\n"
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
        deadline = time.monotonic() + 30
        while True:
            try:
                connection.connect()
                break
            except OSError:
                assert time.monotonic() < deadline
        connection.putrequest("GET", "/x")
        connection.putheader("traceparent", "one")
        connection.putheader("traceparent", "two")
        connection.endheaders()
        assert connection.getresponse().read() == b"one,two|GET|/x"
        connection.close()
    finally:
        process.send_signal(signal.SIGTERM)
        output, errors = process.communicate(timeout=30)
    assert (output, errors, process.returncode) == ("exit handlers ran\n", "", 0)


def test_help_says_how(capsys):
    with pytest.raises(SystemExit):
        serve_wsgi(["--help"])
    assert "module:attribute" in capsys.readouterr().out
