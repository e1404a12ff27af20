"""The `meshmw` command."""

from __future__ import annotations

import pytest

from meshmw import __version__
from meshmw.cli import main


def test_bad_settings_are_told_and_end_with_2(monkeypatch, capsys):
    monkeypatch.setenv("MESHMW_EXPORTER", "zipkin")
    assert main(["settings"]) == 2
    assert "MESHMW_EXPORTER holds 'zipkin'" in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [[], ["unknown"], ["settings", "more"]])
def test_misuse_ends_with_2_and_the_usage(arguments, capsys):
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2
    assert capsys.readouterr().err.startswith("usage: meshmw")


def test_version(capsys):
    with pytest.raises(SystemExit) as caught:
        main(["--version"])
    assert caught.value.code == 0
    assert capsys.readouterr().out == f"meshmw {__version__}\n"


def test_settings_are_printed_with_their_value_and_where_it_comes_from(monkeypatch, capsys):
    monkeypatch.setenv("MESHMW_PROPAGATORS", "b3,tracecontext")
    monkeypatch.setenv("OTEL_SERVICE_NAME", "checkout")
    assert main(["settings"]) == 0
    out = capsys.readouterr().out
    assert "MESHMW_PROPAGATORS=b3,tracecontext  (from MESHMW_PROPAGATORS)\n" in out
    assert "MESHMW_SERVICE_NAME=checkout  (from OTEL_SERVICE_NAME)\n" in out
    assert "MESHMW_ENDPOINT=(none)  (default)\n" in out
    assert "    Where it is not set: OTEL_SDK_DISABLED.\n" in out
    assert out.endswith("    Where it is not set: OTEL_SDK_DISABLED.\n")
