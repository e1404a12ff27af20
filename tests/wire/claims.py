"""The vectors of a format: what is claimed of each text."""

import json
from pathlib import Path

import pytest

from meshmw.errors import InvalidHeaderError


def vectors(name):
    """The claims on one format, by sort."""
    return json.loads((Path(__file__).parent / "vectors" / f"{name}.json").read_text())


def by_claim(rows):
    return [pytest.param(row, id=row["claim"]) for row in rows]


def outcome(read, *args):
    """What reading returns, or the error that refuses it."""
    try:
        return read(*args)
    except InvalidHeaderError as error:
        return error
