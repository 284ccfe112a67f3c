"""Scalars for TensorBoard, written at once: what fails is known here, and holds nobody up.

A file holds records of the TFRecord format, each an `Event` of TensorFlow's event.proto. The few
fields of it that scalars need are written here: the packages that know all of them import torch or
TensorFlow where they are installed, which takes seconds.
"""

from __future__ import annotations

import os
import pathlib
import re
import socket
import struct
import time
from collections.abc import Mapping

from sharding.whole_file import append

VERSION = b"brain.Event:2"
START = 1
"""Of SessionLog.status."""
POLYNOMIAL = 0x82F63B78
"""Of CRC-32C (RFC 3720, appendix B.4), lowest bit first."""
MASK = 0xA282EAD8
"""What TFRecord adds to a checksum, after 15 bits are rotated."""


class Board:
    """A file of events in a folder.

    Args:
      folder: made if it is not there.
      from_step: TensorBoard hides what earlier files say of this step and later ones.

    Raises:
      OSError: it cannot be written; so does `write`.
    """

    def __init__(self, folder: pathlib.Path, from_step: int = 0) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        name = f"events.out.tfevents.{int(time.time())}.{socket.gethostname()}.{os.getpid()}"
        self._path, now = folder / name, time.time()
        begun = _event(now, from_step) + _bytes(3, VERSION)
        hides = _event(now, from_step) + _bytes(7, _number(1, START))
        append(self._path, _record(begun) + _record(hides))

    def write(self, step: int, scalars: Mapping[str, float]) -> None:
        """The scalars of a step, by name."""
        event = _event(time.time(), step)
        records = (event + _bytes(5, _scalar(name, value)) for name, value in scalars.items())
        append(self._path, b"".join(map(_record, records)))


def _event(now: float, step: int) -> bytes:
    """wall_time and step."""
    return _key(1, 1) + struct.pack("<d", now) + _number(2, step)


def _scalar(name: str, value: float) -> bytes:
    """A Summary of one Value: its tag and simple_value."""
    tag = re.sub(r"[^-/\w.]", "_", name).lstrip("/").encode()
    return _bytes(1, _bytes(1, tag) + _key(2, 5) + struct.pack("<f", float(value)))


def _key(field: int, wire: int) -> bytes:
    return bytes([field << 3 | wire])


def _number(field: int, value: int) -> bytes:
    return _key(field, 0) + _varint(value)


def _bytes(field: int, content: bytes) -> bytes:
    return _key(field, 2) + _varint(len(content)) + content


def _varint(value: int) -> bytes:
    found = bytearray()
    while value > 0x7F:
        found.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*found, value])


def _record(data: bytes) -> bytes:
    """As TFRecord: length, its checksum, the bytes, their checksum."""
    length = struct.pack("<Q", len(data))
    return length + _checksum(length) + data + _checksum(data)


def _checksum(data: bytes) -> bytes:
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (POLYNOMIAL if crc & 1 else 0)
    crc ^= 0xFFFFFFFF
    return struct.pack("<I", ((crc >> 15 | crc << 17) + MASK) & 0xFFFFFFFF)
