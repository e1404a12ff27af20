"""Header fields as bytes before a message, for protocols that have no headers.

    frame  = magic version size *field      magic: 4D 57, version: 01, size: of all fields, 2 bytes
    field  = length name length text        the first length has 1 byte, the second 2; all big-endian

Standard library only; does not know what the fields mean.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from meshmw.errors import InvalidHeaderError

MAGIC: Final = b"MW"
VERSION: Final = 1
PREFIX_BYTES: Final = len(MAGIC) + 1 + 2
MAX_FRAME_BYTES: Final = 16_384
MAX_FIELDS: Final = 32
MAX_NAME_BYTES: Final = 64
MAX_TEXT_BYTES: Final = 8_192


def format_frame(fields: dict[str, str]) -> tuple[bytes, tuple[str, ...]]:
    """Write a frame, and leave out whole fields that are too long for it, so that one of them costs only itself.

    Args:
        fields: Names and texts in the order in which they are wanted.

    Returns:
        The frame, and the names of the fields that are not in it.
    """
    block = bytearray()
    count = 0
    left_out = []
    for name, text in fields.items():
        field = _field(name, text)
        if field is None or count == MAX_FIELDS or PREFIX_BYTES + len(block) + len(field) > MAX_FRAME_BYTES:
            left_out.append(name)
            continue
        block += field
        count += 1
    return b"".join((MAGIC, bytes((VERSION,)), len(block).to_bytes(2, "big"), block)), tuple(left_out)


def frame_size(data: memoryview) -> int:
    """Return how many bytes at the beginning of *data* are the frame.

    Raises:
        InvalidHeaderError: There is no frame, or it does not end within *data*.
    """
    prefix = bytes(data[:PREFIX_BYTES])
    if prefix[: len(MAGIC)] != MAGIC:
        raise InvalidHeaderError("frame", "magic", 0)
    if len(prefix) < PREFIX_BYTES:
        raise InvalidHeaderError("frame", "truncated", len(prefix))
    if prefix[2] != VERSION:
        raise InvalidHeaderError("frame", "version", 2)
    size = PREFIX_BYTES + int.from_bytes(prefix[3:], "big")
    if size > MAX_FRAME_BYTES:
        raise InvalidHeaderError("frame", "too_long", 3)
    if size > len(data):
        raise InvalidHeaderError("frame", "truncated", len(data))
    return size


def parse_frame(frame: bytes) -> dict[str, list[str]]:
    """Read the fields of one whole frame: the texts by name in lower case, several of one name in order.

    Raises:
        InvalidHeaderError: The lengths do not add up, or a limit is exceeded.
    """
    fields: dict[str, list[str]] = {}
    for count, (name, text) in enumerate(_fields(frame)):
        if count == MAX_FIELDS:
            raise InvalidHeaderError("frame", "too_many_fields")
        fields.setdefault(name.decode("latin-1").lower(), []).append(text.decode("latin-1"))
    return fields


def _field(name: str, text: str) -> bytes | None:
    try:
        name_bytes, text_bytes = name.encode("latin-1"), text.encode("latin-1")
    except UnicodeEncodeError:
        return None
    if not 0 < len(name_bytes) <= MAX_NAME_BYTES or len(text_bytes) > MAX_TEXT_BYTES:
        return None
    return b"".join((bytes((len(name_bytes),)), name_bytes, len(text_bytes).to_bytes(2, "big"), text_bytes))


def _fields(frame: bytes) -> Iterator[tuple[bytes, bytes]]:
    at = PREFIX_BYTES
    while at < len(frame):
        name, at = _part(frame, at, 1, MAX_NAME_BYTES)
        if not name:
            raise InvalidHeaderError("frame", "no_name", at)
        text, at = _part(frame, at, 2, MAX_TEXT_BYTES)
        yield name, text


def _part(frame: bytes, at: int, length_bytes: int, limit: int) -> tuple[bytes, int]:
    begin = at + length_bytes
    end = begin + int.from_bytes(frame[at:begin], "big")
    if begin > len(frame) or end > len(frame):
        raise InvalidHeaderError("frame", "truncated", at)
    if end - begin > limit:
        raise InvalidHeaderError("frame", "field_too_long", at)
    return frame[begin:end], end
