"""Scalars for TensorBoard, written at once: what fails is known here, and holds nobody up."""

from __future__ import annotations

import os
import pathlib
import socket
import struct
import time
from collections.abc import Mapping
from typing import Any

from tensorboardX import summary
from tensorboardX.proto import event_pb2
from tensorboardX.record_writer import masked_crc32c

from sharding.whole_file import append

EVENTS: Any = event_pb2
"""Its classes are made when it is imported, so that no checker of types sees them."""


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
        self._path = folder / name
        begun = EVENTS.Event(wall_time=time.time(), step=from_step, file_version="brain.Event:2")
        start = EVENTS.SessionLog(status=EVENTS.SessionLog.START)
        hides = EVENTS.Event(wall_time=time.time(), step=from_step, session_log=start)
        append(self._path, _record(begun) + _record(hides))

    def write(self, step: int, scalars: Mapping[str, float]) -> None:
        """The scalars of a step, by name."""
        now = time.time()
        events = (
            EVENTS.Event(wall_time=now, step=step, summary=summary.scalar(name, value))
            for name, value in scalars.items()
        )
        append(self._path, b"".join(map(_record, events)))


def _record(event: Any) -> bytes:
    """As TFRecord: length, its checksum, the bytes, their checksum."""
    data = event.SerializeToString()
    length = struct.pack("<Q", len(data))
    return b"".join(
        (
            length,
            struct.pack("<I", masked_crc32c(length)),
            data,
            struct.pack("<I", masked_crc32c(data)),
        )
    )
